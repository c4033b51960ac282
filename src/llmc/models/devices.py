"""Where torch can compute here."""

from __future__ import annotations

from llmc.errors import UsageError


def require_device(device: str) -> None:
    """Raise UsageError for a device that is not there.

    Args:
        device: `cpu`, `cuda` or `cuda:N`.
    """
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise UsageError(f"unknown device {device!r}", where="--device", fix="use cpu, cuda or cuda:1")
    if device != "cpu" and device not in (here := gpus()):
        fix = f"use cpu or one of {', '.join(here)}" if here else "use cpu"
        raise UsageError(f"device {device!r} is not available here", where="--device", fix=fix)


def gpus() -> list[str]:
    """What the GPUs here may be called."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [*(["cuda"] if count else []), *(f"cuda:{i}" for i in range(count))]
