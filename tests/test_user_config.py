"""``~/.config/neox-hpc/config.yml``: read by site, checked whole; and what a submit makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from neox_hpc.errors import UserError
from neox_hpc.user_config import FILE, UserSite, read_user_site
from tests.desk import Desk, desk

__all__ = ["desk"]


def write(home: Path, text: str) -> Path:
    path = home / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return home


def test_account_is_of_the_site_and_knows_its_line(tmp_path: Path) -> None:
    home = write(tmp_path, "sites:\n  a: {account: A1}\n  b:\n    account: B2\n")
    assert read_user_site("b", home) == UserSite(account="B2", place="~/.config/neox-hpc/config.yml:4")
    assert read_user_site("c", home).account is None


def test_no_file_says_nothing(tmp_path: Path) -> None:
    assert read_user_site("a", tmp_path) == UserSite()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("site: {}", ":1  site: unknown key\n  fix: did you mean sites?"),
        ("sites:\n  a: {acount: x}", ":2  sites.a.acount: unknown key\n  fix: did you mean account?"),
        ("sites:\n  a: {account: 12}", ":2  sites.a.account: expected text, got 12\n  fix: write it in quotes"),
        ("sites: a", ":1  sites: expected site names\n  fix: write sites: {NAME: {account: …}}"),
        ("sites:\n  a: x", ":2  sites.a: expected key: value\n  fix: write {account: …}"),
        ("sites: [", " is not YAML"),
    ],
)
def test_wrong_files_are_refused_with_their_line(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        read_user_site("a", write(tmp_path, text))
    assert problem in str(caught.value)


def test_a_dry_run_uses_it_and_says_so(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    write(Path.home(), "sites: {frontier: {account: mine42}}\n")
    monkeypatch.setenv("SBATCH_ACCOUNT", "other")
    said = desk("submit", "-s", "frontier", "--dry-run", "my.yml")
    assert (said.code, "#SBATCH --account=mine42\n" in said.out) == (0, True)
    assert "note: account: mine42, from ~/.config/neox-hpc/config.yml:1" in said.err
    asked = desk("submit", "-s", "frontier", "-A", "x1", "--dry-run", "my.yml")
    assert "#SBATCH --account=x1\n" in asked.out and "note: account" not in asked.err


def test_schedulers_variable_is_the_last_to_be_asked(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_ACCOUNT", "other")
    said = desk("submit", "-s", "frontier", "--dry-run", "my.yml")
    assert "#SBATCH --account=other\n" in said.out and "note: account: other, from $SBATCH_ACCOUNT" in said.err


def test_submit_refuses_a_job_without_account_and_a_dry_run_shows_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SBATCH_ACCOUNT", "SLURM_ACCOUNT"):
        monkeypatch.delenv(name, raising=False)
    shown = desk("submit", "-s", "frontier", "--dry-run", "my.yml")
    assert (shown.code, "#SBATCH --account=MISSING_ACCOUNT\n" in shown.out) == (0, True)
    python = ("--site-set", "software.python=/bin/sh")
    for account in ((), ("-A", "MISSING_ACCOUNT")):
        refused = desk("submit", "-s", "frontier", *python, *account, "my.yml")
        assert (refused.code, refused.out) == (2, "")
        assert "--account: " in refused.err
    assert not (desk.cwd / "runs").exists()


def test_problems_of_all_three_files_come_together(desk: Desk) -> None:
    write(Path.home(), "sits: {}\n")
    (desk.cwd / "site.yml").write_text("extends: slurm\ngpu: 4\n")
    (desk.cwd / "bad.yml").write_text("num_layer: 2\n")
    said = desk("submit", "-s", "site.yml", "--dry-run", "bad.yml")
    assert said.code == 2 and "Traceback" not in said.err
    for part in ("config.yml:1  sits: unknown key", "site.yml:2  gpu: unknown key", "bad.yml:1  num_layer: unknown key"):
        assert part in said.err
