"""The model card says how each runtime loads the folder."""

from __future__ import annotations

from typing import Any

import pytest

from llmc.card import model_card

SIZES: dict[str, Any] = {"weight_bytes": 5, "original_bytes": 20, "bits_per_weight": 4.0, "model_bits_per_weight": 6.0}


def card(runtimes: dict[str, str]) -> str:
    return model_card("out", "user/base", "bitsandbytes", runtimes, {"method": "rtn"}, SIZES, [], None)


@pytest.mark.parametrize(
    ("runtimes", "commands"),
    [
        ({"vllm": "yes", "sglang": "no: 4 bits only"}, ["vllm serve out"]),
        ({"vllm": "yes, with --quantization bitsandbytes"}, ["vllm serve out --quantization bitsandbytes"]),
        (
            {"vllm": "yes, when it is new", "sglang": "yes"},
            ["vllm serve out", "python -m sglang.launch_server --model-path out"],
        ),
        ({"vllm": "no: an encoder", "sglang": "partly", "transformers": "yes"}, []),
    ],
)
def test_servers_that_load_it_have_their_command(runtimes: dict[str, str], commands: list[str]) -> None:
    text = card(runtimes)
    block = text.partition("```sh\n")[2].partition("\n```")[0]
    assert block.split("\n") == (commands or [""])
    assert all(f"| {runtime} | {says} |" in text for runtime, says in runtimes.items())
    assert "\n\n\n" not in text
