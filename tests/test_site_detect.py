"""Which machine this is: signs in the order of their strength, and what the command says."""

from __future__ import annotations

from pathlib import Path

import pytest

from neox_hpc.site import Site
from neox_hpc.site_detect import Surroundings, detect_site
from neox_hpc.site_files import list_sites, load_site
from tests.desk import Desk, desk

__all__ = ["desk"]

SHIPPED = [load_site(path) for path in list_sites(Path("/nonexistent")).values()]


def around(variables: dict[str, str] | None = None, host: str = "laptop", files: dict[str, str] | None = None) -> Surroundings:
    return Surroundings(variables=variables or {}, hosts=(host.partition(".")[0], host), read=(files or {}).get)


def seen(*sites: Site, **signs: object) -> str | None:
    found = detect_site(sites, around(**signs))  # type: ignore[arg-type]
    return found and found.site


def site(name: str, *signs: dict[str, str]) -> Site:
    return Site.model_validate({"name": name, "scheduler": "slurm", "launcher": "srun", "detect": list(signs)})


def test_a_laptop_is_no_known_machine() -> None:
    assert detect_site(SHIPPED, around()) is None


@pytest.mark.parametrize(
    ("signs", "name"),
    [
        ({"variables": {"LMOD_SYSTEM_NAME": "frontier"}}, "frontier"),
        ({"host": "login12.frontier.olcf.ornl.gov"}, "frontier"),
        ({"host": "uan03"}, "lumi"),
        ({"variables": {"NERSC_HOST": "perlmutter"}}, "perlmutter"),
        ({"files": {"/etc/FZJ/systemname": "juwelsbooster\n"}}, "juwels-booster"),
        ({"files": {"/etc/FZJ/systemname": "jupiter\n"}}, "jupiter"),
        ({"files": {"/leonardo_work": ""}}, "leonardo"),
        ({"variables": {"BSC_MACHINE": "mn5"}}, "marenostrum5"),
        ({"host": "clariden-ln002"}, "alps"),
        ({"variables": {"LMOD_SYSTEM_NAME": "summit"}}, "summit"),
        ({"host": "polaris-login-02"}, "polaris"),
        ({"host": "aurora-uan-0009"}, "aurora"),
        ({"host": "sophia-login-01"}, "sophia"),
        ({"host": "tuolumne1042"}, "tuolumne"),
        ({"files": {"/job/hostfile": "a slots=8\n"}}, "pods"),
        ({"variables": {"LMOD_SYSTEM_NAME": "frontier-like"}}, None),
        ({"files": {"/etc/FZJ/systemname": "jurecadc\n"}}, None),
    ],
)
def test_the_signs_of_a_machine_name_it(signs: dict[str, object], name: str | None) -> None:
    assert seen(*SHIPPED, **signs) == name


def test_a_variable_is_a_stronger_sign_than_a_file_and_a_file_than_a_host_name() -> None:
    by_host, by_file, by_env = site("h", {"host": "l.*"}), site("f", {"file": "/f"}), site("e", {"env": "E"})
    signs: dict[str, object] = {"variables": {"E": ""}, "files": {"/f": ""}, "host": "login1"}
    assert seen(by_host, by_file, by_env, **signs) == "e"
    assert seen(by_host, by_file, by_env, **signs | {"variables": {}}) == "f"
    assert seen(by_host, by_file, by_env, host="login1") == "h"


def test_of_equal_signs_the_first_site_counts() -> None:
    assert seen(site("own", {"env": "E"}), site("shipped", {"env": "E"}), variables={"E": "x"}) == "own"


def test_the_whole_host_name_has_to_match() -> None:
    assert seen(site("h", {"host": "uan"}), host="uan01") is None
    assert seen(site("h", {"host": r"login\d\.a\.b"}), host="login1.a.b") == "h"


def test_no_two_shipped_machines_have_a_sign_in_common() -> None:
    signs = [(sign.model_dump_json(), site.name) for site in SHIPPED for sign in site.detect]
    assert len({sign for sign, _ in signs}) == len(signs)


def test_sites_detect_prints_the_name_alone_and_the_sign_beside(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LMOD_SYSTEM_NAME", "BSC_MACHINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NERSC_HOST", "perlmutter")
    said = desk("sites", "detect")
    assert (said.code, said.out, said.err) == (0, "perlmutter\n", "NERSC_HOST is perlmutter\n")
    assert desk("sites", "detect", "--json").facts == {"site": "perlmutter", "sign": "NERSC_HOST is perlmutter"}


def test_an_own_site_comes_before_the_shipped_one_that_it_extends(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NERSC_HOST", "perlmutter")
    own = Path(desk.cwd.parent, "home/.config/neox-hpc/sites")
    own.mkdir(parents=True)
    (own / "zzz.yml").write_text("extends: perlmutter\n")
    assert desk("sites", "detect").out == "zzz\n"


def test_where_no_sign_is_seen_the_command_says_what_to_do(desk: Desk) -> None:
    said = desk("sites", "detect")
    assert (said.code, said.out) == (1, "") and "neox-hpc sites new" in said.err
    assert desk("sites", "detect", "--json").facts == {"site": None, "sign": None}


def test_a_submit_without_a_site_says_which_machine_this_looks_like(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "write --site NAME: one of" in desk("submit", "--dry-run", "my.yml").err
    monkeypatch.setenv("NERSC_HOST", "perlmutter")
    said = desk("submit", "--dry-run", "my.yml")
    assert said.code == 2
    assert "fix: NERSC_HOST is perlmutter, so this looks like perlmutter: write --site perlmutter" in said.err
