"""A tiny trained model and the small world it was trained on: what `llmc` runs on without a network."""

from __future__ import annotations

from pathlib import Path

# Characters of the texts that `write_texts` writes.
CALIBRATION_CHARACTERS = 300_000
EVALUATION_CHARACTERS = 120_000


def tiny_model_path() -> Path:
    """The folder of the embedded model: a Hugging Face model folder, complete with its tokenizer."""
    return Path(__file__).parent / "tiny"


def write_texts(folder: Path | str) -> dict[str, Path]:
    """Write the calibration and the evaluation text, documents separated by blank lines, always the same bytes.

    Args:
        folder: where to; made when missing.

    Returns:
        `calibration` and `evaluation`, the two `.txt` files.
    """
    from llmc.embedded.world import build_world, documents

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    world = build_world()
    calibration = "\n\n".join(documents(world, "calibration", characters=CALIBRATION_CHARACTERS))
    evaluation = "\n\n".join(documents(world, "evaluation", characters=EVALUATION_CHARACTERS))
    paths = {}
    for name, text in (("calibration", calibration), ("evaluation", evaluation)):
        paths[name] = folder / f"{name}.txt"
        paths[name].write_bytes(f"{text}\n".encode())
    return paths
