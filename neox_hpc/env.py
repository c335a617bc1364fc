"""The virtual environment that `env create` builds: what goes into it, and where.  Decides only; the script is templates/env.sh.j2.

Changes when what the ranks need to have installed does.
"""

from __future__ import annotations

import os.path
import shlex
from dataclasses import dataclass

from neox_hpc.site import ARCHIVE, UNFINISHED, Site

TORCH = "torch==2.13.0"
OTHERS = ("deepspeed==0.19.8", "numpy>=1.26", "tokenizers>=0.20", "safetensors>=0.4.5")
"""The extra `train` of pyproject.toml; a test compares."""
LOCK = "neox-hpc.lock"
"""A file in the environment: what is installed, with versions, sorted; written last."""


@dataclass(frozen=True, kw_only=True)
class Venv:
    """A virtual environment to be built."""

    site: Site
    path: str
    """Absolute."""
    constraints: str
    """File of pinned versions; absolute."""
    wheels: str | None = None
    """Directory of wheels that take the place of the package index."""
    first: str = TORCH
    """Installed alone, and from the site's index too: the build for this machine's GPUs."""
    others: tuple[str, ...] = OTHERS

    @property
    def lock(self) -> str:
        """Where the lock is."""
        return f"{self.path}/{LOCK}"

    @property
    def unfinished(self) -> str:
        """There from the first step to the last."""
        return f"{self.path}/{UNFINISHED}"

    @property
    def archive(self) -> str | None:
        """What jobs copy to their nodes, where the site says so."""
        return f"{self.path}{ARCHIVE}" if self.site.stage.env is not None else None

    @property
    def source(self) -> tuple[str, ...]:
        """pip's options for all packages."""
        place = ("--no-index", "--find-links", self.wheels) if self.wheels is not None else ()
        return (*place, "--constraint", self.constraints)

    @property
    def fetching(self) -> tuple[str, ...]:
        """The commands that fill a directory of wheels on another machine."""
        wheel = ("python3", "-m", "pip", "wheel", "--wheel-dir", "wheels")
        torch = [shlex.join((*wheel, "--no-deps", "--index-url", self.index[1], self.first))] if self.index else []
        pins = ("--find-links", "wheels", "--constraint", os.path.basename(self.constraints))
        return (*torch, shlex.join((*wheel, *self.index, *pins, self.first, *self.others)))

    @property
    def index(self) -> tuple[str, ...]:
        """pip's option for the site's own index; none where wheels take its place."""
        index = self.site.software.index_url
        return ("--extra-index-url", index) if index is not None and self.wheels is None else ()

    @property
    def lacks_wheel(self) -> bool:
        """Whether pip's own index has no torch for this machine's processors.  Seen on 2026-11-21 of torch 2.13.0:
        wheels for Linux on x86_64 and on aarch64, each with CUDA, and none for ppc64le."""
        site = self.site
        return site.node.arch == "ppc64le" and site.software.index_url is None and self.wheels is None

    @property
    def lacks_index(self) -> bool:
        """Whether pip's own index would give a torch that is built for other GPUs than this machine's."""
        return self.site.node.accelerator in ("rocm", "xpu") and self.site.software.index_url is None and self.wheels is None
