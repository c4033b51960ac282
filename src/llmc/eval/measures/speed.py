"""How fast a model loads and runs here, and the memory that takes: dense, as transformers computes it after decoding.

Timings are of this machine while it did what else it did: compare them only inside one run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmc.late import torch
from llmc.models.open import position_limit

if TYPE_CHECKING:
    from torch import Tensor

    from llmc.eval.subject import Subject

PREFILL_TOKENS = 512
DECODE_TOKENS = 32
REPEATS = 5


def start_peak(device: str) -> None:
    """Forget the highest memory use so far, where the system can."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak becomes what is in use now
    except OSError:
        return


def peak_memory(device: str) -> int | None:
    """Bytes of the GPU, or resident bytes of the process, at most since `start_peak`; None where it cannot be told."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def measure_speed(subject: Subject, peak: int | None) -> dict[str, Any]:
    """Medians of `REPEATS` runs, under their names in the report, and the `ranges` of these.

    Args:
        subject: opened.
        peak: bytes, from `peak_memory`.
    """
    model = subject.model
    limit = position_limit(model) or PREFILL_TOKENS + DECODE_TOKENS
    vocabulary = model.config.get_text_config().vocab_size
    tokens = (torch.arange(min(PREFILL_TOKENS, limit)) * 7919 % vocabulary)[None].to(model.device)
    decode = min(DECODE_TOKENS, limit - 2)
    with torch.inference_mode():
        prefill = _rates(lambda: model(input_ids=tokens, use_cache=False), tokens.shape[1], model.device)
        decoded = _rates(lambda: _decode(model, tokens[:, :1], decode), decode, model.device)
    seconds = subject.load_seconds
    return {
        "load_seconds": seconds,
        "load_mb_per_s": None if not seconds else subject.sizes.weight_bytes / 1e6 / seconds,
        "prefill_tokens_per_s": statistics.median(prefill),
        "decode_tokens_per_s": statistics.median(decoded),
        "peak_memory_bytes": peak,
        "ranges": {
            "prefill_tokens_per_s": [min(prefill), max(prefill)],
            "decode_tokens_per_s": [min(decoded), max(decoded)],
        },
    }


def _rates(work: Callable[[], Any], tokens: int, device: torch.device) -> list[float]:
    """Tokens per second of each repetition, after one that is not counted."""
    rates = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        rates.append(tokens / (time.perf_counter() - started))
    return rates[1:]


def _decode(model: Any, first: Tensor, tokens: int) -> None:
    """One token at a time, each from the keys and values of those before it."""
    from transformers import GenerationConfig

    make: Any = GenerationConfig
    settings = make(max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)
    model.generate(first, attention_mask=torch.ones_like(first), generation_config=settings)
