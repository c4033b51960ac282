"""What a matrix may become. A new grid is one file and one line here."""

from llmc.registry import Registry

GRIDS = Registry(
    "grid",
    {
        "int": "llmc.encodings.int_grid:IntGrid",
        "nf4": "llmc.encodings.nf4_grid:Nf4Grid",
    },
)
