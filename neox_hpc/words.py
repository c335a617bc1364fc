"""Words of a command that the job's shell finishes: a part of them is text, a part stands for the job's own variables.

Changes when what a site file may leave to the shell does.
"""

from __future__ import annotations

import re

from neox_hpc.launchers import Shell

_EXPANSION = re.compile(r"(\$\{[A-Za-z_][A-Za-z0-9_]*\})")


def joined(*parts: str) -> str:
    """One word of several parts.  Where one of them is a :class:`Shell` word, the others are kept from the shell."""
    if not any(isinstance(part, Shell) for part in parts):
        return "".join(parts)
    return Shell("".join(part if isinstance(part, Shell) else re.sub(r'([\\$`"])', r"\\\1", part) for part in parts))


def expanding(text: str) -> str:
    """``${NAME}`` stays for the shell (empty when it is not set); everything else is text."""
    pieces = (Shell(f"${{{part[2:-1]}:-}}") if _EXPANSION.fullmatch(part) else part for part in _EXPANSION.split(text))
    return joined(*pieces)
