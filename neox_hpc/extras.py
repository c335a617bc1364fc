"""Optional packages that a configuration asks for, and what is known of them where the ranks run.  Reads nothing.

Changes when another option needs a package that the training does without else.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from neox_hpc.errors import Problem
from neox_hpc.probe import Facts
from neox_hpc.request import Request
from neox_hpc.settings import Loaded
from neox_hpc.site import Site
from neox_hpc.software import image_of
from neox_hpc.vocabulary import RunConfig


@dataclass(frozen=True, kw_only=True)
class Extra:
    """A package that only some options need."""

    package: str
    """As pip calls it."""
    wanted: str
    """The same with the versions that do."""
    key: str
    """The option."""


def extras_of(config: RunConfig) -> Iterator[Extra]:
    """What a configuration asks for beside what every training needs."""
    if config.architecture.use_flashattn_swiglu:
        yield Extra(package="flash-attn", wanted="flash-attn>=2.6", key="use_flashattn_swiglu")
    if wanted := config.optimizer.package:
        key = "use_bnb_optimizer" if config.optimization.use_bnb_optimizer else "optimizer.type"
        yield Extra(package=re.split("[<>=!~]", wanted)[0], wanted=wanted, key=key)


def check_extras(loaded: Loaded, site: Site, request: Request, facts: Facts) -> Iterator[Problem]:
    """A package that the site says, or that can be seen, not to be there."""
    image = image_of(site, request)
    place = f"image {image}" if image is not None else "the Python of the ranks"
    for extra in extras_of(loaded.config):
        if _is_there(extra, site, request, facts) is False:
            build = (
                "build the image with it" if image is not None else f"{_python(site)} -m pip install {shlex.quote(extra.wanted)}"
            )
            wrong = f"needs {extra.package}, and {place} does not have it"
            yield Problem(loaded.where(extra.key), wrong, f"{build}; or remove {extra.key}", "here")


def extra_notes(loaded: Loaded, site: Site, request: Request, facts: Facts) -> Iterator[str]:
    """A package of which it is not known whether it is there."""
    for extra in extras_of(loaded.config):
        if _is_there(extra, site, request, facts) is None:
            yield (
                f"{extra.key}: needs {extra.package}, and whether the ranks have it cannot be seen from here; "
                f"without it the run stops before its first step (pip install {shlex.quote(extra.wanted)})"
            )


def _is_there(extra: Extra, site: Site, request: Request, facts: Facts) -> bool | None:
    """As the site says of its image or environment; else as its environment shows from here."""
    image = image_of(site, request)
    if image is not None:
        own = image == site.container.image
        return extra.package in site.container.packages if own and site.container.packages is not None else None
    if site.software.packages is not None:
        return extra.package in site.software.packages
    return facts.packages.get(extra.package)


def _python(site: Site) -> str:
    return site.software.interpreter or "python3"
