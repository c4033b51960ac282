"""What a container's folder will hold, known before it is written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from llmc.artifacts.layout import Shapes, WeightFiles, arrange, coded_files
from llmc.files.header import nbytes
from llmc.formats.container import Container, Facts, Spec, encoded
from llmc.formats.dense import holder
from llmc.late import torch
from llmc.models.checkpoint import Checkpoint
from llmc.models.skeleton import initializes_by_name


def target_bits(container: Container, specs: Sequence[Spec]) -> float:
    """Stored bits of the Targets, params and padding included, per element."""
    stored = sum(nbytes(*shape) for s in specs for shape in container.layout(s).values())
    return 8 * stored / max(sum(s.target.numel for s in specs), 1)


def model_facts(checkpoint: Checkpoint, specs: dict[str, Spec]) -> Facts:
    """What containers may ask about a model of which `specs` (by name on disk) are encoded, but for values."""
    specs = {spec.target.tensor: spec for spec in encoded(specs.values())}
    raw = set()
    for group in checkpoint.skeleton.groups:
        for name, _ in group.sources:
            entry = checkpoint.entries[name]
            module = checkpoint.skeleton.modules.get(group.name.rpartition(".")[0])
            if name in specs or len(entry.shape) != 2 or not name.endswith(".weight"):
                continue
            if not isinstance(module, torch.nn.Embedding):
                raw |= {name.removesuffix(".weight"), group.name.removesuffix(".weight")}
    raw |= {name.removesuffix(".weight") for name in checkpoint.skeleton.extra if _is_matrix(checkpoint, name)}
    raw |= checkpoint.skeleton.tied_heads
    fused: dict[str, list[str]] = defaultdict(list)
    for target in checkpoint.targets:
        if target.fuse:
            fused[target.fuse].append(target.name)
    groups = tuple(tuple(names) for names in fused.values())
    moe = any(s.target.kind == "expert" for s in specs.values())
    keep = tuple(sorted(getattr(checkpoint.model, "_keep_in_fp32_modules", None) or ()))
    return Facts(checkpoint.dtype, tuple(sorted(raw)), groups, moe, initializes_by_name(checkpoint.model), keep)


def _is_matrix(checkpoint: Checkpoint, name: str) -> bool:
    return name.endswith(".weight") and len(checkpoint.entries[name].shape) == 2


def weight_files(checkpoint: Checkpoint, container: Container, specs: dict[str, Spec]) -> WeightFiles:
    """The weight files of a container's folder; of coded tensors a plan."""
    files = arrange(stored_shapes(checkpoint, container, specs))
    return coded_files(files) if container.coded else files


def stored_shapes(checkpoint: Checkpoint, container: Container, specs: dict[str, Spec]) -> Shapes:
    """Dtype and shape of every tensor that a container's folder holds, by name."""
    out: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name in checkpoint.stored:
        if name in specs:
            out.update(holder(container, specs[name]).layout(specs[name]))
        else:
            entry = checkpoint.entries[name]
            out[name] = (entry.dtype, entry.shape)
    return out
