"""`--entropy`: finished folders coded without loss before they are put in place.

The unpacked folders stay beside the journal until the coded ones are complete: a run that is killed while it codes
codes again, and computes nothing again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmc.artifacts.artifact import Artifact
from llmc.artifacts.lossless.write import code
from llmc.files.manifest import read_manifest
from llmc.results import Progress

CODED = "coded"
HOW = {"mode": "balanced", "exact_files": True}


def code_folders(
    artifact: Artifact, folders: Mapping[str, dict[str, Any]], progress: Progress | None
) -> dict[str, dict[str, Any]]:
    """Code every sealed folder of a run into `CODED`, beside its journal.

    Args:
        folders: container -> what is reported of its folder.

    Returns the same with the sizes that they have now.
    """
    out = {}
    for name, summary in folders.items():
        own = "" if len(folders) == 1 else name
        source, place = artifact.partial / "model" / own, artifact.partial / CODED / own
        code(source, place, HOW, fresh=True, force=True, progress=progress)
        out[name] = summary | (read_manifest(place) or {})["sizes"]
    return out
