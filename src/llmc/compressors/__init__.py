"""Algorithms, one file each. A new one is its file and one line here."""

from llmc.registry import Registry

METHODS = Registry(
    "method",
    {
        "rtn": "llmc.compressors.rtn:Rtn",
        "gptq": "llmc.compressors.gptq:Gptq",
        "trellis": "llmc.compressors.trellis:Trellis",
        "wanda": "llmc.compressors.wanda:Wanda",
    },
)
