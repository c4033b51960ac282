"""The `kernel/` folder of an artifact: its decoders as a kernel that the `kernels` library loads offline.

Layout of `kernels` 0.17: `kernel/build/<variant>/` with `__init__.py` and `metadata.json`; `torch-cpu` is the variant
of plain torch code, `torch-cuda` that of code which Triton compiles where it runs. Left out: compiled variants.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from importlib.resources import files

USAGE = """weight = kernel.{first}.dequantize(tensors, bits)

`tensors` holds the stored tensors of one matrix, under their names on disk without the prefix of their module."""
USAGES = {"coded_tensor": 'tensors = kernel.coded_tensor.read("model.llmc.safetensors")'}

FOLDER = "kernel/build/torch-cpu/"
CUDA_FOLDER = "kernel/build/torch-cuda/"
CUDA_KERNELS = ("bitmaps_triton", "rans_triton", "trellis_triton")
VERSION = 1

_INIT = '''"""Reference decoders of the weights beside this folder, in plain torch.

    from pathlib import Path
    from kernels import get_local_kernel

    kernel = get_local_kernel(Path("kernel"), backend="cpu")
    {usage}
"""

{imports}

__all__ = {names}
'''

_CUDA_INIT = '''"""Decoders of the weights beside this folder: of their streams on a GPU by Triton, and in plain torch.

    from pathlib import Path
    from kernels import get_local_kernel

    kernel = get_local_kernel(Path("kernel"), backend="cuda")

`decode` of `kernel.bitmaps_triton`, `kernel.rans_triton` and `kernel.trellis_triton` takes the parts of a stream;
llmc.encodings.coding.gpu finds them.
"""

{imports}

__all__ = {names}
'''


def kernel_files(container_kernels: Sequence[str]) -> dict[str, bytes]:
    """Paths in an artifact to bytes: the decoders of these containers (`Container.kernel`), the same on every machine.

    Raises:
        FileNotFoundError: a name has no decoder in `llmc.encodings.kernels`.
    """
    names = sorted(set(container_kernels))
    usage = USAGES.get(names[0], USAGE.format(first=names[0]))
    return _variant(FOLDER, _INIT.replace("{usage}", usage), names, "cpu")


def cuda_kernel_files(container_kernels: Sequence[str] = ("coded_tensor",)) -> dict[str, bytes]:
    """The same for machines with a GPU: the GPU decoders too, beside the folder of `kernel_files`.

    Where torch has CUDA, `kernels` takes this variant unless told otherwise: it must do all that the other one does.

    Raises:
        FileNotFoundError: a name has no decoder in `llmc.encodings.kernels`.
    """
    return _variant(CUDA_FOLDER, _CUDA_INIT, sorted({*container_kernels, *CUDA_KERNELS}), "cuda")


def _variant(folder: str, init: str, names: list[str], backend: str) -> dict[str, bytes]:
    imports = "\n".join(f"from . import {name}" for name in names)
    listed = "[" + ", ".join(f'"{name}"' for name in names) + "]"
    sources = {"__init__.py": init.format(imports=imports, names=listed).encode()}
    for name in names:
        _add(sources, name)
    sources["metadata.json"] = _metadata(sources, backend)
    return {folder + path: sources[path] for path in sorted(sources)}


def _add(sources: dict[str, bytes], name: str) -> None:
    """Take in a module and the siblings that it imports."""
    source = (files("llmc.encodings.kernels") / f"{name}.py").read_bytes()
    sources[f"{name}.py"] = source
    for sibling in re.findall(r"^from \.(\w+) import", source.decode(), re.MULTILINE):
        _add(sources, sibling)


def _metadata(sources: dict[str, bytes], backend: str) -> bytes:
    digests = {path: hashlib.sha256(sources[path]).digest() for path in sorted(sources)}
    # `kernels` registers a kernel in sys.modules by its id: other code must have another id.
    whole = hashlib.sha256(b"".join(path.encode() + digest for path, digest in digests.items())).hexdigest()
    metadata = {
        "id": f"_llmc_dequantize_{whole[:12]}",
        "name": "llmc-dequantize",
        "version": VERSION,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {
            "algorithm": "sha256",
            "files": {path: base64.b64encode(digest).decode() for path, digest in digests.items()},
        },
    }
    return (json.dumps(metadata, indent=2) + "\n").encode()
