"""What a user is told when something is wrong, and the exit code that goes with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["anywhere", "here", "untrained"]
"""*anywhere*: wrong on every machine (layout, batch, limits, types); no dry run either.
*here*: not given yet, or absent on this machine (account, software, data); a dry run shows the script, ``submit`` refuses.
*untrained*: a key that plans and renders and that the training does not know yet; as *here*, shown in one block."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, what, and what to write instead."""

    where: str
    """``configs/20B.yml:31  optimizer.params.lr``, ``--nodes``, ``sites/x.yml:4  node.gpus``."""
    wrong: str
    fix: str = ""
    kind: Kind = "anywhere"

    def __str__(self) -> str:
        text = f"{self.where}: {self.wrong}" if self.where else self.wrong
        return f"{text}\n  fix: {self.fix}" if self.fix else text


class NeoxHpcError(Exception):
    """An error that is shown as its text, without a traceback."""

    exit_code = 1


class UserError(NeoxHpcError):
    """What a user can mend: every problem found, at once."""

    exit_code = 2

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class Failure(NeoxHpcError):
    """Something that was asked for rightly did not succeed: a failed job, a scheduler that does not answer."""
