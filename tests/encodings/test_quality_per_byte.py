"""The benchmark against peers: what it counts, what it compares, and what it writes for llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def _row(line: str, name: str, weight: int, block: int, kl: list[float], embedding: int = 2048) -> Any:
    from quality_judging import Judgement, Row
    from quality_settings import OURS, Setting

    tool = OURS if line.startswith("llmc") else "peer"
    sizes = {"weight_bytes": weight, "block_bytes": block, "embedding_bytes": embedding, "cpu_s": 1.0}
    judged = Judgement(sum(kl) / 4, (0.0, 1.0), 9.0, (8.0, 10.0), 8.5, 0.9, (2.0, 2.0), tuple(kl))
    return Row(
        Setting(tool, line, name), {**sizes, "versions": {"x": "1"}, "notes": ""}, 1000, 1024, 1e-6, {"text": judged}
    )


def test_a_peer_is_compared_with_the_largest_of_ours_in_its_bytes() -> None:
    from quality_judging import pairs
    from quality_settings import LEADS

    small = _row(LEADS[0], "small", 90, 40, [0.2, 0.4])
    large = _row(LEADS[0], "large", 100, 50, [0.1, 0.1])
    beyond = _row(LEADS[0], "beyond", 101, 60, [0.0, 0.0])
    peer = _row("other", "a", 100, 45, [0.3, 0.5])
    tiny = _row("other", "b", 10, 5, [3.0, 3.0])
    found = list(pairs([small, large, beyond, peer, tiny], "weight_bytes"))
    assert [(p.peer.setting.name, p.ours.setting.name) for p in found] == [("a", "large")]
    assert found[0].differences["text"].value == pytest.approx((0.2 - 0.8) / 4)
    assert found[0].differences["text"].verdict == "below"
    (by_blocks,) = pairs([small, large, beyond, peer, tiny], "block_bytes")
    assert by_blocks.ours.setting.name == "small"


def test_blocks_are_compared_only_where_the_embedding_is_as_it_was() -> None:
    from quality_judging import pairs
    from quality_settings import LEADS

    rows = [_row(LEADS[0], "w4", 90, 40, [0.2, 0.2]), _row("other", "q", 99, 50, [0.3, 0.3], embedding=2047)]
    assert len(list(pairs(rows, "weight_bytes"))) == 1
    assert list(pairs(rows, "block_bytes")) == []


def test_other_windows_are_refused() -> None:
    from quality_judging import Judgement, pairs
    from quality_settings import LEADS

    mine, other = _row(LEADS[0], "w4", 9, 4, [0.2, 0.2]), _row("other", "a", 9, 4, [0.3, 0.3])
    judged = other.judgements["text"]
    other.judgements["text"] = Judgement(**{**vars(judged), "tokens": (2.0, 3.0)})
    with pytest.raises(ValueError, match="not judged on the same windows"):
        list(pairs([mine, other], "weight_bytes"))


def test_report_and_plot(tmp_path: Path) -> None:
    from quality_judging import Row
    from quality_settings import LEADS, Setting
    from quality_tables import plot, report

    failed = Row(Setting("peer", "broken", "w1"), {"failure": "it fell over"}, 1000, 1024)
    rows = [_row(LEADS[0], "w4", 90, 40, [0.2, 0.2]), _row("other", "a", 95, 45, [0.3, 0.5]), failed]
    settings = {"model": "m", "calibration": "c", "text": ["text"], "num_samples": 1, "sequence_length": 2}
    settings |= {"max_tokens": 3, "threads": 1, "tokens_sha256": "0" * 64}
    machine = {"processor": "p", "cores": 2}
    words = report({"machine": machine, "settings": settings, "absent": {"y": "no y"}}, rows)
    assert "| other a | 95 | 45 | 0.360 | 16.00 | 0.2 |" in words
    assert "| broken w1 | failed: it fell over |" in words
    assert "y is left out: no y." in words
    plot(rows, ["text"], tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    plot(rows, ["text"], tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text(encoding="utf-8") == drawn


def test_text_above_the_tables_stays(tmp_path: Path) -> None:
    from quality_per_byte import _page

    page = tmp_path / "page.md"
    page.write_text("# Title\n\nWords of a person.\n\n## Conditions\n\nold\n", encoding="utf-8")
    assert _page(page, "## Conditions\n\nnew\n") == "# Title\n\nWords of a person.\n\n## Conditions\n\nnew\n"


def test_settings_have_places_of_their_own() -> None:
    from quality_settings import OUR_SETTINGS, PEERS

    every = [*OUR_SETTINGS, *(setting for peer in PEERS.values() for setting in peer.settings)]
    assert len({setting.slug for setting in every}) == len(every)
    assert all(setting.tool == tool for tool, peer in PEERS.items() for setting in peer.settings)
    assert all((BENCHMARKS / "peers" / peer.driver).is_file() for peer in PEERS.values())


def test_bytes_of_blocks_and_embedding(tmp_path: Path) -> None:
    from peers.dense import safetensors_sizes

    tensors = {
        "model.embed_tokens.weight": torch.zeros(8, 4, dtype=torch.bfloat16),
        "model.norm.weight": torch.zeros(4),
        "model.layers.0.input_layernorm.weight": torch.zeros(4),
        "model.layers.0.self_attn.q_proj.weight_packed": torch.zeros(4, 1, dtype=torch.int32),
        "model.layers.0.self_attn.q_proj.weight_scale": torch.zeros(4, 1, dtype=torch.bfloat16),
        "model.layers.0.mlp.down_proj.qweight": torch.zeros(3, dtype=torch.int32),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").stat().st_size
    assert safetensors_sizes(tmp_path) == {"weight_bytes": whole, "block_bytes": 16 + 8 + 12, "embedding_bytes": 64}


def test_dense_folder_has_every_tensor_of_the_original(tmp_path: Path) -> None:
    from peers.dense import write

    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}", encoding="utf-8")
    save_file({"a": torch.ones(2, 3, dtype=torch.bfloat16), "b": torch.ones(4)}, model / "model.safetensors")
    job = {name: str(tmp_path / name) for name in ("model", "dense", "forward", "result")}
    write(job, {"a": torch.full((2, 3), 0.1)}, torch.zeros(1, 5), {"weight_bytes": 7}, ("torch", "no-such-package"))
    written = load_file(tmp_path / "dense" / "model.safetensors")
    assert torch.equal(written["a"], torch.full((2, 3), 0.1))
    assert torch.equal(written["b"], torch.ones(4))
    result = json.loads((tmp_path / "result").read_text(encoding="utf-8"))
    assert result["weight_bytes"] == 7
    assert list(result["versions"]) == ["torch"]
    for wrong in ({"c": torch.ones(2)}, {"a": torch.ones(3, 2)}):
        with pytest.raises(ValueError, match="the original has no"):
            write(job, wrong, torch.zeros(1, 5), {}, ())


def test_only_what_is_unchanged_gets_its_dtype_again(tmp_path: Path) -> None:
    from peers.dense import store_as_original

    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    out.mkdir()
    before = {"kept": torch.randn(5).bfloat16(), "changed": torch.randn(5).bfloat16()}
    save_file(before, model / "model.safetensors")
    after = {"kept": before["kept"].float(), "changed": before["changed"].float() + 1, "new": torch.ones(2)}
    save_file(after, out / "model.safetensors")
    store_as_original(out, model)
    found = load_file(out / "model.safetensors")
    assert found["kept"].dtype == torch.bfloat16
    assert torch.equal(found["kept"], before["kept"])
    assert torch.equal(found["changed"], after["changed"])
    assert torch.equal(found["new"], after["new"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("lm_head.weight", "output.weight"),
        ("model.layers.11.self_attn.o_proj.weight", "blk.11.attn_output.weight"),
        ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight"),
        ("model.layers.3.mlp.down_proj.weight", "blk.3.ffn_down.weight"),
    ],
)
def test_names_in_gguf(name: str, expected: str) -> None:
    from peers.llama_cpp_model import gguf_name

    assert gguf_name(name) == expected


def test_rotated_neighbours_score_as_rotated_halves() -> None:
    """Attention scores of both conventions, each by its own definition."""
    from peers.llama_cpp_model import rotary_order

    heads, width, places = 3, 8, 5
    query, key = torch.randn(2, places, heads, width, dtype=torch.float64)
    angle = torch.arange(places)[:, None] * 10000.0 ** (-torch.arange(0, width, 2) / width)  # [places, width / 2]
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]

    def halves(x: torch.Tensor) -> torch.Tensor:
        a, b = x[..., : width // 2], x[..., width // 2 :]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def neighbours(x: torch.Tensor) -> torch.Tensor:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)

    order = rotary_order(heads * width, heads)
    moved = [x.flatten(1)[:, order].view(places, heads, width) for x in (query, key)]
    expected = torch.einsum("phd,qhd->hpq", halves(query), halves(key))
    torch.testing.assert_close(torch.einsum("phd,qhd->hpq", *map(neighbours, moved)), expected)
    assert not torch.allclose(torch.einsum("phd,qhd->hpq", neighbours(query), neighbours(key)), expected)


def test_importance_is_the_mean_square_of_each_column() -> None:
    from peers.llama_cpp_model import importance

    table, rows = torch.randn(7, 4), [[1, 2, 3], [4, 5]]
    model = _OneMatrix(table)
    found = importance(model, rows)
    expected = torch.stack([table[i] ** 2 for row in rows for i in row]).mean(0)
    assert list(found) == ["blk.0.attn_output.weight"]
    torch.testing.assert_close(torch.from_numpy(found["blk.0.attn_output.weight"]), expected)


class _OneMatrix:
    """A model of one block matrix, under the name it has in a Llama."""

    def __init__(self, table: torch.Tensor) -> None:
        self.table, self.matrix = table, torch.nn.Linear(4, 4, bias=False)

    def named_modules(self) -> list[tuple[str, torch.nn.Module]]:
        return [("model.layers.0.self_attn.o_proj", self.matrix), ("lm_head", torch.nn.Linear(4, 7))]

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        return self.matrix(self.table[ids])
