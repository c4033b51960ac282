"""Which matrices of a model a recipe compresses, and which stay as they are, and why.

By default all matrices of the blocks but gates and routers, which are small and decide where tokens go. One that the
group size or a format does not fit is kept and named, unless most of the model would be, or `strict` asks for all.
"""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

from llmc.errors import UnsupportedError, UsageError
from llmc.formats.container import Container, Facts, Spec, encoded
from llmc.recipe.recipe import Stage
from llmc.registry import suggest
from llmc.targets import Target

READ = ("bfloat16", "float16", "float32")
MOST_ODD = 0.5
"""Share of the targeted weights that may stay as they are because they do not fit."""
SHOWN = 3
"""Names in a note."""
GATES = ("gate", "router")


def choose(
    stages: Sequence[Stage], targets: Sequence[Target], where: str, everything: bool = False
) -> dict[str, tuple[tuple[int, ...], Target]]:
    """Name on disk -> (its stages in order, Target); only the last of them encodes.

    Args:
        everything: also embeddings, heads and poolers, where a size is to be met.

    Raises UsageError, UnsupportedError for patterns that name nothing, or what cannot be compressed.
    """
    chosen: dict[str, tuple[tuple[int, ...], Target]] = {}
    for index, stage in enumerate(stages):
        for target in _selected(stage, targets, everything):
            earlier = chosen[target.tensor][0] if target.tensor in chosen else ()
            if earlier:
                _check_order(stages, earlier[-1], index, target, where)
            if str(target.dtype).removeprefix("torch.") not in READ:
                names = ", ".join(READ)
                raise UnsupportedError(
                    f"stored as {str(target.dtype).removeprefix('torch.')}; llmc compresses {names}",
                    where=target.tensor,
                    fix=f"add --ignore {target.name}",
                )
            chosen[target.tensor] = ((*earlier, index), target)
    if not chosen and not any(stage.targets or stage.ignore for stage in stages):
        fix = f"name others with --targets: {', '.join(t.name for t in targets[:3])}" if targets else ""
        raise UnsupportedError("the blocks of the model hold no matrix that llmc compresses", where=where, fix=fix)
    if not chosen:
        raise UsageError("no matrix of the model is targeted", where=where, fix="widen --targets or drop --ignore")
    return chosen


def _check_order(stages: Sequence[Stage], earlier: int, later: int, target: Target, where: str) -> None:
    """Refuse a stage that cannot go on from what an earlier one makes of a Target."""
    one, other = stages[earlier], stages[later]
    names = f"stages {earlier} and {later}"
    if not one.outlook.encodes and (other.outlook.keeps_zeros or not other.outlook.encodes):
        return
    message, fix = f"{target.name} is targeted by {names}", "give one of them an ignore"
    if one.outlook.encodes and not other.outlook.encodes:
        message += f": {other.name} takes weights, and {one.name} has made codes of them"
        fix = f"put {other.name} first, or give one of them an ignore"
    elif not one.outlook.encodes:
        message += f": {other.name} would not keep the zeros of {one.name}"
        fix = f"use gptq or rtn in place of {other.name}, or give one of them an ignore"
    raise UsageError(message, where=where, fix=fix)


def _selected(stage: Stage, targets: Sequence[Target], everything: bool) -> list[Target]:
    for pattern in (*stage.targets, *stage.ignore):
        if not any(matches(t, pattern) for t in targets):
            names = [t.name for t in targets]
            raise UsageError(
                f"no matrix is named {pattern!r}", where=f"stage {stage.name}", fix=suggest(pattern, names[:8])
            )
    picked = (
        [t for t in targets if any(matches(t, p) for p in stage.targets)]
        if stage.targets
        else _default(targets, everything)
    )
    return [t for t in picked if not any(matches(t, p) for p in stage.ignore)]


def _default(targets: Sequence[Target], everything: bool) -> list[Target]:
    """All matrices of the blocks but gates; embeddings, heads and poolers where a size is to be met."""
    inside = targets if everything else [t for t in targets if t.block is not None and t.kind != "embedding"]
    gates = _gates(targets)
    return [t for t in inside if t.tensor not in gates]


def _gates(targets: Sequence[Target]) -> set[str]:
    """Names on disk of gates (matrices of one row) and of routers (a gate beside experts)."""
    homes = {t.name.partition(".experts.")[0] for t in targets if ".experts." in t.name}
    found = {t.tensor for t in targets if t.shape[0] == 1}
    routers = (t for t in targets if t.kind == "linear" and t.name.rpartition(".")[2] in GATES)
    return found | {t.tensor for t in routers if t.name.rpartition(".")[0] in homes}


def left_alone(chosen: AbstractSet[str], targets: Sequence[Target]) -> list[str]:
    """A note on the gates that are not among the names on disk which a stage has `chosen`."""
    found = _gates(targets)
    gates = [t for t in targets if t.block is not None and t.tensor in found and t.tensor not in chosen]
    return [_note("gates and routers stay as they are", gates, targets)] if gates else []


def is_named(stage: Stage, target: Target) -> bool:
    """Whether a stage's targets name this one by itself, without a wildcard."""
    return any(matches(target, pattern) for pattern in stage.targets if not set(pattern) & set("*?["))


def fitting(
    specs: dict[str, Spec],
    containers: Iterable[Container],
    facts: Facts,
    *,
    named: AbstractSet[str] = frozenset(),
    strict: bool = False,
) -> tuple[dict[str, Spec], list[str]]:
    """Those of `specs` that group size and containers fit, and a note for each reason why others do not.

    Args:
        named: names on disk of those that were asked for one by one: they have to fit.
        strict: all have to.

    Raises UsageError, or UnsupportedError, where nothing may be left out, or too much would be.
    """
    reasons = _misfits(specs, list(containers), facts)
    odd = {tensor: reason for tensor, reason in reasons.items() if tensor not in named}
    total = sum(spec.target.numel for spec in specs.values())
    weights = sum(specs[tensor].target.numel for tensor in odd)
    if strict or len(odd) < len(reasons) or weights > MOST_ODD * total:
        _check_groups(specs)
        check_formats(specs, containers, facts)
    by_reason: dict[str, list[Target]] = defaultdict(list)
    for tensor, reason in odd.items():
        by_reason[reason].append(specs[tensor].target)
    every = [spec.target for spec in specs.values()]
    notes = [_note(f"kept as they are: {reason}", found, every) for reason, found in by_reason.items()]
    return {tensor: spec for tensor, spec in specs.items() if tensor not in odd}, notes


def check_formats(specs: dict[str, Spec], containers: Iterable[Container], facts: Facts) -> None:
    """Raise UnsupportedError for a container that cannot hold all of these."""
    for container in containers:
        for refusal in container.refusals(encoded(specs.values()), facts):
            raise UnsupportedError(refusal, where=f"format {container.name}")


def _misfits(specs: dict[str, Spec], containers: Sequence[Container], facts: Facts) -> dict[str, str]:
    """Name on disk -> why it does not fit."""
    out = {}
    for tensor, spec in specs.items():
        size = spec.grid.group_size
        if size is not None and spec.target.shape[1] % size:
            out[tensor] = f"group_size {size} does not divide their columns"
    for container in containers:
        coded = encoded(specs.values())
        if not container.refusals(coded, facts):
            continue
        for spec in coded:
            tensor = spec.target.tensor
            if tensor not in out and container.refusals([spec], facts):
                out[tensor] = f"format {container.name} cannot hold them"
    return out


def _note(what: str, found: Sequence[Target], of: Sequence[Target]) -> str:
    share = sum(t.numel for t in found) / max(1, sum(t.numel for t in of))
    names = ", ".join(t.name for t in found[:SHOWN])
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    count = "1 matrix" if len(found) == 1 else f"{len(found)} matrices"
    return f"{what}: {count}, {share:.2%} of the weights: {names}{more}"


def matches(target: Target, pattern: str) -> bool:
    """Whether a glob names the Target: in full, or from any dot on."""
    names = {target.name, target.tensor, *target.tie, *(t.removesuffix(".weight") for t in target.tie)}
    return any(fnmatch.fnmatchcase(n, p) for n in names for p in (pattern, f"*.{pattern}"))


def _check_groups(specs: dict[str, Spec]) -> None:
    for spec in specs.values():
        size, columns = spec.grid.group_size, spec.target.shape[1]
        if size is not None and columns % size:
            fits = [g for g in (128, 64, 32, 16) if all(s.target.shape[1] % g == 0 for s in specs.values())]
            offers = " or ".join([*(f"--group-size {g}" for g in fits[:2]), "--group-size channel"])
            raise UsageError(
                f"group_size {size} does not divide the {columns} input columns",
                where=spec.target.name,
                fix=f"use {offers}",
            )
