"""What tells the software of one run from another's: the environment's lock, or the image's size, time and number.

Changes when software is recognised by something else.  Reads files only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neox_hpc.env import LOCK
from neox_hpc.software import Software


def identify(software: Software) -> Mapping[str, Any]:
    """For the receipt: what the ranks run in, in words, and what is known of its content here."""
    facts: dict[str, Any] = {"is": software.told}
    if software.image is not None:
        facts |= read_image(software.image)
    elif software.home is not None and (lock := lock_sha256(software.home)) is not None:
        facts["lock_sha256"] = lock
    return facts


def lock_sha256(venv: str) -> str | None:
    """Hash of the list of what `env create` has installed; None for an environment that something else has built."""
    try:
        return hashlib.sha256((Path(venv) / LOCK).read_bytes()).hexdigest()
    except OSError:
        return None


def read_image(path: str) -> Mapping[str, Any]:
    """Size and time of an image's file, and the number that a SIF was given when it was built; nothing for what is no file here.

    The whole file, which has gigabytes, is not read.  Source of the header: github.com/apptainer/sif, pkg/sif (32 bytes of launch
    script, SIF_MAGIC, version, architecture, and at 48 the number).
    """
    try:
        stat = os.stat(path)
        with open(path, "rb") as file:
            header = file.read(64)
    except OSError:  # a sandbox is a directory, Docker's image is a name
        return {}
    number = {"image_id": header[48:64].hex()} if header[32:41] == b"SIF_MAGIC" else {}
    return {"image_bytes": stat.st_size, "image_mtime": stat.st_mtime, **number}
