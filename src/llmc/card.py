"""The model card of an artifact: what it is, how it was made, what it measures, how to load it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from typing import Any

from llmc.errors import printable
from llmc.markdown import plain, row

SERVE = {"vllm": "vllm serve {name}", "sglang": "python -m sglang.launch_server --model-path {name}"}
LOAD = {
    "compressed-tensors": """```python
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({text}{flag})  # pip install compressed-tensors
```""",
    "gptq": """```python
from gptqmodel import GPTQModel
model = GPTQModel.load({text})
```""",
    "bitsandbytes": """```python
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({text})  # pip install bitsandbytes
```""",
    "llmc": """```python
import llmc.hf  # pip install llmc; registers the format
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({text})
```""",
    "dense": """```python
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({text})
```""",
}

CONSTANT = re.compile(r"null|true|false|yes|no|on|off|[yn]|[\d.]+e[\d-]+|0[xo]\w+|\.(inf|nan)", re.I)
"""What YAML takes for another value than a name."""
LIMITS = """## Limits

{notes}
"""


def model_card(
    name: str,
    base_model: str,
    container: str,
    runtimes: dict[str, str],
    recipe: dict[str, Any],
    sizes: dict[str, Any],
    notes: Sequence[str],
    evaluation: str | None = None,
) -> str:
    """The text of README.md, YAML front matter included."""
    rows = "\n".join(row((runtime, printable(says))) for runtime, says in runtimes.items())
    needs = "dequantize=True" in runtimes.get("transformers", "")
    flag = ", quantization_config=CompressedTensorsConfig(dequantize=True)" if needs else ""
    return f"""{_front_matter(base_model, container)}

# {plain(name)}

{plain(base_model)}, compressed by llmc into the `{container}` format.

| | |
|---|---|
| weight files | {sizes["weight_bytes"]:,} bytes |
| original weight files | {sizes["original_bytes"]:,} bytes |
| bits_per_weight of the compressed matrices | {sizes["bits_per_weight"]:.3f} |
| bits_per_weight of the whole model | {sizes["model_bits_per_weight"]:.3f} |

## Load

{LOAD[container].format(text=literal(name), flag=flag)}
{_serving(name, runtimes)}
| runtime | loads |
|---|---|
{rows}

The folder carries its decoder in `kernel/`, loadable by the `kernels` library. `llmc verify` checks every byte.

## What it cost

{evaluation or "Not evaluated in the run that wrote it; `llmc eval` prints the table."}

## Limits

{_bullets(notes) or "- none found while writing"}

## Recipe

```json
{json.dumps(recipe, indent=2)}
```
"""


def _serving(name: str, runtimes: dict[str, str]) -> str:
    """Commands of the servers that load the folder, with the flags that their row asks for."""
    lines = []
    for runtime, command in SERVE.items():
        says = runtimes.get(runtime, "no")
        flags = says.partition("with ")[2] if says.startswith("yes, with --") else ""
        if says.startswith("yes"):
            lines.append(f"{command.format(name=shlex.quote(printable(name)))} {flags}".rstrip())
    return "\n```sh\n" + "\n".join(lines) + "\n```\n" if lines else ""


def lossless_card(
    name: str, base_model: str, result: dict[str, Any], model: bool, held: str | None, kept: dict[str, str]
) -> str:
    """The text of README.md of a lossless folder.

    Args:
        model: it is one that transformers loads.
        held: the container of the artifact that was coded, None for anything else.
        kept: texts of the source's files: of an artifact's card, what it cost is taken over.
    """
    load = """import llmc.hf  # pip install llmc; registers the format
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({text})  # the {weights} weights, bit for bit"""
    tensors = "import llmc\ntensors = llmc.read_tensors({text})  # name -> the original tensor, bit for bit"
    above = "" if result["excess"] is None else f"\n| above the entropy (large tensors) | {result['excess']:+.3%} |"
    what = "in fewer bytes, without loss: every tensor decodes to exactly the bits it had."
    back = "`llmc decompress` gives the plain safetensors files back"
    cost = ""
    if held:
        what = f"compressed by llmc into the `{held}` format, whose tensors are stored at the size of their entropy."
        back = f"`llmc export --format {held}` gives the files in that format back"
        _, heading, rest = kept.get("README.md", "").partition("## What it cost")
        cost = f"{heading}{rest}"
    return f"""{_front_matter(base_model, held or "lossless")}

# {plain(name)}

{plain(base_model)} {what}

| | |
|---|---|
| weight files | {result["weight_bytes"]:,} bytes |
| original weight files | {result["original_bytes"]:,} bytes |
| share | {result["ratio"]:.2%} |
| bits per weight | {result["bits_per_weight"]:.3f} |{above}

## Load

```python
{(load if model else tensors).format(text=literal(name), weights="decoded" if held else "original")}
```

{back}, `llmc verify --against` compares them with the original.
The folder carries its decoder in `kernel/`, loadable by the `kernels` library.

{cost or LIMITS.format(notes=_bullets(result["notes"]) or "- none found while writing")}"""


def _front_matter(base_model: str, container: str) -> str:
    """What the Hub reads: the relation to the base model, where it can have a Hub id."""
    lines = ["---", "library_name: transformers"]
    if re.fullmatch(r"[\w.-]*[A-Za-z][\w.-]*(/[\w.-]+)?", base_model, re.ASCII) and not CONSTANT.fullmatch(base_model):
        lines += [f"base_model: {base_model}", "base_model_relation: quantized"]
    return "\n".join([*lines, "tags:", "- llmc", f"- {container}", "---"])


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {plain(line)}" for line in lines)


def literal(name: str) -> str:
    """`name` as Python and JSON write it: in a snippet it can be nothing but a string."""
    return json.dumps(printable(name), ensure_ascii=False)
