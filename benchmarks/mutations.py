"""What `verify --against` sees: artifacts changed in one place each and sealed again as a forger would.

    python benchmarks/mutations.py [--count 700] [--seed 0]

Every kind of artifact is made from a small random Llama. A forger computes every digest anew: files, fields, tensors,
decoded values, sums of coded tensors. He does not compute the bond and the error of a matrix anew, for which he needs
the original; `forged` says what happens when he does that too.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mutation_kinds import CHANGES, Mutation, edit_manifest, json_of, recode, tensors_of
from random_llama import Shape, write_random_llama
from safetensors.torch import load_file, save_file

import llmc
from llmc.artifacts.against import signal_to_noise
from llmc.artifacts.lossless.check import crc_of
from llmc.encodings.measuring import bond
from llmc.files.bytes import raw_bytes
from llmc.files.manifest import MANIFEST, write_manifest
from llmc.formats.coded_files import CodedTensors, is_coded
from llmc.models.checkpoint import Checkpoint
from llmc.models.config import read_config
from llmc.models.tensors import stored

RTN: dict[str, Any] = {"method": "rtn", "group_size": 32}


def small_model(folder: Path) -> Path:
    """A Llama of two blocks, with a chat template and more files that travel."""
    write_random_llama(folder, Shape(64, 128, 2, 4, 2, 256))
    shard = next(folder.glob("*.safetensors"))
    tensors = load_file(shard)
    shard.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (folder / "generation_config.json").write_text('{"do_sample": false}')
    (folder / "LICENSE").write_text("free")
    return folder


def artifacts(place: Path, model: Path) -> dict[str, Path]:
    """Kind -> an artifact made from `model`, or from another artifact."""
    out = {}
    settings: dict[str, Any] = {
        "compressed-tensors": {"formats": ["compressed-tensors"]},
        "asymmetric": {"formats": ["compressed-tensors"], "symmetric": False},
        "gptq": {"formats": ["gptq"]},
        "bitsandbytes": {"formats": ["bitsandbytes"], "options": {"grid": "nf4"}, "group_size": 64},
        "dense": {"formats": ["dense"]},
        "entropy": {"formats": ["compressed-tensors"], "entropy": True},
    }
    for name, options in settings.items():
        out[name] = place / name
        llmc.quantize(str(model), out[name], **{**RTN, **options})
    out["trellis"] = place / "trellis"
    text = place / "text.txt"
    text.write_text("".join(chr(32 + 7 * i % 90) for i in range(20_000)))
    sizes: dict[str, Any] = {"calibration": str(text), "num_samples": 4, "sequence_length": 64}
    llmc.quantize(str(model), out["trellis"], method="trellis", bits_per_weight=3.0, **sizes)
    for name, exact in (("lossless", False), ("lossless exact", True)):
        out[name] = place / name
        llmc.lossless(model, out[name], exact_files=exact)
    return out


# Sealing


def reseal(folder: Path) -> None:
    """Every digest that can be computed without the original."""
    body = {k: v for k, v in json_of(folder / MANIFEST).items() if k not in ("format_version", "files", "fields")}
    _, tensors, _ = tensors_of(folder)
    file = next(folder.glob("*.safetensors")).name
    before, coded = body.get("tensors", {}), CodedTensors(folder) if is_coded(folder) else None
    body["tensors"] = {n: tensor_record(n, t, file, before.get(n, {}), coded) for n, t in tensors.items()}
    try:
        held = stored(folder, read_config(folder))
        for row in body.get("targets", []):
            row["decoded"] = hashlib.sha256(raw_bytes(held.decode(row))).hexdigest()
    except (llmc.LlmcError, KeyError, RuntimeError):
        pass  # it no longer decodes: verify has to say so
    write_manifest(folder, body)


def tensor_record(
    name: str, tensor: torch.Tensor, file: str, before: dict[str, Any], coded: CodedTensors | None
) -> dict[str, Any]:
    record = {**before, "file": file}
    if "crc32c" in before or (coded is not None and not before):
        record["crc32c"] = crc_of(tensor)
    else:
        record["sha256"] = hashlib.sha256(raw_bytes(tensor)).hexdigest()
    if coded is not None and ("decoded" in before or not before):
        values = coded.decode(name, tensor, threads=1)
        record |= {"dtype": str(values.dtype), "shape": list(values.shape)}
        record["decoded"] = hashlib.sha256(raw_bytes(values)).hexdigest()
    return record


def forge(folder: Path, original: Path) -> None:
    """What a forger who has the original can do besides: errors and bonds of the values that are there now."""
    checkpoint = Checkpoint(original)
    targets = {t.tensor: t for t in checkpoint.targets}
    held = stored(folder, read_config(folder))

    def honest(manifest: dict[str, Any]) -> None:
        for row in manifest["targets"]:
            weight = checkpoint.matrix(targets[row["tensor"]])
            row["snr_db"] = signal_to_noise(weight, held.decode(row))
            row["bond"] = bond(weight, row["decoded"])

    edit_manifest(folder, honest)
    reseal(folder)


# The run


def mutants(kinds: dict[str, Path], count: int, seed: int, place: Path) -> Iterator[tuple[str, Path, Mutation]]:
    """Artifacts changed in one place and sealed again, the kinds in turn."""
    rng = random.Random(seed)
    weights, changes = zip(*CHANGES, strict=True)
    made = 0
    while made < count:
        for kind, artifact in kinds.items():
            folder = place / f"{made}"
            shutil.copytree(artifact, folder)
            mutation = rng.choices(changes, weights)[0](folder, rng)
            if mutation is not None:
                reseal(folder)
                made += 1
                yield kind, folder, mutation
            shutil.rmtree(folder)
            if made >= count:
                return


def judged(folder: Path, original: Path, mutation: Mutation) -> str:
    """`named`, `seen` without the name, `listed` among what was not compared, or `unseen`."""
    try:
        result = llmc.verify(folder, original)
        problems = result.problems
    except llmc.LlmcError as error:
        result, problems = None, (str(error),)
    if result is not None and not problems:
        return "listed" if any(name in what for what in result.not_compared for name in mutation.named) else "unseen"
    return "named" if any(name in problem for problem in problems for name in mutation.named) else "seen"


def with_the_original(artifact: Path, original: Path, folder: Path) -> str:
    """What verify says of one matrix made noisy, with its error and its bond computed anew."""
    shutil.copytree(artifact, folder)
    name = "model.layers.0.mlp.up_proj.weight"
    recode(
        folder, name, lambda tensor: tensor + 0.3 * tensor.float().std() * torch.randn(tensor.shape).to(tensor.dtype)
    )
    reseal(folder)
    forge(folder, original)
    found = llmc.verify(folder, original)
    return f"A forger who has the original: problems {list(found.problems)}, largest error {found.worst}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=700)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        model = small_model(Path(scratch) / "model")
        kinds = artifacts(Path(scratch), model)
        untouched = {kind: llmc.verify(folder, model).problems for kind, folder in kinds.items()}
        if any(untouched.values()):
            raise SystemExit(f"not verified before any change: {untouched}")
        found: Counter[tuple[str, str]] = Counter()
        matters: dict[str, bool] = {}
        for kind, folder, mutation in mutants(kinds, options.count, options.seed, Path(scratch) / "mutants"):
            outcome = judged(folder, model, mutation)
            found[mutation.kind, outcome] += 1
            matters[mutation.kind] = mutation.matters
            if outcome != "named" and mutation.matters:
                print(f"{kind}: {mutation}: {outcome}: {llmc.verify(folder, model).problems[:2]}", flush=True)
        print(f"\n{options.count} artifacts of {len(kinds)} kinds: {', '.join(kinds)}\n")
        print("| changed | count | named | seen, not named | listed as not compared | unseen |")
        print("|---|---|---|---|---|---|")
        for name in sorted(matters, key=lambda n: (not matters[n], n)):
            counts = [found[name, outcome] for outcome in ("named", "seen", "listed", "unseen")]
            print(f"| {name} | {sum(counts)} | {' | '.join(map(str, counts))} |")
        print("\n" + with_the_original(kinds["dense"], model, Path(scratch) / "forged"))


if __name__ == "__main__":
    main()
