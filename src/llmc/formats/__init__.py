"""Grids, encodings, packing and containers. A new grid or container is one file and one line here."""

from llmc.registry import Registry

GRIDS = Registry(
    "grid",
    {
        "int": "llmc.formats.int_grid:IntGrid",
        "nf4": "llmc.formats.nf4_grid:Nf4Grid",
    },
)

CONTAINERS = Registry(
    "format",
    {
        "compressed-tensors": "llmc.formats.compressed_tensors:CompressedTensors",
        "gptq": "llmc.formats.gptq:Gptq",
        "bitsandbytes": "llmc.formats.bitsandbytes:BitsAndBytes",
        "llmc": "llmc.formats.llmc:Llmc",
        "dense": "llmc.formats.dense:Dense",
    },
)
