"""A head run alone gives the logits of the whole model, for every family of architectures, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import build
from torch import Tensor, nn

from llmc.eval.measures.halves import build_head, halve

SMALL: dict[str, Any] = {
    **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 160, "pad_token_id": 0, "eos_token_id": 0},
}
AFTER_THE_HEAD: dict[str, dict[str, Any]] = {
    "Gemma2": {"final_logit_softcapping": 5.0},
    "Cohere": {"logit_scale": 0.3},
    "Granite": {"logits_scaling": 3.0},
    "Llama": {"tie_word_embeddings": True},
    "Mixtral": {"num_local_experts": 4},
}
"""Families that do something with logits, or return something else than usual."""


def model_of(family: str, dtype: torch.dtype) -> Any:
    import transformers

    torch.manual_seed(7)
    config = getattr(transformers, f"{family}Config")(**SMALL, **AFTER_THE_HEAD[family])
    config.architectures = [f"{family}ForCausalLM"]
    return getattr(transformers, f"{family}ForCausalLM")(config).to(dtype).eval()


def whole(model: Any, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=tokens).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", AFTER_THE_HEAD)
def test_logits_of_the_halves_are_those_of_the_whole(family: str, dtype: torch.dtype) -> None:
    model = model_of(family, dtype)
    halves = halve(model)
    assert halves.head is not None
    tokens = torch.randint(160, (3, 20), generator=torch.Generator().manual_seed(1))
    states, logits = halves.states(tokens), whole(model, tokens)
    assert states.shape == (3, 20, 64) and states.dtype == dtype
    again = build_head(model.config, halves.head.plan, halves.head.parameters, "again")
    for i in range(3):
        torch.testing.assert_close(halves.logits(states[i]), logits[i], rtol=1e-5, atol=1e-5)
        assert torch.equal(again(states[i]), halves.logits(states[i]))


@pytest.mark.parametrize("name", ["gpt2", "opt", "phi", "gpt-neox"])
def test_other_bodies(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    from transformers import AutoModelForCausalLM

    folder = build(name, tmp_path_factory.mktemp(name))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    halves = halve(model)
    assert halves.head is not None
    tokens = torch.arange(12)[None]
    torch.testing.assert_close(halves.logits(halves.states(tokens)[0]), whole(model, tokens)[0], rtol=1e-5, atol=1e-5)


def test_a_model_that_does_more_than_a_stand_in_can_stays_whole() -> None:
    model = model_of("Llama", torch.float32)
    forward = model.forward

    def twice(**inputs: Any) -> Any:
        out = forward(**inputs)
        out.logits = out.logits + 1e-3 * float(model.model.norm.weight.sum())
        return out

    model.forward = twice
    halves = halve(model)
    assert halves.head is None
    tokens = torch.arange(9)[None]
    assert torch.equal(halves.logits(halves.states(tokens)[0]), whole(model, tokens)[0])


def test_the_body_alone_runs_without_the_head() -> None:
    model = model_of("Llama", torch.float32)
    halves = halve(model)
    calls: list[nn.Module] = []
    model.lm_head.register_forward_hook(lambda module, *_: calls.append(module))
    halves.states(torch.arange(5)[None])
    assert not calls
