"""Public standards, one file each. A new one is its file and one line here."""

from llmc.registry import Registry

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
