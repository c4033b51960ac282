"""One model on one task: which items it gets right."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from llmc.errors import InputError
from llmc.eval.measures.metrics import BATCH_TOKENS, Scored
from llmc.eval.reports.task_report import TaskScores
from llmc.eval.tasks.scoring import Likelihood, Request, leading_ids, log_likelihoods, requests
from llmc.late import np, torch
from llmc.models.open import position_limit, quiet, require_ids_fit
from llmc.results import silent

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmc.eval.tasks.tasks import Item, Task
    from llmc.results import Progress

NEW_TOKENS = 32  # of a short answer; more where the longest right one needs more


def judge(scored: Scored, tokenizer: Any, task: Task, *, progress: Progress | None = None) -> TaskScores:
    """Which items of the task the model gets right, by every metric of its shape.

    Raises:
        InputError: an item that cannot be put to this model. CheckpointError: logits that are not finite.
    """
    if task.shape == "short_answer":
        return _answers(scored, tokenizer, task, progress or silent)
    pairs = [pair for item in task.items for pair in item.pairs]
    places = [task.where(item) for item in task.items for _ in item.pairs]
    asked = requests(scored.model, tokenizer, pairs, places, scored.name)
    require_ids_fit(scored.model, max(max(each.tokens) for each in asked), scored.name)
    label = f"{task.name}: {scored.name}"
    found = log_likelihoods(scored, asked, label=label, progress=progress)
    ends = np.cumsum([len(item.pairs) for item in task.items]).tolist()
    spans = [slice(end - len(item.pairs), end) for item, end in zip(task.items, ends, strict=True)]
    return TaskScores(
        correct=_correct(task, [found[span] for span in spans]),
        log_likelihood=np.array([found[s][i.gold].total for s, i in zip(spans, task.items, strict=True)]),
        truncated=sum(any(each.truncated for each in asked[span]) for span in spans),
    )


def _correct(task: Task, found: Sequence[Sequence[Likelihood]]) -> dict[str, NDArray[np.bool_]]:
    """Metric -> `[items]`; the likeliest option counts, the first of equal ones."""
    both = list(zip(task.items, found, strict=True))
    if task.shape == "cloze":
        return {"acc": np.array([each[0].greedy for _, each in both])}
    plain = np.array([_first_best([each.total for each in options]) == item.gold for item, options in both])
    if task.shape == "partial_scoring":
        return {"acc": plain}
    per_byte = [_first_best(_per_byte(item, options)) == item.gold for item, options in both]
    return {"acc_norm": np.array(per_byte), "acc": plain}


def _per_byte(item: Item, options: Sequence[Likelihood]) -> list[float]:
    return [each.total / len(text.encode()) for (_, text), each in zip(item.pairs, options, strict=True)]


def _first_best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda i: values[i])


def _answers(scored: Scored, tokenizer: Any, task: Task, report: Progress) -> TaskScores:
    """Greedy answers up to the end of their line, held against the right ones."""
    new = NEW_TOKENS
    with quiet():
        for item in task.items:
            new = max(new, *(len(tokenizer(answer)["input_ids"]) + 1 for answer in item.answers))
    prompts = [_prompt(scored, tokenizer, item.pairs[0][0], task.where(item), new) for item in task.items]
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].tokens))
    texts: dict[int, str] = {}
    for length, same in groupby(order, key=lambda i: len(prompts[i].tokens)):
        alike = list(same)  # of one length: nothing is padded
        step = max(1, BATCH_TOKENS // (length + new))
        for begin in range(0, len(alike), step):
            rows = alike[begin : begin + step]
            texts |= zip(rows, _generate(scored.model, tokenizer, [prompts[i].tokens for i in rows], new), strict=True)
            report(f"{task.name}: {scored.name}", len(texts), len(prompts))
    right = [_plain(texts[i]) in {_plain(answer) for answer in item.answers} for i, item in enumerate(task.items)]
    return TaskScores({"exact_match": np.array(right)}, None, sum(prompt.truncated for prompt in prompts))


def _prompt(scored: Scored, tokenizer: Any, text: str, where: str, new: int) -> Request:
    """The tokens of a question, cut from the left where the answer would not fit behind it."""
    begin = leading_ids(tokenizer)
    with quiet():
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    limit = position_limit(scored.model)
    room = len(ids) if limit is None else limit - new - len(begin)
    if room < 1:
        raise InputError(
            f"an answer of up to {new} tokens does not fit into the {limit} positions of {scored.name}", where=where
        )
    kept = ids[max(0, len(ids) - room) :]
    return Request((*begin, *kept), 0, where, len(kept) < len(ids))


def _generate(model: Any, tokenizer: Any, prompts: Sequence[tuple[int, ...]], new: int) -> list[str]:
    """What the model says after prompts of one length, up to a line break, an end of text or `new` tokens."""
    import transformers

    ids = torch.tensor(prompts, device=model.device)  # [rows, tokens]
    end = model.generation_config.eos_token_id if model.generation_config is not None else None
    pad = end[0] if isinstance(end, list) else end
    make: Any = transformers.GenerationConfig
    settings = make(
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=0 if pad is None else pad,
        stop_strings=["\n"],
    )
    with quiet(), torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings, tokenizer=tokenizer)
    rows = out[:, ids.shape[1] :]
    return [tokenizer.decode(row, skip_special_tokens=True).split("\n", 1)[0] for row in rows]


def _plain(text: str) -> str:
    return text.strip().lower()
