"""Whether greedy text runs in circles: repetition and distinct n-grams of what a model says after pieces of a text.

What a model writes by itself may loop while its perplexity, given the right text, looks well (Holtzman et al. 2020,
arXiv:1904.09751). Damage may also end in noise, which repeats less: a difference counts in both directions. Distinct-n
is that of Li et al. 2016 (arXiv:1510.03055) but for one thing: they count n-grams over all texts at once, here each
continuation counts its own, and the sums are divided. A sum per prompt can be drawn again by the bootstrap, while texts
drawn twice would share all their n-grams and look degenerate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from llmc.errors import CalibrationError, UsageError
from llmc.eval.measures.metrics import BATCH_TOKENS
from llmc.eval.reports.intervals import paired_intervals
from llmc.late import np, torch
from llmc.models.open import position_limit, quiet
from llmc.results import silent

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from llmc.eval.reports.intervals import Figure
    from llmc.results import Progress

LOOP = 4  # tokens that make a repetition
LENGTHS = (1, 2, 3)  # of the n-grams that are counted
NAMES = ("repetition_rate", *(f"distinct_{n}" for n in LENGTHS))


@dataclass(frozen=True)
class Degeneration:
    """Counts of each continuation, `[prompts]` and `[prompts, lengths]`, float64.

    Attributes:
        tokens: generated, without the end of the text.
        repeated: of them, those that lie in 4 tokens which stood in the same continuation before.
        ngrams, distinct: how many of 1, 2 and 3 tokens, and how many different ones.
    """

    tokens: NDArray[np.float64]
    repeated: NDArray[np.float64]
    ngrams: NDArray[np.float64]
    distinct: NDArray[np.float64]

    @property
    def pairs(self) -> NDArray[np.float64]:
        """What each figure divides, `[prompts, figures, (part, whole)]`, in the order of `NAMES`."""
        parts = np.concatenate([self.repeated[:, None], self.distinct], axis=1)
        wholes = np.concatenate([self.tokens[:, None], self.ngrams], axis=1)
        return np.stack([parts, wholes], axis=2)


def degeneration(
    model: Any,
    ids: Tensor,
    *,
    prompts: int = 32,
    prompt_tokens: int = 32,
    new_tokens: int = 64,
    begin: Sequence[int] = (),
    progress: Progress | None = None,
) -> Degeneration:
    """Continue the heads of equal parts of a text greedily, and count.

    Args:
        ids: token ids of the text, `[tokens]`.
        prompts: into how many parts the text is cut.
        prompt_tokens: of each head.
        new_tokens: of each continuation, fewer where the model ends the text.
        begin: what stands before every prompt: the tokenizer's BOS, where it has one.

    Raises:
        CalibrationError: the text is too short. UsageError: the model has too few positions.
    """
    if min(prompts, prompt_tokens, new_tokens) < 1:
        sizes = f"{prompts} prompts of {prompt_tokens} tokens and {new_tokens} new ones"
        raise UsageError(f"{sizes} leave nothing to count", fix="use 1 or more of each")
    heads = _heads(ids, prompts, prompt_tokens, begin)
    _require_positions(model, heads.shape[1], new_tokens)
    report, rows = progress or silent, list[list[int]]()
    step = max(1, BATCH_TOKENS // (heads.shape[1] + new_tokens))
    for at in range(0, prompts, step):
        rows += continuations(model, heads[at : at + step], new_tokens)
        report("degeneration", len(rows), prompts)
    counts = [[len(row), repeated_tokens(row), *_ngram_counts(row)] for row in rows]
    table = np.array(counts, dtype=np.float64)  # [prompts, 2 + 2 * lengths]
    middle = 2 + len(LENGTHS)
    return Degeneration(table[:, 0], table[:, 1], table[:, 2:middle], table[:, middle:])


def continuations(model: Any, heads: Tensor, new_tokens: int) -> list[list[int]]:
    """The most probable token each time after `heads` `[rows, tokens]`, up to an end of text, which is left out."""
    import transformers

    own = model.generation_config
    end = own.eos_token_id if own is not None else None
    ends = set(end if isinstance(end, list) else [] if end is None else [end])
    make: Any = transformers.GenerationConfig
    settings = make(
        max_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=end,
        pad_token_id=next(iter(ends), 0),
        # those of the model's generation_config.json hide what is measured here
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
    )
    heads = heads.to(model.device)
    with quiet(), torch.inference_mode():
        out = model.generate(heads, attention_mask=torch.ones_like(heads), generation_config=settings)
    rows: list[list[int]] = out[:, heads.shape[1] :].tolist()
    return [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in rows]


def repeated_tokens(tokens: Sequence[int]) -> int:
    """How many tokens lie in a run of `LOOP` that began earlier in `tokens` too; the two may overlap.

    >>> repeated_tokens([1, 2, 3, 4, 9, 1, 2, 3, 4]), repeated_tokens([5] * 6)
    (4, 5)
    """
    seen, inside = set[tuple[int, ...]](), set[int]()
    for at in range(len(tokens) - LOOP + 1):
        run = tuple(tokens[at : at + LOOP])
        if run in seen:
            inside.update(range(at, at + LOOP))
        seen.add(run)
    return len(inside)


def compare(mine: Degeneration, original: Degeneration | None = None) -> dict[str, Any]:
    """The figures, JSON-ready: `NAMES`, each with `original_` before it and `_difference` behind it, and `intervals`.

    Intervals are at 95 %, by the paired bootstrap over prompts. Without an original, what compares is None; so is a
    figure that has nothing to count.
    """
    tables = [mine.pairs] if original is None else [mine.pairs, original.pairs]
    sums = np.stack(tables, axis=1)  # [prompts, models, figures, 2]
    shape = sums.shape[1:]
    total = sums.sum(axis=0)[None]
    figures: dict[str, Figure] = {}
    for i, name in enumerate(NAMES):
        if not total[0, :, i, 1].all():
            continue
        figures[name] = partial(_share, shape, 0, i)
        if original is not None:
            figures[f"original_{name}"] = partial(_share, shape, 1, i)
            figures[f"{name}_difference"] = partial(_difference, shape, i)
    flat = total.reshape(1, -1)
    every = [form.format(name) for name in NAMES for form in ("{}", "original_{}", "{}_difference")]
    values = {name: float(figures[name](flat)[0]) if name in figures else None for name in every}
    edges = paired_intervals(sums.reshape(len(sums), -1), figures)
    return {**values, "prompts": len(sums), "intervals": {name: list(pair) for name, pair in edges.items()}}


def _share(shape: tuple[int, ...], model: int, figure: int, totals: NDArray[np.float64]) -> NDArray[np.float64]:
    part, whole = totals.reshape(-1, *shape)[:, model, figure].T
    return part / np.maximum(whole, 1)  # a draw of empty continuations only repeats nothing


def _difference(shape: tuple[int, ...], figure: int, totals: NDArray[np.float64]) -> NDArray[np.float64]:
    return _share(shape, 0, figure, totals) - _share(shape, 1, figure, totals)


def _ngram_counts(tokens: Sequence[int]) -> list[int]:
    """How many n-grams of each length, then how many different ones."""
    runs = [[tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)] for n in LENGTHS]
    return [*map(len, runs), *(len(set(each)) for each in runs)]


def _heads(ids: Tensor, prompts: int, tokens: int, begin: Sequence[int]) -> Tensor:
    """The first `tokens` of each of `prompts` equal parts, `[prompts, begin + tokens]`."""
    first = torch.tensor(list(begin), dtype=ids.dtype)
    if len(first) and torch.equal(ids[: len(first)], first):
        ids = ids[len(first) :]  # it would stand there twice
    part = len(ids) // prompts
    if part < tokens:
        raise CalibrationError(
            f"the text has {len(ids)} tokens, and {prompts} prompts of {tokens} need {prompts * tokens}",
            fix="give a longer text",
        )
    return torch.stack([torch.cat([first, ids[i * part : i * part + tokens]]) for i in range(prompts)])


def _require_positions(model: Any, prompt: int, new: int) -> None:
    limit = position_limit(model)
    if limit is not None and prompt + new > limit:
        raise UsageError(
            f"prompts of {prompt} tokens and {new} new ones exceed the model's {limit} positions", fix="use fewer"
        )
