"""The model card of an artifact: what it is, how it was made, what it measures, how to load it.

It is the template `model_card.md.jinja` over facts, and nothing in it depends on where the folder lies. What is known
only when it is published (`completed`) or to its owner (`edited`) is put in later.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from llmc.artifacts.snippets import load_block, renamed, use_of
from llmc.errors import printable
from llmc.files.manifest import CARD
from llmc.results import plain, row

RELATION = "quantized"
TAKEN_OVER = ("license", "license_name", "license_link", "language", "pipeline_tag")
"""Fields of the original's card that hold for what is made of it."""
LISTS = ("language", "tags", "datasets", "metrics")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
TOP = re.compile(r"---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
LONGEST = 200
"""Letters of a field that is taken over from a stranger's card."""
MOST_READ = 4 << 20
BESIDE = (
    "The folder carries its decoder in `kernel/`, loadable by the `kernels` library. "
    "`llmc verify` checks every byte{against}."
)


@dataclass(frozen=True)
class Made:
    """Where a folder comes from and what it is loaded as.

    Attributes:
        folder: complete but for its card, manifest and seal.
        base: the Hub id of the original, or what its folder was called.
        source: the fields of the original's card: see `fields_of`.
        container: name of its format.
        config: its config.json, empty where it holds tensors and is no model.
        runtimes: runtime -> whether it loads it.
        tag: what it is listed under besides `llmc`; "": the container's name.
    """

    folder: Path
    base: str
    source: Mapping[str, Any]
    container: str
    config: Mapping[str, Any]
    runtimes: Mapping[str, str] = field(default_factory=dict)
    tag: str = ""


def model_card(
    made: Made, recipe: dict[str, Any], sizes: dict[str, Any], notes: Sequence[str], evaluation: str | None = None
) -> str:
    """The text of README.md of a quantized model, YAML front matter included."""
    return _text(
        made,
        title=f"{made.base.rpartition('/')[2]}: {method_line(recipe, sizes)}",
        sentence=f"compressed by llmc into the `{made.container}` format.",
        figures=[
            ("weight files", f"{sizes['weight_bytes']:,} bytes"),
            ("original weights", f"{sizes['original_bytes']:,} bytes"),
            ("bits per weight of the compressed matrices", f"{sizes['bits_per_weight']:.3f}"),
            ("bits per weight of the whole model", f"{sizes['model_bits_per_weight']:.3f}"),
        ],
        against=", with `--against` the original also every decoded value and every reported error",
        cost=evaluation or "Not evaluated in the run that wrote it; `llmc eval` prints the table.",
        limits=notes,
        recipe=json.dumps(recipe, indent=2),
    )


def lossless_card(made: Made, result: dict[str, Any], held: str | None, kept: Mapping[str, str]) -> str:
    """The text of README.md of a lossless folder.

    Args:
        held: the container of the artifact that was coded, None for anything else.
        kept: texts of the source's files: of an artifact's card, what it cost is taken over.
    """
    name = made.base.rpartition("/")[2]
    title, against = f"{name}: lossless", ", `llmc decompress` gives the plain safetensors files back"
    sentence = "in fewer bytes, without loss: every tensor decodes to exactly the bits it had."
    if held:
        before = kept.get(CARD, "")
        found = re.search(r"^# (.*)$", before, re.MULTILINE)
        title = _unescaped(found[1]) if found else f"{name}: {held}"
        sentence = f"compressed by llmc into the `{held}` format, stored at the size of the entropy of its codes."
        against = f", `llmc export --format {held}` gives the files in that format back"
    figures = [
        ("weight files", f"{result['weight_bytes']:,} bytes"),
        ("original weight files", f"{result['original_bytes']:,} bytes"),
        ("share", f"{result['ratio']:.2%}"),
        ("bits per weight", f"{result['bits_per_weight']:.3f}"),
    ]
    if result["excess"] is not None:
        figures.append(("above the entropy (large tensors)", f"{result['excess']:+.3%}"))
    _, heading, rest = kept.get(CARD, "").partition("## What it cost") if held else ("", "", "")
    options: dict[str, Any] = {"cost": None, "limits": result["notes"], "recipe": None}
    text = _text(made, title=title, sentence=sentence, figures=figures, against=against, **options)
    return text.partition("## Limits")[0] + heading + rest if heading else text


def method_line(recipe: Mapping[str, Any], sizes: Mapping[str, Any]) -> str:
    """What was done to a model, in few words: `gptq, 4 bits, groups of 128`."""
    stages = [stage for stage in recipe.get("stages") or () if isinstance(stage, dict)]
    methods = dict.fromkeys(f"{stage.get('method')}{_pruned(stage)}" for stage in stages)
    stages = [stage for stage in stages if not _pruned(stage)]
    bits = {stage.get("bits") for stage in stages}
    groups = {stage["group_size"] for stage in stages if "group_size" in stage}
    words = [" and ".join(methods) or "compressed"]
    (one,) = bits if len(bits) == 1 else (None,)
    if stages:
        words.append(f"{sizes['bits_per_weight']:.2f} bits per weight" if one is None else f"{one} bits")
    if one is not None and len(groups) == 1:
        (group,) = groups
        words.append("per channel" if group in (None, "channel") else f"groups of {group}")
    return ", ".join(words)


def _pruned(stage: Mapping[str, Any]) -> str:
    """What a stage removes: ` 2:4`, ` 50%`; empty where it removes nothing."""
    if "sparsity" not in stage:
        return ""
    return f" {stage['pattern']}" if stage.get("pattern") else f" {stage['sparsity']:.0%}"


def fields_of(text: str) -> dict[str, Any]:
    """The fields at the top of a card; none where there are none.

    Raises ValueError when they are not YAML, or no fields.
    """
    import yaml

    match = TOP.match(text.removeprefix("\ufeff"))
    if match is None:
        return {}
    try:
        fields = yaml.safe_load(match[1])
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError("not YAML") from error
    if fields is None:
        return {}
    if not isinstance(fields, dict):
        raise ValueError("not fields")
    return fields


def source_fields(folder: Path, *, artifact: bool = False) -> dict[str, Any]:
    """What the card of a model's folder says that also holds for what is made of it; empty without one.

    Args:
        artifact: llmc wrote the folder: the original that it names is the original of what is made of it too.
    """
    path = folder / CARD
    if not path.is_file() or path.stat().st_size > MOST_READ:
        return {}
    try:
        fields = fields_of(path.read_bytes().decode(errors="replace"))
    except ValueError:
        return {}
    names = (*TAKEN_OVER, *(("base_model",) if artifact else ()))
    return {name: value for name in names if _simple(value := fields.get(name))}


def with_fields(card: str, changes: Mapping[str, Any]) -> str:
    """A card with these fields at its top changed; None takes one out. Raises ValueError as `fields_of` does."""
    fields = fields_of(card)
    after = {name: value for name, value in {**fields, **changes}.items() if value is not None}
    if after.get("base_model") and "base_model_relation" not in after:
        after["base_model_relation"] = RELATION
    if after == fields:
        return card
    body = TOP.sub("", card.removeprefix("\ufeff"), count=1)
    return f"---\n{_header(after)}\n---\n{body}"


def completed(card: str, repo: str, base_model: str | None = None) -> str:
    """A card as it is published: its snippets name the repository, its fields the original. Raises ValueError."""
    changes = {} if base_model is None else {"base_model": base_model}
    return with_fields(renamed(card, repo), changes)


def _text(made: Made, **parts: Any) -> str:
    head = {**_automatic(made), **made.source}
    if "base_model" in head:
        head["base_model_relation"] = RELATION
    return str(
        _template().render(
            header=_header(head),
            made_from=made.base + ",",
            load=load_block(made.folder, made.container, made.runtimes, made.config),
            runtimes=[(name, printable(says)) for name, says in made.runtimes.items()],
            beside=BESIDE.format(against=parts.pop("against")),
            **{**parts, "figures": [("", ""), ("---", "---"), *parts["figures"]]},
        )
    )


def _automatic(made: Made) -> dict[str, Any]:
    """Fields that follow from the folder itself."""
    head: dict[str, Any] = {"library_name": "transformers" if made.config else "llmc"}
    if HUB_ID.fullmatch(made.base):
        head["base_model"] = made.base
    use = use_of(made.config)[1] if made.config else ""
    if use:
        head["pipeline_tag"] = use
    return {**head, "tags": list(dict.fromkeys(("llmc", made.tag or made.container)))}


def _header(fields: Mapping[str, Any]) -> str:
    """Fields as the Hub's client writes them."""
    from huggingface_hub import ModelCardData

    return ModelCardData(**fields).to_yaml().strip()


def _simple(value: Any) -> bool:
    """Whether a field of a stranger's card is a short text, or a short list of them."""
    texts = value if isinstance(value, list) else [value]
    return 0 < len(texts) <= LONGEST and all(
        isinstance(t, str) and t.isprintable() and 0 < len(t) <= LONGEST for t in texts
    )


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


@cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    # Markdown, not HTML: what names could break out of is escaped by the filters.
    made = Environment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters.update(plain=plain, row=row)
    return made.from_string(Path(__file__).with_name("model_card.md.jinja").read_text(encoding="utf-8"))
