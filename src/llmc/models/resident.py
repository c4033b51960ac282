"""A model whose weights stay coded in memory: each block is decoded when it runs and given up after it.

The arithmetic is transformers' own on the same bits, so outputs are those of the dense model. Between its uses a
parameter is one NaN in the shape of the whole: it has device, dtype and shape, and no memory.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmc.errors import UsageError
from llmc.formats.coded_files import is_coded
from llmc.late import nn, torch
from llmc.models.checkpoint import Checkpoint, assign
from llmc.models.skeleton import direct_parameters

SMALL = 1 << 20  # bytes of a block, or of a module outside of them, that is decoded once and kept


@dataclass(frozen=True)
class Memory:
    """Bytes of weights: as they are held, as the dense model would hold them, and the most that is decoded at once."""

    compressed: int
    dense: int
    decoded: int

    def to_json(self) -> dict[str, int]:
        return asdict(self)


def resident_model(folder: Path, dtype: torch.dtype | None, device: str) -> Any:
    """The model in `folder` with its weights coded in memory; see `llmc.load`.

    Raises:
        UsageError: the folder is not one that `llmc lossless` wrote.
        CheckpointError: it cannot be read, or is damaged.
    """
    if not is_coded(folder):
        raise UsageError("its weights are not coded", where=folder.name, fix="write it with llmc lossless first")
    before = torch.get_default_dtype()
    try:  # buffers are made in the default dtype, as from_pretrained does it
        torch.set_default_dtype(dtype or Checkpoint(folder, encoded=True).config_dtype)
        checkpoint = Checkpoint(folder, encoded=True)
    finally:
        torch.set_default_dtype(before)
    return _Residence(checkpoint, dtype or checkpoint.config_dtype, device).model


class _Residence:
    """What the hooks of a resident model share."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: str) -> None:
        self.checkpoint, self.dtype, self.device = checkpoint, dtype, device
        self.model = checkpoint.model
        held = checkpoint.coded.hold() if checkpoint.coded else 0
        for name, buffer in list(self.model.named_buffers()):
            if buffer.device.type != "meta":
                assign(self.model, name, buffer.to(device))
        decoded = [self._attend(module, keys) for module, keys in self._units()]
        self._fill([key for key, _ in self.model.named_buffers() if key in checkpoint.skeleton.group_of])
        total = sum(entry.numel for entry in checkpoint.entries.values()) * dtype.itemsize
        self.model.llmc_memory = Memory(held, total, max(decoded, default=0))
        _add_generation_config(self.model, checkpoint.folder)

    def _units(self) -> list[tuple[nn.Module, list[str]]]:
        """Blocks, and modules outside of them, with the paths of their parameters."""
        blocks = self.checkpoint.skeleton.blocks
        modules = self.checkpoint.skeleton.modules
        units = [(modules[b], [f"{b}.{name}" for name, _ in modules[b].named_parameters()]) for b in blocks]
        for path, module, keys in direct_parameters(self.model):
            if not any(path == b or path.startswith(b + ".") for b in blocks):
                units.append((module, keys))
        return units

    def _attend(self, module: nn.Module, keys: list[str]) -> int:
        """Hang the hooks of one unit, or decode it for good; the bytes that it takes when it is decoded."""
        size = sum(self.model.get_parameter(key).numel() for key in keys) * self.dtype.itemsize
        if size < SMALL and not any(key in self.checkpoint.skeleton.ties for key in keys):
            self._fill(keys)
            return 0
        self._give_up(keys)
        module.register_forward_pre_hook(lambda *_: self._fill(keys))
        module.register_forward_hook(lambda *_: self._give_up(keys), always_call=True)
        return size

    def _fill(self, keys: list[str]) -> None:
        self.checkpoint.fill(keys, self.dtype, self.device, lambda name: None)

    def _give_up(self, keys: list[str]) -> None:
        for key in keys:
            for path in self.checkpoint.skeleton.ties.get(key, (key,)):
                shape = self.model.get_parameter(path).shape
                nothing = torch.full((1,) * len(shape), torch.nan, dtype=self.dtype, device=self.device)
                assign(self.model, path, nothing.expand(shape))


def _add_generation_config(model: Any, folder: Path) -> None:
    from transformers import GenerationConfig

    if (folder / "generation_config.json").is_file() and hasattr(model, "generation_config"):
        model.generation_config = GenerationConfig.from_pretrained(str(folder), local_files_only=True)
