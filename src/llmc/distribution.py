"""What llmc is called where Python packages are: `llmc` itself is somebody else's package there.

The command and the import are `llmc` all the same.
"""

from __future__ import annotations

NAME = "llmc-compression"


def install(*packages: str, extra: str = "") -> str:
    """The command that installs llmc, with one of its extras and with other packages where they are named."""
    own = f"'{NAME}[{extra}]'" if extra else NAME
    return " ".join(("pip install", own, *packages))
