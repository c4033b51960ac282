"""Vectors of texts against one forward pass for each, and folders that are no encoders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import build, byte_tokenizer

import llmc
from llmc.errors import LlmcError
from llmc.eval.measures import embeddings as subject
from llmc.eval.measures.embeddings import embed, open_encoder
from llmc.models.pooling import pooling_of

TEXTS = ["a lamp", "under the old bridge the river keeps to stone", "x", "walks and sings", "the lamp is bright"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("bert", tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture
def copy(bert: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bert, tmp_path / "copy"))


def hidden(folder: Path, text: str) -> torch.Tensor:
    """Of the model as transformers opens it, one text at a time, `[tokens, hidden]`."""
    from transformers import AutoModelForMaskedLM

    model: Any = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        ids = torch.tensor([list(byte_tokenizer()(text)["input_ids"])])
        return model.eval()(ids, output_hidden_states=True).hidden_states[-1][0]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors_are_those_of_one_text_at_a_time(bert: Path, pooling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "BATCH_TOKENS", 50)
    seen: list[tuple[str, float, float]] = []
    model, tokenizer = open_encoder(bert)
    found = embed(model, tokenizer, TEXTS, pooling=pooling, name="m", progress=lambda *a: seen.append(a))
    assert found.truncated == 0 and found.vectors.dtype == np.float64
    for text, vector in zip(TEXTS, found.vectors, strict=True):
        states = hidden(bert, text)
        expected = states[0] if pooling == "cls" else states.mean(0)
        assert vector == pytest.approx(expected.numpy(), abs=2e-5)
    assert seen[0] == ("embed: m", 1, 5) and seen[-1] == ("embed: m", 5, 5)


def test_long_texts_are_cut_and_counted(bert: Path) -> None:
    model, tokenizer = open_encoder(bert)
    text = "the quick brown fox " * 10
    found = embed(model, tokenizer, [text, "short", text[:128]])
    assert found.truncated == 1
    assert found.vectors[0] == pytest.approx(found.vectors[2], abs=1e-6)


def test_the_end_mark_stays_where_a_text_is_cut() -> None:
    tokenizer = SimpleNamespace(all_special_ids=[0, 9])
    assert subject._cut(tokenizer, [0, 1, 2, 3, 9], 4) == [0, 1, 2, 9]
    assert subject._cut(tokenizer, [0, 1, 2, 3, 4], 4) == [0, 1, 2, 3]
    assert subject._cut(tokenizer, [0, 1], 4) == [0, 1]


def test_the_first_positions_of_roberta_are_for_padding() -> None:
    import transformers

    sizes: dict[str, Any] = {"vocab_size": 256, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    make: Any = transformers.RobertaConfig
    config = make(**sizes, num_attention_heads=2, max_position_embeddings=20, pad_token_id=1)
    model = transformers.RobertaModel(config).eval()
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(1)
    found = embed(model, tokenizer, ["a" * 18, "a" * 19, "b"])
    assert found.truncated == 1 and found.vectors[0] == pytest.approx(found.vectors[1])
    with torch.no_grad():
        alone = model(torch.tensor([tokenizer("b")["input_ids"]])).last_hidden_state[0, 0]
    assert found.vectors[2] == pytest.approx(alone.numpy(), abs=1e-5)
    tokenizer.model_max_length = 5
    assert embed(model, tokenizer, ["a" * 18, "a" * 19, "b"]).truncated == 2


@pytest.mark.parametrize("how", ["compressed-tensors", "gptq", "lossless"])
def test_compressed_folders_open_with_their_values(bert: Path, tmp_path: Path, how: str) -> None:
    if how == "lossless":
        llmc.lossless(bert, tmp_path / "out")
        dense = bert
    else:
        llmc.quantize(str(bert), tmp_path / "out", method="rtn", bits=4, group_size=32, formats=[how])
        dense = tmp_path / "dense"
        llmc.export(tmp_path / "out", dense, format="dense")
    vectors = {}
    for folder in (tmp_path / "out", dense):
        model, tokenizer = open_encoder(folder)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        vectors[folder] = embed(model, tokenizer, TEXTS).vectors
    one, other = vectors.values()
    assert one == pytest.approx(other, abs=1e-4)
    assert one[0] == pytest.approx(hidden(dense, TEXTS[0]).mean(0).numpy(), abs=1e-4)


def test_weights_without_a_pooler_and_weights_without_a_layer(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    plain = {key.removeprefix("bert."): value for key, value in weights.items() if key.startswith("bert.")}
    assert not any("pooler" in key for key in plain)
    save_file(plain, copy / "model.safetensors", metadata={"format": "pt"})
    model, tokenizer = open_encoder(copy)
    assert embed(model, tokenizer, TEXTS).vectors.shape == (5, 64)
    del plain["encoder.layer.1.output.dense.weight"]
    save_file(plain, copy / "model.safetensors", metadata={"format": "pt"})
    assert refusal(copy) == (
        "copy: its weights are not those its config.json describes (missing: encoder.layer.1.output.dense.weight); "
        "random numbers would stand in for them"
    )


def refusal(folder: Path) -> str:
    with pytest.raises(LlmcError) as caught:
        open_encoder(folder)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_an_encoder_decoder_and_code_are_refused(copy: Path, tmp_path: Path) -> None:
    assert refusal(build("t5", tmp_path / "t5")) == (
        "t5: 't5' is an encoder-decoder model, which has no vector for a text; measure it on pairs of source and target"
    )
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "x.Y"}, "model_type": "x"}))
    assert refusal(copy).startswith("copy: config.json asks to run code that comes with the model (auto_map)")


MEAN = {"word_embedding_dimension": 64, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


@pytest.mark.parametrize(
    ("settings", "modules", "found"),
    [
        (None, None, None),
        (MEAN, None, "mean"),
        (MEAN, ["Transformer", "Pooling", "Normalize"], "mean"),
        ({**MEAN, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ["Transformer"], "cls"),
        ({"pooling_mode": "cls"}, None, "cls"),
    ],
)
def test_pooling_of_a_folder(tmp_path: Path, settings: Any, modules: list[str] | None, found: str | None) -> None:
    written(tmp_path, settings, modules)
    assert pooling_of(tmp_path) == found


def written(folder: Path, settings: Any, modules: list[str] | None) -> None:
    (folder / "1_Pooling").mkdir()
    if settings is not None:
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    if modules is not None:
        listed = [{"idx": i, "type": f"sentence_transformers.models.{name}"} for i, name in enumerate(modules)]
        (folder / "modules.json").write_text(json.dumps(listed))


READ = "the mean and the first token are read"


@pytest.mark.parametrize(
    ("settings", "modules", "line"),
    [
        (
            {**MEAN, "pooling_mode_cls_token": True},
            None,
            f"m: its vectors are pooled by cls_token and mean_tokens; {READ}",
        ),
        ({"pooling_mode_lasttoken": True}, None, f"m: its vectors are pooled by lasttoken; {READ}"),
        ({}, None, f"m: its vectors are pooled by nothing; {READ}"),
        (MEAN, ["Transformer", "Pooling", "Dense"], "m: its vectors go through a module Dense, which is not read here"),
        ([], None, "1_Pooling/config.json: holds no dict"),
    ],
)
def test_poolings_that_are_not_read(tmp_path: Path, settings: Any, modules: list[str] | None, line: str) -> None:
    (tmp_path / "m").mkdir()
    written(tmp_path / "m", settings, modules)
    with pytest.raises(LlmcError) as caught:
        pooling_of(tmp_path / "m")
    assert str(caught.value) == line
    assert caught.value.exit_code == 2


def test_texts_that_have_no_vector(bert: Path) -> None:
    model, tokenizer = open_encoder(bert)
    for texts, line in ((["a", ""], "m: text 2 has no token; leave empty texts out"), ([], "m: no texts to embed")):
        with pytest.raises(LlmcError) as caught:
            embed(model, tokenizer, texts, name="m")
        assert str(caught.value) == line
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[tokenizer("q")["input_ids"][0]] = float("nan")
    with pytest.raises(LlmcError) as caught:
        embed(model, tokenizer, ["a", "b", "qq"], name="m")
    assert str(caught.value) == (
        "m: its vector of text 3 is not finite, or zero; "
        "look for NaN or Inf with `llmc inspect`, or evaluate with dtype float32"
    )
