"""`verify`: what it reports of any flipped bit, of a hostile manifest, and against the original."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from spoiled import Command, change_tensors

import llmc
from llmc.artifacts import layout
from llmc.artifacts.verify import verify
from llmc.files.manifest import MANIFEST, SUMS, digest_file, dump_json, malformed, write_manifest

FLIPS = 200
HEADER = 8


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("verify") / "model")


@pytest.fixture(scope="module")
def artifact(model: Path) -> Path:
    """Several small shards, so that there is an index too."""
    out = model.parent / "artifact"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout.arrange, "__defaults__", (30_000,))
        llmc.quantize(str(model), out, method="rtn", bits=4, group_size=32)
    assert len(list(out.glob("*.safetensors"))) > 2
    return out


@pytest.fixture
def copied(artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact, tmp_path / "copied"))


def resealed(folder: Path) -> Path:
    """The folder with SHA256SUMS as of its files now: what a forger can do."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != SUMS)
    (folder / SUMS).write_text("".join(f"{digest_file(folder / name)}  {name}\n" for name in names))
    return folder


def test_an_untouched_artifact_is_verified(command: Command, artifact: Path, model: Path) -> None:
    result = verify(artifact, model)
    assert result.problems == () and result.worst is not None
    stored = [name for file in artifact.glob("*.safetensors") for name in load_file(file)]
    assert result.tensors == len(stored) > result.decoded == 14
    outcome = command("verify", artifact, "--against", model, "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out) == {
        "name": "artifact",
        "ok": True,
        "files": len([p for p in artifact.rglob("*") if p.is_file()]) - 2,  # neither the manifest nor the sums
        "tensors": len(stored),
        "decoded": 14,
        "matrices": 14,
        "against": "model",
        "problems": [],
        "compared": {
            "matrices whose recorded error was reproduced": 14,
            "tensors with the original's bits": len(stored) - 3 * 14,
            "keys of config.json": len(json.loads((artifact / "config.json").read_text())),
            "files beside the weights": 3,
            "files of the decoder": 4,
        },
        "not_compared": {
            "README.md": "the card is for people",
            "llmc.json: base_model, calibration, llmc, notes, recipe, seed, sizes, versions": "how it was made",
            "llmc.json: targets: bits_per_weight, grid, method, notes": "how it was made",
        },
        "worst": {"matrix": result.worst[0], "snr_db": result.worst[1]},
    }
    assert result.worst[1] == min(row["snr_db"] for row in json.loads((artifact / MANIFEST).read_text())["targets"])


def tensor_at(file: Path, offset: int) -> str | None:
    """The tensor that a byte of a shard belongs to, by the header; None in the header."""
    data = file.read_bytes()
    start = HEADER + int.from_bytes(data[:HEADER], "little")
    header = json.loads(data[HEADER:start])
    spans = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    return next((name for name, (a, b) in spans.items() if a <= offset - start < b), None)


def field_of(text: str, offset: int) -> str | None:
    """The top-level field on whose lines, or on the comma before them, a byte lies (of ASCII text indented by two)."""
    start, field = 0, None
    for line in text.splitlines(keepends=True):
        key = re.match('  "([^"]*)":', line)
        field = key[1] if key else field
        start += len(line)
        if offset < start:
            return field
    return None


def expected(file: Path, name: str, offset: int) -> str:
    """A pattern that one of the problems must match when the byte at `offset` of the intact `file` is spoilt."""
    if name.endswith(".safetensors"):
        tensor = tensor_at(file, offset)
        return f"{name}: header" if tensor is None else f"{name}: tensor {tensor} differs"
    if name == SUMS:
        return SUMS
    if not name.endswith(".json"):
        return f"{name}: content differs from {SUMS}"
    field = field_of(file.read_text(), offset)
    if field == "fields":  # a digest there and the field that it is of accuse each other
        return f"{name}: .*'fields'"
    return f"{name}: " if field is None else f"{name}: field '{re.escape(field)}['\\[]"


def spots(folder: Path, count: int) -> list[tuple[Path, int]]:
    """Random bytes, as many in each kind of file."""
    rng = random.Random(5)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    shards = [f for f in files if f.suffix == ".safetensors"]
    named = [folder / name for name in (MANIFEST, SUMS, "config.json", "model.safetensors.index.json")]
    chosen = []
    for i in range(count):
        file = rng.choice((shards, named, files)[i % 3])
        chosen.append((file, rng.randrange(file.stat().st_size if i % 2 else min(file.stat().st_size, 600))))
    return chosen


def test_every_flipped_bit_is_reported_where_it_is(copied: Path) -> None:
    rng = random.Random(6)
    missed = []
    for file, offset in spots(copied, FLIPS):
        intact = file.read_bytes()
        name = file.relative_to(copied).as_posix()
        pattern = expected(file, name, offset)
        damaged = bytearray(intact)
        damaged[offset] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        problems = verify(copied).problems
        if not any(re.match(pattern, p) or (name == SUMS and SUMS in p) for p in problems):
            missed.append((name, offset, bytes(damaged[offset - 5 : offset + 5]), pattern, problems[:3]))
        file.write_bytes(intact)
    assert missed == []
    assert verify(copied).ok


def test_the_line_of_a_flipped_bit(command: Command, copied: Path) -> None:
    file = next(copied.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 4
    file.write_bytes(data)
    tensor = tensor_at(file, len(data) - 1)
    outcome = command("verify", copied, "--json")
    fix = "write or download the artifact again"
    message = f"{file.name}: tensor {tensor} differs"
    assert (outcome.code, outcome.line) == (1, f"error: copied: {message}; {fix}")
    assert outcome.error == {"kind": "verify", "message": message, "where": "copied", "fix": fix}


def spoil_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_bytes(dump_json({**config, "rms_norm_eps": 1e-3}))


def spoil_sums(folder: Path) -> None:
    text = (folder / SUMS).read_text()
    line = next(line for line in text.split("\n") if line.endswith("  config.json"))
    (folder / SUMS).write_text(text.replace(line, "0" * 64 + line[64:]))


def spoil_own_line(folder: Path) -> None:
    text = (folder / SUMS).read_text()
    line = next(line for line in text.split("\n") if line.endswith(f"  {MANIFEST}"))
    (folder / SUMS).write_text(text.replace(line, "0" * 64 + line[64:]))


def spoil_manifest(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"seed": 0', '"seed": 1'))


def cut_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes()[:300])


BROKEN = "config.json: field 'architectures' is damaged: "
SPOILT: list[tuple[Any, list[str]]] = [
    (spoil_config, ["config.json: field 'rms_norm_eps' differs"]),
    (spoil_sums, [f"{SUMS}: its digest of config.json is damaged: {MANIFEST} has the right one"]),
    (spoil_own_line, [f"{SUMS}: its digest of {MANIFEST} is damaged"]),
    (spoil_manifest, [f"{MANIFEST}: field 'recipe' differs from its digest in 'fields'"]),
    (lambda f: (f / "README.md").write_text("# mine\n"), [f"README.md: content differs from {SUMS}"]),
    (lambda f: (f / "README.md").unlink(), [f"README.md: listed in {SUMS}, and missing"]),
    (lambda f: (f / "extra.py").write_text("1"), [f"extra.py: not listed in {SUMS}"]),
    (lambda f: (f / SUMS).unlink(), [f"{SUMS}: missing or not text"]),
    (lambda f: (f / SUMS).write_bytes(b"\xff"), [f"{SUMS}: missing or not text"]),
    (lambda f: (f / MANIFEST).unlink(), [f"{MANIFEST}: listed in {SUMS}, and missing", f"{MANIFEST}: missing"]),
    (
        lambda f: (f / "config.json").write_text("[1]"),
        ["config.json: field 'architectures' is damaged: not a JSON object"],
    ),
    (
        lambda f: (f / "config.json").write_text("[" * 100_000),
        ["config.json: field 'architectures' is damaged: not JSON: "],
    ),
    (cut_manifest, [f"{MANIFEST}: not JSON: "]),
]


@pytest.mark.parametrize(("spoil", "wanted"), SPOILT, ids=range(len(SPOILT)))
def test_what_is_reported(copied: Path, spoil: Any, wanted: list[str]) -> None:
    spoil(copied)
    problems = verify(copied).problems
    assert len(problems) >= len(wanted)
    assert all(p.startswith(w) for p, w in zip(problems, wanted, strict=False)), problems


Change = tuple[list[Any], Any]  # path of keys in the manifest, and what is put there

HOSTILE: list[tuple[Change, str]] = [
    ((["format_version"], 3), "field 'format_version' is not what llmc writes there"),
    ((["tensors"], []), "field 'tensors' is not what llmc writes there"),
    ((["targets"], {"a": 1}), "field 'targets' is not what llmc writes there"),
    ((["targets", 0], None), "field 'targets[0]' is not what llmc writes there"),
    ((["targets", 1, "tensor"], 5), "field 'targets[1].tensor' is not what llmc writes there"),
    ((["targets", 1, "transposed"], "no"), "field 'targets[1].transposed' is not what llmc writes there"),
    ((["files"], 1.5), "field 'files' is not what llmc writes there"),
    ((["files", "config.json"], []), "field 'files[config.json]' is not what llmc writes there"),
    ((["fields"], None), "field 'fields' is not what llmc writes there"),
    ((["notes"], "x"), "field 'notes' is not what llmc writes there"),
]


def put(document: Any, keys: list[Any], value: Any) -> None:
    for key in keys[:-1]:
        document = document[key]
    document[keys[-1]] = value


@pytest.mark.parametrize(("change", "line"), HOSTILE, ids=range(len(HOSTILE)))
def test_a_manifest_of_wrong_types(command: Command, copied: Path, change: Change, line: str) -> None:
    manifest = json.loads((copied / MANIFEST).read_text())
    put(manifest, *change)
    (copied / MANIFEST).write_bytes(dump_json(manifest))
    assert verify(resealed(copied)).problems == (f"{MANIFEST}: {line}",)
    for verb in ("verify", "inspect"):  # whoever reads the manifest survives it
        assert command(verb, copied).code == (1 if verb == "verify" else 0)


FORGED: list[tuple[Change, str]] = [
    ((["targets", 0, "decoded"], "0" * 64), "target model.layers.0.mlp.down_proj: decodes to other values"),
    (
        (["targets", 0, "target"], "../../etc/\x1b[2J"),
        "target ../../etc/\\x1b[2J: model.layers.0.mlp.down_proj.weight is not stored",
    ),
    ((["targets", 0, "target"], "\ud800"), "target \\ud800: model.layers.0.mlp.down_proj.weight is not stored"),
    ((["tensors"], {}), "header: tensor 'model.embed_tokens.weight' is not recorded"),
    ((["tensors", "../x"], {"file": "../../y", "sha256": ""}), "header: tensor '../x' is missing"),
]


@pytest.mark.parametrize(("change", "line"), FORGED, ids=range(len(FORGED)))
def test_a_forged_manifest_under_its_own_seal(command: Command, copied: Path, change: Change, line: str) -> None:
    manifest = json.loads((copied / MANIFEST).read_text())
    put(manifest, *change)
    (copied / MANIFEST).write_text(json.dumps(manifest))
    problems = verify(resealed(copied)).problems
    assert problems[0].startswith(line), problems
    assert command("verify", copied, "--json").code == 1


def test_names_that_lead_elsewhere_are_not_followed(copied: Path) -> None:
    outside = copied.parent / "outside.txt"
    outside.write_text("x")
    with (copied / SUMS).open("a") as file:
        file.write(f"{digest_file(outside)}  ../outside.txt\n")
    assert verify(copied).problems == (f"../outside.txt: listed in {SUMS}, and missing",)


def test_weights_forged_under_their_own_seal(copied: Path) -> None:
    """Digests all fit, but a matrix no longer decodes: its shape is not that of its words."""
    file = next(f for f in sorted(copied.glob("*.safetensors")) if "weight_shape" in " ".join(load_file(f)))
    file.rename(copied / "model.safetensors")
    for other in [*copied.glob("model-*.safetensors"), copied / "model.safetensors.index.json"]:
        other.unlink()

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        name = next(n for n in tensors if n.endswith("weight_shape"))
        tensors[name] = torch.tensor([1 << 40, 1 << 40])

    change_tensors(copied, spoil)
    body = json.loads((copied / MANIFEST).read_text())
    (copied / MANIFEST).unlink()
    (copied / SUMS).unlink()
    write_manifest(copied, {k: v for k, v in body.items() if k not in ("files", "fields")})
    (problem,) = verify(copied).problems
    assert "the encoding is damaged: weight_shape says [1099511627776, 1099511627776]" in problem


def test_against_another_model(artifact: Path, model: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(model, tmp_path / "other"))

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.mlp.up_proj.weight"][0] *= 3
        tensors["model.norm.weight"][0] = 2

    change_tensors(other, spoil)
    problems = verify(artifact, other).problems
    assert len(problems) == 2
    assert re.fullmatch(r"target model\.layers\.0\.mlp\.up_proj: SNR -?[\d.]+ dB, reported [\d.]+", problems[0])
    assert problems[1] == "tensor model.norm.weight: differs from other"
    wider = tiny_models.build("llama", tmp_path / "wider", intermediate_size=192)
    first = verify(artifact, wider).problems[0]
    assert first == "target model.layers.0.mlp.down_proj: not in wider, or of another shape there"


def test_a_folder_of_somebody_else(command: Command, model: Path) -> None:
    outcome = command("verify", model)
    line = f"error: model: no {MANIFEST} and no {SUMS}; llmc verify checks what llmc wrote"
    assert (outcome.code, outcome.line) == (2, line)


def test_names_beyond_ascii(model: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(model, tmp_path / "model"))
    (source / "LICENSE-ü.txt").write_text("free")
    (source / "LICENSE\n.txt").write_text("not carried: no line of SHA256SUMS can hold it")
    llmc.quantize(str(source), tmp_path / "out", method="rtn", group_size=32)
    assert verify(tmp_path / "out").ok
    assert {p.name for p in (tmp_path / "out").glob("LICENSE*")} == {"LICENSE-ü.txt"}


def test_malformed_names_the_first_wrong_field() -> None:
    whole: dict[str, Any] = {"format_version": 1}
    assert malformed(whole) is None
    assert malformed({}) == "format_version"
    assert malformed({**whole, "tensors": {"a": {"file": 1, "sha256": ""}}}) == "tensors[a].file"
    assert malformed({**whole, "files": {"a": {"bytes": "1", "sha256": ""}}}) == "files[a].bytes"
