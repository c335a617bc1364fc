"""Optional packages: what is known to lack is a problem with its line and the command, what is not known is a note."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from neox_hpc.extras import extras_of
from neox_hpc.plan import Planned
from neox_hpc.probe import probe, read_packages
from neox_hpc.site import Site
from tests.planning import TWO_CORES, loaded, planned, site, slurm, wrongs

KEYS = {"use_bnb_optimizer": True}


def in_image(*sets: str) -> Site:
    """A site whose jobs run in an image."""
    node = ("node.gpus=4", "node.accelerator=cuda", "node.cores=64")
    return site("slurm", *node, "container.runtime=apptainer", "container.image=/images/neox.sif", *sets)


def told(where: Site, *, present: bool | None = None, **asked: str) -> tuple[list[str], list[str]]:
    """Problems and notes of 8-bit Adam, with what can be seen of the environment."""
    facts = replace(TWO_CORES, packages={} if present is None else {"bitsandbytes": present})
    found = planned(where, keys=KEYS, facts=facts, asked=dict(asked))
    assert found.plan is not None  # the script is shown
    return [line for line in wrongs(found, "here") if "bitsandbytes" in line], notes(found)


def notes(found: Planned) -> list[str]:
    return [note for note in found.notes if "bitsandbytes" in note]


def test_a_package_that_the_environment_lacks_is_a_problem_with_the_command() -> None:
    wrong = "needs bitsandbytes, and the Python of the ranks does not have it"
    fix = "/opt/env/bin/python -m pip install 'bitsandbytes>=0.50'; or remove use_bnb_optimizer"
    assert told(slurm(), present=False) == ([f"small.yml:14  use_bnb_optimizer: {wrong} / {fix}"], [])
    assert told(slurm(), present=True) == ([], [])


def test_what_the_site_says_of_its_environment_counts() -> None:
    assert told(slurm("software.packages=[]"))[0] != []
    assert told(slurm("software.packages=[bitsandbytes]"), present=False) == ([], [])


def test_an_image_is_known_by_what_the_site_says_of_it() -> None:
    wrong = "needs bitsandbytes, and image /images/neox.sif does not have it"
    fix = "build the image with it; or remove use_bnb_optimizer"
    lacks = in_image("container.packages=[flash-attn]")
    assert told(lacks) == ([f"small.yml:14  use_bnb_optimizer: {wrong} / {fix}"], [])
    assert told(in_image("container.packages=[bitsandbytes]")) == ([], [])
    assert told(lacks, container="/another.sif")[0] == []  # nothing is known of it


def test_what_is_not_known_is_a_note_with_the_command() -> None:
    [note] = told(slurm())[1]
    assert note.startswith("use_bnb_optimizer: needs bitsandbytes, and whether the ranks have it cannot be seen from here")
    assert "stops before its first step (pip install 'bitsandbytes>=0.50')" in note
    assert len(told(in_image(), present=True)[1]) == 1  # seen of the environment, not of the image


ASKING = ({"use_flashattn_swiglu": True, "activation": "swiglu"}, {"use_bnb_optimizer": True})


def test_only_who_asks_for_a_package_is_told_of_it() -> None:
    assert list(extras_of(loaded().config)) == []
    assert [extra.key for keys in ASKING for extra in extras_of(loaded(**keys).config)] == [
        "use_flashattn_swiglu",
        "use_bnb_optimizer",
    ]


@pytest.mark.parametrize("keys", ASKING)
def test_a_package_is_an_extra_of_ours_in_these_versions(keys: dict[str, Any]) -> None:
    [extra] = extras_of(loaded(**keys).config)
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    assert re.search(rf'^\w+ = \["{re.escape(extra.wanted)}"\]$', text, re.MULTILINE)


# What can be seen -----------------------------------------------------------------------------------------------------------


def environment(folder: Path, *, apart: bool = True) -> Path:
    """A virtual environment with flash-attn and without bitsandbytes."""
    (folder / "lib/python3.11/site-packages/flash_attn-2.8.0.dist-info").mkdir(parents=True)
    (folder / "pyvenv.cfg").write_text(f"include-system-site-packages = {'false' if apart else 'true'}\n")
    return folder


def test_an_environment_apart_is_known_by_pips_records(tmp_path: Path) -> None:
    asked = ("flash-attn", "bitsandbytes")
    assert read_packages(environment(tmp_path / "a"), asked) == {"flash-attn": True, "bitsandbytes": False}
    assert read_packages(environment(tmp_path / "b", apart=False), asked) == {"flash-attn": True}
    assert read_packages(tmp_path / "nothing", asked) == {}


@pytest.mark.parametrize(
    ("sets", "packages"),
    [((), {"bitsandbytes": False}), (("modules.load=[pytorch]",), {}), (("env.PYTHONPATH=/more",), {})],
)
def test_a_module_may_bring_what_the_environment_lacks(tmp_path: Path, sets: tuple[str, ...], packages: dict[str, bool]) -> None:
    where = slurm(*sets).model_copy(
        update={"software": slurm().software.model_copy(update={"python": f"{environment(tmp_path)}/bin/python"})}
    )
    found = probe(loaded(**KEYS).config, where, cwd=tmp_path, environ={}, packages=["bitsandbytes"])
    assert found.packages == packages
