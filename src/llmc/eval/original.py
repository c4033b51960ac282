"""The original of an evaluation, run once: what candidates are held against is kept, and read back as they come.

Of a text that is the states which predict its scored tokens, in their own dtype, with the head that makes logits of
them: KL stays exact, and the original need not be in memory. Of a task it is which items it got right.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import llmc
from llmc.eval.cache import Cache, Kept, model_sha256
from llmc.eval.conditions import Conditions, require_positions, token_ids
from llmc.eval.measures.degeneration import Degeneration, degeneration
from llmc.eval.measures.halves import Head, Plan, build_head
from llmc.eval.measures.layers import TOKENS, block_outputs
from llmc.eval.measures.metrics import Reference, Scored, Window, score, windows
from llmc.eval.measures.samples import greedy
from llmc.eval.reports.task_report import TaskScores
from llmc.eval.tasks.judging import judge
from llmc.eval.tasks.scoring import leading_ids
from llmc.files.safetensors import load, load_rows
from llmc.late import torch
from llmc.models.open import require_ids_fit
from llmc.results import Progress, silent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from llmc.artifacts.layout import Shapes
    from llmc.eval.subject import Subject
    from llmc.eval.tasks.tasks import Task
    from llmc.files.header import TensorEntry


@dataclass(frozen=True)
class OnText:
    """What the original does on a text.

    Attributes:
        reference: to score candidates against.
        ids: of the text, `[tokens]`.
        tokens, nll: scored tokens and their negative log-likelihood in nats of each window, `[windows]`.
        layers: block path -> output on the first tokens, `[tokens, width]`.
    """

    reference: Reference
    ids: Tensor
    tokens: NDArray[np.float64]
    nll: NDArray[np.float64]
    layers: Mapping[str, Tensor]


class KeptStates:
    """The states of a text as a `Reference`; windows have to come in order.

    Their file stays open: the entry may be removed meanwhile, to make room or by another process.
    """

    def __init__(self, name: str, entry: TensorEntry, head: Head, device: str) -> None:
        self.name = name
        self._entry, self._head, self._device = entry, head, device
        self._file = os.open(entry.file, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        self._row = 0

    def states(self, batch: Sequence[Window], tokens: Tensor) -> list[Tensor]:
        """See `Reference`."""
        if batch[0].first == 1:
            self._row = 0
        out = []
        for window in batch:
            end = self._row + window.end - window.first
            out.append(load_rows(self._entry, self._row, end, self._file).to(self._device))
            self._row = end
        return out

    def logits(self, states: Tensor) -> Tensor:
        """See `Reference`."""
        return self._head(states)


class Original:
    """The original, measured where nothing was kept of it.

    Args:
        subject: the model; opened only when it has to run.
        cache: where what it shows is kept.
    """

    def __init__(self, subject: Subject, cache: Cache, progress: Progress | None) -> None:
        self.subject = subject
        self.cache = cache
        self.progress = progress or silent

    def on_text(self, conditions: Conditions) -> OnText:
        """Its tokens of the text, and its states on their windows: read back, or made and kept.

        Where they cannot be kept (a note says why) the model itself is the reference, and stays in memory.
        """
        context, stride = conditions.context, conditions.stride
        text = None if conditions.source is None else conditions.source.sha256
        facts = self._facts("text", text=text, first=conditions.max_tokens, context=context, stride=stride)
        kept = self.cache.find(facts)
        if kept is None:
            ids = token_ids(conditions, self.subject)
            if not self._run_text(facts, ids, context, stride):
                return self._live(ids, context, stride)
            kept = self.cache.find(facts, check=False)
            if kept is None:
                return self._live(ids, context, stride)
        return self._read_text(kept)

    def on_task(self, task: Task) -> TaskScores:
        """Its scores: read back, or made and kept."""
        facts = self._facts("task", sha256=task.sha256, items=len(task.items))
        kept = self.cache.find(facts)
        if kept is not None:
            return _scores(kept)
        scores = judge(self._scored, self.subject.tokenizer, task, progress=self.progress)
        tensors = {f"correct.{name}": torch.from_numpy(each) for name, each in scores.correct.items()}
        tensors["truncated"] = torch.tensor([scores.truncated])
        if scores.log_likelihood is not None:
            tensors["log_likelihood"] = torch.from_numpy(scores.log_likelihood)
        self._keep(facts, {"kind": "task", "model": self.subject.name, "task": task.name}, tensors)
        return scores

    def sample(self, prompt: str) -> str:
        """Its greedy continuation of a prompt."""
        return greedy(self.subject.model, self.subject.tokenizer, prompt)

    def degeneration(self, ids: Tensor) -> Degeneration:
        """Of its greedy continuations of parts of a text."""
        begin = leading_ids(self.subject.tokenizer)
        return degeneration(self.subject.model, ids, begin=begin, progress=self.progress)

    @cached_property
    def _scored(self) -> Scored:
        return Scored(self.subject.name, self.subject.model)

    @cached_property
    def _model_facts(self) -> dict[str, Any]:
        import tokenizers
        import transformers

        subject = self.subject
        return {
            "model": model_sha256(subject.folder),
            "dtype": str(subject.dtype),
            "device": subject.device.split(":")[0],
            "versions": [each.__version__ for each in (llmc, torch, transformers, tokenizers)],
        }

    def close(self, *, but: Reference | None = None) -> None:
        """Give the model's memory back, unless it is the reference."""
        if not isinstance(but, Scored):
            self.__dict__.pop("_scored", None)
            self.subject.close()

    def _facts(self, kind: str, **more: Any) -> dict[str, Any]:
        """All that an entry depends on."""
        return {"kind": kind, **self._model_facts, **more}

    def _run_text(self, facts: Mapping[str, Any], ids: Tensor, context: int, stride: int) -> bool:
        """Run the text and keep what it gives. False, and a note, where it cannot be kept."""
        scored, head = self._scored, self._scored.halves.head
        if head is None:
            self.cache.notes.append(f"{scored.name}: its head cannot be run alone, so both models stay in memory")
            return False
        self._check(ids, context)
        layers: dict[str, Tensor] = {}
        block_outputs(scored.model, ids[:context][:TOKENS], lambda path, y: layers.__setitem__(path, y.cpu()))
        found = list(windows(len(ids), context, stride))
        whole: dict[str, Tensor] = {f"head.{name}": value for name, value in head.parameters.items()}
        whole |= {f"layer.{path}": value for path, value in layers.items()}
        whole["ids"] = ids
        whole["tokens"] = torch.tensor([w.end - w.first for w in found], dtype=torch.float64)
        rows = int(whole["tokens"].sum())
        width = scored.halves.states(ids[None, :1]).shape[-1]
        shapes: Shapes = {"states": (scored.model.dtype, (rows, width)), "nll": (torch.float64, (len(found),))}
        shapes = {**shapes, **{name: (value.dtype, tuple(value.shape)) for name, value in whole.items()}}
        if not self.cache.fits(shapes):
            self.cache.notes.append(
                f"{scored.name}: its states exceed the cache's {self.cache.limit:,} bytes: not kept"
            )
            return False
        about = {"kind": "text", "model": scored.name, "tokens": len(ids), "body": head.plan.body}
        with self.cache.writing(facts, {**about, "output": head.plan.kind}, shapes) as writer:
            for name, value in whole.items():
                writer.write(name, value)
            row = 0

            def keep(states: Tensor) -> None:
                nonlocal row
                writer.write("states", states, row)
                row += len(states)

            sums = score(scored, ids=ids, context=context, stride=stride, keep=keep, progress=self.progress)
            writer.write("nll", torch.from_numpy(sums.nll))
        return True

    def _read_text(self, kept: Kept) -> OnText:
        """An entry that `_run_text` wrote."""
        entries = kept.tensors()
        tensors = {name: load(entry) for name, entry in entries.items() if name != "states"}
        device, name = self.subject.device, self.subject.name
        parameters = {key.removeprefix("head."): tensors[key].to(device) for key in tensors if key.startswith("head.")}
        plan = Plan(kept.about["body"], kept.about["output"])
        head = build_head(self.subject.config, plan, parameters, name)
        layers = {key.removeprefix("layer."): value for key, value in tensors.items() if key.startswith("layer.")}
        reference = KeptStates(name, entries["states"], head, device)
        return OnText(reference, tensors["ids"], tensors["tokens"].numpy(), tensors["nll"].numpy(), layers)

    def _live(self, ids: Tensor, context: int, stride: int) -> OnText:
        """The model itself as the reference."""
        scored = self._scored
        self._check(ids, context)
        layers: dict[str, Tensor] = {}
        block_outputs(scored.model, ids[:context][:TOKENS], layers.__setitem__)
        sums = score(scored, ids=ids, context=context, stride=stride, progress=self.progress)
        return OnText(scored, ids, sums.tokens, sums.nll, layers)

    def _check(self, ids: Tensor, context: int) -> None:
        require_positions(self.subject, context)
        require_ids_fit(self.subject.model, int(ids.max()), self.subject.name)

    def _keep(self, facts: Mapping[str, Any], about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        shapes: Shapes = {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()}
        if self.cache.fits(shapes):
            with self.cache.writing(facts, about, shapes) as writer:
                for name, value in tensors.items():
                    writer.write(name, value)


def _scores(kept: Kept) -> TaskScores:
    tensors = {name: load(entry) for name, entry in kept.tensors().items()}
    found = tensors.get("log_likelihood")
    correct = {name.removeprefix("correct."): t.numpy() for name, t in tensors.items() if name.startswith("correct.")}
    return TaskScores(correct, None if found is None else found.numpy(), int(tensors["truncated"]))
