"""The model card: how each runtime loads the folder, run as printed; what its owner adds; what a repository is told."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import yaml
from local_hub import LocalHub

import llmc
from llmc.artifacts.card import Made, completed, fields_of, method_line, model_card, source_fields, with_fields
from llmc.artifacts.snippets import BLOCK, use_of
from llmc.cli import execute
from llmc.errors import CheckpointError, LlmcError, UsageError

SIZES: dict[str, Any] = {"weight_bytes": 5, "original_bytes": 20, "bits_per_weight": 4.0, "model_bits_per_weight": 6.0}
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
T5 = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}
WHISPER = {"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"]}
TOKEN = "hf_test"


def card(place: Path, runtimes: dict[str, str], container: str = "bitsandbytes") -> str:
    return model_card(
        Made(place, "user/base", {}, container, LLAMA, runtimes), {"stages": [{"method": "rtn"}]}, SIZES, []
    )


@pytest.mark.parametrize(
    ("runtimes", "commands"),
    [
        ({"vllm": "yes", "sglang": "no: 4 bits only"}, ["vllm serve ."]),
        ({"vllm": "yes, with --quantization bitsandbytes"}, ["vllm serve . --quantization bitsandbytes"]),
        (
            {"vllm": "yes, when it is new", "sglang": "yes"},
            ["vllm serve .", "python -m sglang.launch_server --model-path ."],
        ),
        ({"vllm": "no: an encoder", "sglang": "partly", "transformers": "yes"}, []),
    ],
)
def test_servers_that_load_it_have_their_command(runtimes: dict[str, str], commands: list[str], tmp_path: Path) -> None:
    text = card(tmp_path, runtimes)
    install, *serve = re.findall(r"```sh\n(.*?)\n```", text, re.DOTALL)
    assert install == "pip install transformers accelerate bitsandbytes"
    assert [line for block in serve for line in block.split("\n")] == commands
    assert all(f"| {runtime} | {says} |" in text for runtime, says in runtimes.items())
    assert "\n\n\n" not in text
    pushed = completed(text, "me/small")
    assert [line.replace(" .", " me/small") for line in commands] == [
        line for block in re.findall(r"```sh\n(.*?)\n```", pushed, re.DOTALL)[1:] for line in block.split("\n")
    ]
    assert '"."' in text and '"."' not in pushed and 'from_pretrained("me/small")' in pushed
    assert completed(completed(text, "me/small"), "you/other") == completed(text, "you/other")


def test_what_transformers_cannot_load_is_exported_first(tmp_path: Path) -> None:
    text = card(tmp_path, {"transformers": "no: it takes one scheme", "vllm": "yes"})
    assert "```python" not in text and "llmc export . --format dense -o dense" in text
    assert "llmc export me/small --format dense" in completed(text, "me/small")


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (LLAMA, ("AutoModelForCausalLM", "text-generation")),
        (T5, ("AutoModelForSeq2SeqLM", "text2text-generation")),
        ({"model_type": "bert", "architectures": ["BertModel"]}, ("AutoModel", "feature-extraction")),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, ("AutoModelForMaskedLM", "fill-mask")),
        ({"model_type": "bert", "architectures": ["BertForPreTraining"]}, ("BertForPreTraining", "")),
        (WHISPER, ("AutoModelForSpeechSeq2Seq", "automatic-speech-recognition")),
        ({"model_type": "llama"}, ("AutoModel", "")),
        ({"model_type": "llama", "architectures": ['x"; evil()']}, ("AutoModel", "")),
    ],
)  # fmt: skip
def test_the_class_comes_from_the_model(config: dict[str, Any], found: tuple[str, str]) -> None:
    assert use_of(config) == found


@pytest.mark.parametrize(
    ("stages", "line"),
    [
        ([{"method": "gptq", "bits": 4, "group_size": 128}], "gptq, 4 bits, groups of 128"),
        ([{"method": "rtn", "bits": 8, "group_size": None}], "rtn, 8 bits, per channel"),
        ([{"method": "trellis", "bits": None}], "trellis, 4.00 bits per weight"),
        (
            [{"method": "gptq", "bits": 4, "group_size": 32}, {"method": "rtn", "bits": 8, "group_size": 32}],
            "gptq and rtn, 4.00 bits per weight",
        ),
    ],
)
def test_the_title_says_what_was_done(stages: list[dict[str, Any]], line: str) -> None:
    assert method_line({"stages": stages}, SIZES) == line


def test_fields_of_the_original_are_taken_over(tmp_path: Path) -> None:
    model = tiny_models.build("llama", tmp_path / "model")
    head = (
        "license: apache-2.0\nlanguage: [en, 'no']\npipeline_tag: text-generation\nbase_model: x/y\nwidget: [{text: a}]"
    )
    (model / "README.md").write_text(f"---\n{head}\n---\n# A model\n")
    llmc.quantize(str(model), tmp_path / "out", group_size=32)
    fields = fields_of((tmp_path / "out" / "README.md").read_text())
    expected = {"license": "apache-2.0", "language": ["en", "no"], "pipeline_tag": "text-generation"}
    assert fields == expected | {"library_name": "transformers", "tags": ["llmc", "compressed-tensors"]}


@pytest.mark.parametrize(
    "top", ["license: [", "- a\n- b", "license: {a: 1}", "license: ''", "language: [1, 2]", "license: " + "x" * 300]
)
def test_a_card_that_makes_no_sense_gives_nothing(top: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\n{top}\n---\n")
    assert source_fields(tmp_path) == {}


def test_the_same_run_into_another_folder_writes_the_same_files(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "{model: tiny, stages: [{method: rtn, group_size: 32}], eval: {text: 'tiny:evaluation', max_tokens: 600}}"
    )
    for name in ("one", "another name"):
        llmc.run(str(recipe), tmp_path / name)
    first, second = (
        {p.relative_to(f).as_posix(): p.read_bytes() for p in f.rglob("*") if p.is_file()}
        for f in (tmp_path / "one", tmp_path / "another name")
    )
    assert first == second and b"this model" in first["README.md"]


def test_a_card_is_changed_and_sealed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_models.build("llama", tmp_path / "model")
    llmc.quantize(str(model), tmp_path / "out", group_size=32)
    path = tmp_path / "out" / "README.md"
    path.write_text(path.read_text() + "\nMy own words.\n")
    assert llmc.verify(tmp_path / "out").problems == (
        "README.md: content differs from SHA256SUMS; if you edited it: llmc card OUT",
    )
    settings = ["--set", "license=mit", "--set", "language=en,no", "--set", "base_model=user/model", "--set", "tags="]
    assert execute(["card", str(tmp_path / "out"), *settings, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["changed"] and document["fields"] == {
        "base_model": "user/model",
        "base_model_relation": "quantized",
        "language": ["en", "no"],
        "library_name": "transformers",
        "license": "mit",
        "pipeline_tag": "text-generation",
    }
    assert path.read_text().endswith("\nMy own words.\n") and fields_of(path.read_text()) == document["fields"]
    assert llmc.verify(tmp_path / "out", against=model).ok
    assert not llmc.card(tmp_path / "out").changed


def test_other_damage_stays_known(tmp_path: Path) -> None:
    model = tiny_models.build("llama", tmp_path / "model")
    llmc.quantize(str(model), tmp_path / "out", group_size=32)
    config = tmp_path / "out" / "config.json"
    config.write_text(config.read_text().replace("silu", "relu"))
    llmc.card(tmp_path / "out", ["license=mit"])
    assert llmc.verify(tmp_path / "out").problems == ("config.json: field 'hidden_act' differs",)


@pytest.mark.parametrize("cut_after", range(3))
def test_a_run_that_is_cut_off_is_given_again(cut_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.build("llama", tmp_path / "model")
    llmc.quantize(str(model), tmp_path / "out", group_size=32)
    replaced, real = [0], os.replace

    def replace(*names: Any) -> None:
        if replaced[0] == cut_after:
            raise KeyboardInterrupt
        replaced[0] += 1
        real(*names)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            llmc.card(tmp_path / "out", ["license=mit"])
    llmc.card(tmp_path / "out", ["license=mit"])
    assert llmc.verify(tmp_path / "out").ok


@pytest.mark.parametrize(
    ("kind", "settings", "line"),
    [
        (UsageError, ["license"], "--set: cannot read 'license'; write it like --set license=mit"),
        (UsageError, ["base_model=model"], "--set base_model=model: not a Hub id; write it as user/name"),
    ],
)
def test_settings_that_cannot_be_read(kind: type[LlmcError], settings: list[str], line: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# mine\n")
    (tmp_path / "llmc.json").write_text("{}")
    (tmp_path / "SHA256SUMS").write_text("")
    with pytest.raises(kind) as caught:
        llmc.card(tmp_path, settings)
    assert str(caught.value) == line


def test_folders_without_a_card_that_can_be_changed(tmp_path: Path) -> None:
    def failure() -> str:
        with pytest.raises(CheckpointError) as caught:
            llmc.card(tmp_path)
        return str(caught.value)

    path = tmp_path / "README.md"
    assert failure() == f"{path}: there is no model card; write one, or quantize again"
    path.write_text("# mine\n")
    assert failure() == f"{tmp_path}: it has no llmc.json and SHA256SUMS; give the folder of a finished run"
    (tmp_path / "llmc.json").write_text('{"format_version": 2}')
    (tmp_path / "SHA256SUMS").write_text("")
    fix = "write or download the artifact again"
    assert failure() == f"{tmp_path.name}: llmc.json and SHA256SUMS do not belong together; {fix}"
    path.write_bytes(b"\xff")
    assert failure() == f"{path}: the model card is not UTF-8; save it as UTF-8"
    path.write_text("---\nlicense: [\n---\n")
    assert failure() == f"{path}: the fields at its top are not YAML; repair what is between the ---"
    path.unlink()
    path.symlink_to(tmp_path / "llmc.json")
    fix = "change a copy of the folder, with its files in place of links"
    assert failure() == f"{tmp_path}: its files are links, as in the Hub's cache; {fix}"


def test_a_base_model_brings_its_relation_and_what_the_owner_wrote_stays() -> None:
    assert fields_of(with_fields("# mine\n", {"base_model": "a/b"})) == {
        "base_model": "a/b",
        "base_model_relation": "quantized",
    }
    text = "---\nbase_model: a/b\nbase_model_relation: finetune\n# a comment\n---\n# mine\n"
    assert with_fields(text, {}) == text
    assert with_fields("\ufeff---\r\nlicense: mit\r\n---\r\n# mine", {"license": None}).endswith("---\n# mine")


@pytest.fixture(scope="module")
def hub() -> Iterator[LocalHub]:
    with LocalHub(tokens={TOKEN}) as server:
        yield server


SMALL = {"num_samples": 8, "sequence_length": 32}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "decoder": ("llama", {"group_size": 32}),
    "chat": ("llama", {"group_size": 32}),
    "asymmetric": ("llama", {"group_size": 32, "symmetric": False}),
    "encoder": ("bert", {"group_size": 32}),
    "encoder-decoder": ("t5", {"group_size": 32}),
    "llmc": ("llama", {"method": "trellis", "bits_per_weight": 4.0, "calibration": "text", **SMALL}),
    "bitsandbytes": ("llama", {"group_size": 64, "options": {"grid": "nf4"}, "formats": ["bitsandbytes"]}),
    "dense": ("llama", {"group_size": 32, "formats": ["dense"]}),
    "lossless": ("llama", {}),
}  # fmt: skip


def test_snippets_run_as_printed_after_a_push_under_another_name(hub: LocalHub, tmp_path: Path) -> None:
    """One process reads every card from the Hub and runs its Python."""
    text = str(tiny_models.corpus(tmp_path))
    for name, (architecture, options) in KINDS.items():
        model = tiny_models.build(architecture, tmp_path / f"{name}-model")
        if name == "chat":
            (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
        if name == "lossless":
            llmc.lossless(model, tmp_path / name)
        else:
            options = {**options, **({"calibration": text} if "calibration" in options else {})}
            llmc.quantize(str(model), tmp_path / name, **options)
    (tmp_path / "push.py").write_text(PUSH)
    variables = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-W", "ignore", "push.py", *KINDS]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **variables}, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    printed = dict(re.findall(r"^== (\S+)\n(.*?)(?=^== |\Z)", done.stdout, re.DOTALL | re.MULTILINE))
    assert {*printed} == {*KINDS}, done.stdout
    assert all(
        out.strip() for name, out in printed.items() if name != "encoder-decoder"
    )  # which says nothing: it is random
    assert "torch.Size([2," in printed["encoder"]
    for name in KINDS:
        files = hub.repos[f"me/{name}-small"].commits[-1].files
        assert fields_of(files["README.md"].decode())["base_model"] == f"user/{name}"
        tags = yaml.safe_load(files["README.md"].decode().split("---\n")[1])["tags"]
        assert len({*tags}) == len(tags)
        local = tmp_path / f"{name}-back"
        for file, content in files.items():
            (local / file).parent.mkdir(parents=True, exist_ok=True)
            (local / file).write_bytes(content)
        (local / ".gitattributes").unlink()
        assert llmc.verify(local).ok


PUSH = f"""
import re, sys
import llmc
from huggingface_hub import hf_hub_download
for name in sys.argv[1:]:
    repo = f"me/{{name}}-small"
    llmc.push(name, repo, base_model=f"user/{{name}}")
    card = open(hf_hub_download(repo, "README.md")).read()
    found = re.search({BLOCK.pattern!r}, card, re.DOTALL)
    assert found[1] == repo, card
    print(f"== {{name}}")
    (code,) = re.findall(r"```python\\n(.*?)```", found[2], re.DOTALL)
    exec(code, {{}})
"""
