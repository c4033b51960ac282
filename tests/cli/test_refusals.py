"""Refusals that help: what they advise works, and they do not refuse what only one matrix is to blame for."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from spoiled import change_tensors

import llmc
from llmc.cli import execute
from llmc.cli.failures import understood
from llmc.errors import CheckpointError, LlmcError, UnsupportedError, UsageError
from llmc.files.safetensors import read_folder
from llmc.models.hub import folder_of_file
from llmc.registry import nearest, suggest

ROUND: dict[str, Any] = {"method": "rtn", "group_size": 32}
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: object) -> tuple[int, str]:
        capsys.readouterr()
        code = execute([str(word) for word in words])
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        return code, lines[0].removeprefix("error: ") if lines else ""

    return call


def failure(kind: type[LlmcError], call: Callable[..., Any], *args: Any, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        call(*args, **options)
    return str(caught.value)


# Names


@pytest.mark.parametrize(
    ("name", "known", "found"),
    [
        ("w4a16", ["nf4", "w4a16-g128", "w8a16"], ["w4a16-g128"]),
        ("w", ["w3", "w4a16-g128", "nf4"], ["w3", "w4a16-g128"]),
        ("w5a16", ["w4a16-g128", "w8a16"], []),
        ("symmetric", ["asymmetric"], []),
        ("--symmetric", ["--asymmetric"], []),
        ("no-cache", ["cache"], []),
        ("gtpq", ["gptq", "rtn"], ["gptq"]),
        ("", ["a", "b"], []),
    ],
)
def test_what_is_offered_means_the_same(name: str, known: list[str], found: list[str]) -> None:
    assert nearest(name, known) == found


def test_no_offer_is_a_list() -> None:
    assert suggest("w5a16", ["w4a16-g128", "w8a16"]) == "choose one of: w4a16-g128, w8a16"
    assert suggest("w", ["w3", "w8a16"]) == "did you mean 'w3' or 'w8a16'?"


def test_the_beginning_of_a_recipe_and_an_opposite(run: Run) -> None:
    assert run("run", "w4a16", "-o", "x") == (2, "unknown recipe 'w4a16'; did you mean 'w4a16-g128'?")
    line = "llmc quantize: No such option: --symmetric; see llmc quantize --help"
    assert run("quantize", "m", "-o", "x", "--symmetric") == (2, line)


# Models


def test_what_is_no_model(run: Run, tmp_path: Path) -> None:
    fix = "give a model folder or a Hub id like user/name"
    assert run("quantize", "nosuchdir", "-o", tmp_path / "out") == (2, f"nosuchdir: no such folder; {fix}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.Q4_K_M.gguf", "pytorch_model.bin", "model.pt", "other.safetensors"])
def test_weights_that_are_not_those_that_would_be_read(name: str, run: Run, tmp_path: Path) -> None:
    model = tiny_models.build("llama", tmp_path / "model")
    (model / name).write_bytes(b"GGUF")
    code, line = run("quantize", model / name, "-o", tmp_path / "out", "--group-size", "32")
    what = "a GGUF file" if name.endswith("gguf") else "a file of weights"
    fix = f"give the folder {model}, whose model.safetensors is read"
    assert (code, line) == (2, f"{model / name}: {what}, and llmc reads models from folders of safetensors; {fix}")
    assert not (tmp_path / "out").exists()
    assert run("quantize", fix.split()[3].rstrip(","), "-o", tmp_path / "out", "--group-size", "32")[0] == 0
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / name).write_bytes(b"GGUF")
    assert failure(CheckpointError, folder_of_file, tmp_path / "alone" / name).endswith(
        "llmc reads models from folders of safetensors; give a folder with its safetensors"
    )


def test_files_that_name_their_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-00001.safetensors"}}))
    for name in ("config.json", "model.safetensors", "model-00001.safetensors"):
        (tmp_path / name).touch()
        assert folder_of_file(tmp_path / name) == tmp_path


def test_a_device_that_is_not_here(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = tiny_models.build("llama", tmp_path / "model")
    line = "--device: device 'cuda' is not available here; use cpu"
    out = tmp_path / "out"
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"{{model: {model}, stages: [{{method: rtn, group_size: 32}}], device: cuda}}")
    commands = [
        ["plan", model, "--group-size", "32", "--device", "cuda"],
        ["quantize", model, "-o", out, "--group-size", "32", "--device", "cuda"],
        ["run", recipe, "-o", out],
        ["run", recipe, "-o", out, "--dry-run"],
        ["eval", model, "--text", "tiny:evaluation", "--device", "cuda"],
        ["compare", model, "--against", model, "--text", "tiny:evaluation", "--device", "cuda"],
    ]
    for command in commands:
        assert run(*command) == (2, line), command
    assert not out.exists() and not list(tmp_path.glob("*partial*"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    line = "--device: device 'cuda:7' is not available here; use cpu or one of cuda, cuda:0, cuda:1"
    assert run("plan", model, "--group-size", "32", "--device", "cuda:7") == (2, line)
    assert run("plan", model, "--group-size", "32", "--device", "cuda:1")[0] == 0


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            ModuleNotFoundError("No module named 'bitsandbytes'", name="bitsandbytes"),
            "it needs bitsandbytes, which is not installed; pip install 'llmc-compression[readers]'",
        ),
        (
            ModuleNotFoundError("No module named 'timm.layers'", name="timm.layers"),
            "it needs timm, which is not installed; pip install timm",
        ),
        (
            ImportError("Using `x` requires accelerate\nand more"),
            "Using `x` requires accelerate; install what it asks for, as in: pip install llmc-compression",
        ),
    ],
)
def test_a_missing_package_is_one_line(error: ImportError, line: str) -> None:
    found = understood(error)
    assert (type(found), str(found)) == (UnsupportedError, line)
    assert type(understood(ImportError("x", name="llmc.nothing"))) is not UnsupportedError


# Matrices that do not fit


def odd(folder: Path, width: int = 100) -> Path:
    """A vision tower whose width no group size divides, before a regular decoder."""
    text = {**tiny_models.DECODER, "head_dim": 16}
    vision = {"hidden_size": 64, "intermediate_size": width, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision |= {"image_size": 16, "patch_size": 4}
    tokens: dict[str, Any] = {"image_token_index": 250, "boi_token_index": 251, "eoi_token_index": 252}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **tokens)
    torch.manual_seed(0)
    model: Any = transformers.Gemma3ForConditionalGeneration(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def test_one_odd_matrix_does_not_stop_a_model(tmp_path: Path, run: Run) -> None:
    model, out = odd(tmp_path / "model"), tmp_path / "out"
    plan = llmc.plan(str(model), **ROUND)
    result = llmc.quantize(str(model), out, **ROUND)
    (note,) = [n for n in result.notes if "group_size" in n]
    assert note.startswith("kept as they are: group_size 32 does not divide their columns: 2 matrices, ")
    assert note in plan.notes and note in str(plan.tables()) and note in plan.to_json()["notes"]
    assert (
        note in json.loads((out / "llmc.json").read_text())["notes"] and "2 matrices" in (out / "README.md").read_text()
    )
    assert plan.files == {"model.safetensors": (out / "model.safetensors").stat().st_size}
    assert llmc.verify(out, against=model).ok
    kept = [n for n in read_folder(out) if "vision_tower.encoder" in n and n.endswith("fc2.weight")]
    ignored = json.loads((out / "config.json").read_text())["quantization_config"]["ignore"]
    assert len(kept) == 2 and {n.removesuffix(".weight") for n in kept} <= {*ignored}
    code, line = run("quantize", model, "-o", tmp_path / "strict", "--group-size", "32", "--strict")
    assert code == 2 and "group_size 32 does not divide the 100 input columns; use --group-size channel" in line
    assert not (tmp_path / "strict").exists()
    assert run("quantize", model, "-o", tmp_path / "strict", *line.split("; use ")[1].split(), "--strict")[0] == 0


def test_one_that_was_asked_for_has_to_fit(tmp_path: Path) -> None:
    model = odd(tmp_path / "model")
    (name,) = [n.removesuffix(".weight") for n in read_folder(model) if "vision" in n and "0.mlp.fc2.weight" in n]
    line = failure(UsageError, llmc.plan, str(model), **ROUND, targets=["*.q_proj", name])
    assert line == f"{name}: group_size 32 does not divide the 100 input columns; use --group-size channel"
    assert llmc.plan(str(model), **ROUND, targets=["*_proj", "*.fc2"]).targets > 8


def test_most_of_a_model_is_not_left_out(tmp_path: Path) -> None:
    model = tiny_models.build("gpt2", tmp_path / "model")
    line = failure(UnsupportedError, llmc.plan, str(model), **ROUND)
    assert line.startswith("format compressed-tensors: compressed-tensors readers load Linear modules only")
    line = failure(UsageError, llmc.plan, str(model), method="rtn", group_size=128)
    assert line.endswith("; use --group-size 64 or --group-size 32 or --group-size channel")


def test_gates_and_routers_stay_as_they_are(tmp_path: Path) -> None:
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    sizes |= {"shared_expert_intermediate_size": 64, "decoder_sparse_step": 1}
    torch.manual_seed(0)
    config = transformers.Qwen2MoeConfig(**{**tiny_models.DECODER, **sizes})
    made: Any = transformers.Qwen2MoeForCausalLM(config)
    made.to(torch.bfloat16).save_pretrained(tmp_path / "model")
    result = llmc.quantize(str(tmp_path / "model"), tmp_path / "out", **ROUND)
    (note,) = result.notes
    assert note.startswith("gates and routers stay as they are: 2 matrices, ") and "shared_expert_gate" in note
    ignored = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["ignore"]
    assert "model.layers.0.mlp.shared_expert_gate" in ignored
    named = llmc.plan(str(tmp_path / "model"), method="rtn", group_size=32, targets=["*.shared_expert_gate"])
    assert named.targets == 2 and named.notes == ()


# Tensors that a model has no place for


def extra(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    model = tiny_models.build("llama", folder)
    change_tensors(model, lambda found: found.update(tensors))
    return model


def test_what_the_model_has_no_place_for_is_kept(tmp_path: Path) -> None:
    model = extra(
        tmp_path / "model", {"mtp.fc.weight": torch.ones(8, 8, dtype=torch.bfloat16), "mtp.norm": torch.ones(8)}
    )
    result = llmc.quantize(str(model), tmp_path / "out", **ROUND)
    what = "kept as it is, though LlamaForCausalLM of transformers has no place for it"
    assert result.notes == (f"{what}: mtp.fc.weight and 1 more",)
    assert {"mtp.fc.weight", "mtp.norm"} <= {*read_folder(tmp_path / "out")}
    assert "mtp.fc" in json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["ignore"]
    assert llmc.verify(tmp_path / "out", against=model).ok


def test_scales_of_a_quantization_that_is_gone(tmp_path: Path) -> None:
    model = extra(tmp_path / "model", {"model.layers.0.self_attn.k_scale": torch.ones(1)})
    result = llmc.quantize(str(model), tmp_path / "out", **ROUND)
    what = "left out, since LlamaForCausalLM has no use for scales of a quantization that is gone"
    assert result.notes == (f"{what}: model.layers.0.self_attn.k_scale",)
    assert "model.layers.0.self_attn.k_scale" not in read_folder(tmp_path / "out")
    assert llmc.verify(tmp_path / "out", against=model).ok


@pytest.mark.parametrize(
    "name", ["model.layers.2.mlp.up_proj.weight", "model.layers.0.mlp.extra.qweight", "model.layers.0.mlp.extra.scales"]
)
def test_what_shows_that_config_and_weights_do_not_belong_together(name: str, tmp_path: Path) -> None:
    model = extra(tmp_path / "model", {name: torch.ones(8, 8)})
    assert failure(CheckpointError, llmc.plan, str(model), **ROUND) == (
        f"model: tensor {name} has no place in LlamaForCausalLM (1 such); "
        "check that config.json belongs to these weights"
    )


def test_weights_most_of_which_have_no_place(tmp_path: Path) -> None:
    model = extra(tmp_path / "model", {"another.model.weight": torch.ones(1024, 1024)})
    assert "has no place in LlamaForCausalLM" in failure(CheckpointError, llmc.plan, str(model), **ROUND)


# Advice


def test_windows_follow_the_context(run: Run, tmp_path: Path) -> None:
    report = llmc.evaluate("tiny", text="tiny:evaluation", context=64, max_tokens=300)
    assert (report.context, report.stride) == (64, 64)
    recipe = tmp_path / "r.yaml"
    measured = "{text: 'tiny:evaluation', context: 64, max_tokens: 300}"
    recipe.write_text(f"{{model: tiny, stages: [{{method: rtn, group_size: 32}}], eval: {measured}}}")
    result: Any = llmc.run(str(recipe), tmp_path / "out")
    (report,) = result.evaluation.values()
    assert (report.context, report.stride) == (64, 64)


def test_memory_advice_fits_the_run(run: Run, tmp_path: Path) -> None:
    model = tiny_models.build("llama", tmp_path / "model")
    rtn = ["quantize", model, "-o", tmp_path / "out", "--group-size", "32", "--max-memory", "100MB"]
    assert run(*rtn)[1].endswith("; raise it")
    assert run(*rtn, "--method", "gptq", "--calibration", "tiny:calibration")[1].endswith(
        "; raise it, or use fewer or shorter samples, or --method rtn"
    )


def test_commands_that_are_advised_can_be_given(run: Run, tmp_path: Path) -> None:
    """A command in a refusal is followed as it stands, with the folders of the example."""
    model = tiny_models.build("llama", tmp_path / "model")
    out, dense = tmp_path / "out", tmp_path / "dense"
    assert run("quantize", model, "-o", out, "--group-size", "32")[0] == 0
    code, line = run("quantize", out, "-o", tmp_path / "again", "--group-size", "32")
    assert code == 2 and line.endswith("turn it into plain ones with llmc export --format dense")
    assert run(*shlex.split(line.rpartition("llmc ")[2]), out, "-o", dense)[0] == 0
    assert run("quantize", dense, "-o", tmp_path / "again", "--group-size", "32")[0] == 0
    assert run("lossless", model, "-o", tmp_path / "coded")[0] == 0
    code, line = run("quantize", tmp_path / "coded", "-o", tmp_path / "third", "--group-size", "32")
    assert code == 2 and line.endswith("turn it into plain weights with llmc decompress")
    assert run(*shlex.split(line.rpartition("llmc ")[2]), tmp_path / "coded", "-o", tmp_path / "plain")[0] == 0
    (out / "README.md").write_text("# mine\n")
    assert run("verify", out)[0] == 1
    advice = llmc.verify(out).problems[0].rpartition("llmc ")[2].replace("OUT", str(out))
    assert run(*advice.split())[0] == 0 and run("verify", out)[0] == 0
    code, line = run("verify", model)
    assert code == 2 and "SHA256SUMS" in line
