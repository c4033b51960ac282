"""Every option that more than one verb has, defined once, and what the text of an option means."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from llmc.cli.completion import method_names
from llmc.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Model = Annotated[str, Argument(metavar="MODEL", help="Folder of a Hugging Face model, or a Hub id.")]
Folder = Annotated[str, Argument(metavar="OUT", help="Folder that llmc wrote.")]
Out = Annotated[str, Option("-o", "--out", metavar="OUT", help="Folder to write; it appears only when complete.")]
Against = Annotated[str | None, Option("--against", metavar="MODEL", help="The original model: a folder or a Hub id.")]
Device = Annotated[str | None, Option("--device", metavar="D", help="Where to compute: cpu, cuda, cuda:1.")]
Overrides = Annotated[
    list[str] | None, Option("--set", metavar="PATH=VALUE", help="Change a field of the recipe; repeatable.")
]
Fresh = Annotated[bool, Option("--fresh", help="Discard what an interrupted run left and start over.")]
Force = Annotated[bool, Option("--force", help="Replace the model in OUT.")]
Threads = Annotated[int | None, Option("--threads", metavar="N", min=1, help="How many work; all cores by default.")]
RawText = Annotated[
    bool, Option("--raw-text", help="Keep the line ends of Windows and byte order marks, which models do not know.")
]
DryRun = Annotated[bool, Option("--dry-run", help="Say what would be done, and do nothing.")]
Json = Annotated[bool, Option("--json", help="Print one JSON document on stdout instead of tables.")]


@dataclass(frozen=True)
class Telling:
    """What every verb prints beside its result."""

    json: Json = False
    quiet: Annotated[bool, Option("--quiet", "-q", help="No progress and no notes.")] = False
    verbose: Annotated[
        bool, Option("--verbose", "-v", help="Each step on a line of its own, and where an error came from.")
    ] = False
    log: Annotated[
        str | None, Option("--log", metavar="FILE", help="Append progress, notes and errors to this file too.")
    ] = None


@dataclass(frozen=True)
class Job:
    """The options of a one-stage job, as the command line gives them: `quantize` and `plan` share them."""

    method: Annotated[
        str | None,
        Option("--method", metavar="NAME", help="rtn, gptq, ...: see `llmc methods`.", autocompletion=method_names),
    ] = None
    bits: Annotated[int | None, Option("--bits", metavar="N", help="Width of one code.")] = None
    bits_per_weight: Annotated[
        float | None,
        Option("--bits-per-weight", metavar="B", help="trellis: stored bits per weight, everything counted."),
    ] = None
    size: Annotated[
        str | None, Option("--size", metavar="SIZE", help="trellis: most bytes of all weight files: 4GiB, 500MB.")
    ] = None
    max_kl: Annotated[
        float | None,
        Option(
            "--max-kl", metavar="KL", help="trellis: most KL divergence to the original, at its interval's upper end."
        ),
    ] = None
    group_size: Annotated[
        str | None, Option("--group-size", metavar="N", help="Input columns that share a scale; `channel` for all.")
    ] = None
    option: Annotated[
        list[str] | None,
        Option("-O", metavar="NAME=VALUE", help="Any other field of the method (`llmc methods NAME`); repeatable."),
    ] = None
    asymmetric: Annotated[bool, Option("--asymmetric", help="Fit a zero point instead of fixing it mid-grid.")] = False
    act_order: Annotated[bool, Option("--act-order", help="gptq: most active columns of all groups first.")] = False
    aim: Annotated[
        float | None,
        Option(
            "--aim",
            metavar="A",
            help="How far layers make up for what those before them lost: 0 not, 1 in full.",
        ),
    ] = None
    targets: Annotated[
        list[str] | None, Option("--targets", metavar="GLOB", help="Compress only these matrices; repeatable.")
    ] = None
    ignore: Annotated[
        list[str] | None, Option("--ignore", metavar="GLOB", help="Leave these matrices alone; repeatable.")
    ] = None
    calibration: Annotated[
        list[str] | None,
        Option(
            "--calibration",
            metavar="TEXT[:WEIGHT]",
            help="A .txt, .jsonl or .parquet file, or a datasets id; repeatable, with weights.",
        ),
    ] = None
    text_column: Annotated[
        str | None, Option("--text-column", metavar="NAME", help="Column of the calibration rows to read.")
    ] = None
    split: Annotated[
        str | None, Option("--split", metavar="S", help="Split of a calibration data set; train by default.")
    ] = None
    chat_template: Annotated[
        bool, Option("--chat-template", help="Its rows are conversations, to be written by the model's chat template.")
    ] = False
    num_samples: Annotated[int | None, Option("--num-samples", metavar="N", help="Calibration sequences.")] = None
    sequence_length: Annotated[int | None, Option("--sequence-length", metavar="N", help="Tokens in each.")] = None
    raw_text: RawText = False
    seed: Annotated[int | None, Option("--seed", metavar="N", help="Seed of every random choice.")] = None
    formats: Annotated[
        list[str] | None,
        Option(
            "--format",
            metavar="F",
            help="compressed-tensors, gptq, bitsandbytes, llmc, dense; repeatable, then OUT holds one folder for each.",
        ),
    ] = None
    device: Device = None
    compute_dtype: Annotated[
        str | None, Option("--compute-dtype", metavar="T", help="Type of the arithmetic: float32, float64, bfloat16.")
    ] = None
    max_memory: Annotated[
        str | None, Option("--max-memory", metavar="SIZE", help="Most memory to use: 8GiB, 500MB, a number of bytes.")
    ] = None
    revision: Annotated[str | None, Option("--revision", metavar="R", help="Branch, tag or commit of a Hub id.")] = None
    fresh: Fresh = False
    force: Force = False
    allow_nonfinite: Annotated[
        bool, Option("--allow-nonfinite", help="Keep tensors with NaN or Inf as they are instead of refusing them.")
    ] = False
    strict: Annotated[
        bool, Option("--strict", help="Refuse a model with a matrix that does not fit, instead of keeping it as it is.")
    ] = False
    entropy: Annotated[
        bool,
        Option("--entropy", help="Store codes at the size of their entropy; `llmc export` gives the format's files."),
    ] = False

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for the library. What was not given is left out: defaults are the library's.

        Raises:
            UsageError: a value that cannot be read.
        """
        given = was_given(self)
        if "group_size" in given:
            given["group_size"] = group_size(given["group_size"])
        if len(given.get("calibration", ())) == 1:
            (given["calibration"],) = given["calibration"]
        if "option" in given:
            given["options"] = assignments(given.pop("option"))
        if given.pop("asymmetric", False):
            given["symmetric"] = False
        return given


def was_given(options: DataclassInstance) -> dict[str, Any]:
    """Those options of a verb that are not at their default of nothing."""
    return {name: value for name, value in asdict(options).items() if value not in (None, []) and value is not False}


def group_size(text: str) -> int | str:
    """`128` or `channel`."""
    if text == "channel":
        return text
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise UsageError(f"cannot read {text!r}", where="--group-size", fix="give a number of columns, or channel")
    return int(text)


def assignments(texts: list[str]) -> dict[str, str]:
    """`["damping=0.05"]` as `{"damping": "0.05"}`; the method's dataclass reads the values."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"cannot read {text!r}", where="-O", fix="write it like -O damping=0.05")
        if name in pairs:
            raise UsageError(f"{name!r} is given twice", where="-O", fix="give it once")
        pairs[name] = value
    return pairs
