"""What only some schedulers can be told, and the way round a site's filter: arguments as they stand, and arguments left out."""

from __future__ import annotations

import pytest

from neox_hpc.request import read_after, read_array, read_early_signal
from neox_hpc.schedulers import SCHEDULERS, After, Chain, EarlySignal, asked
from tests.desk import Desk, desk
from tests.planning import plan, planned, scheduled, site, wrongs

__all__ = ["desk"]

QUEUED = [name for name, scheduler in SCHEDULERS.items() if scheduler.starts_job]
JOBS = {"slurm": ("7", "8"), "pbs": ("7.pbs", "8.pbs"), "lsf": ("7", "8"), "lsf-csm": ("7", "8"), "flux": ("f2", "f3")}


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("slurm", ["--dependency=afterok:7,afternotok:8"]),
        ("pbs", ["-W depend=afterok:7.pbs,afternotok:8.pbs"]),
        ("lsf", ['-w "done(7) && exit(8)"']),
        ("lsf-csm", ['-w "done(7) && exit(8)"']),
        ("flux", ["--dependency=afterok:f2", "--dependency=afternotok:f3"]),
    ],
)
def test_a_job_waits_for_others(name: str, written: list[str]) -> None:
    first, second = JOBS[name]
    after = (After(job_id=first), After(job_id=second, condition="notok"))
    assert [
        text for text in asked(SCHEDULERS[name], plan(scheduled(name), after=after)) if first in text or second in text
    ] == written


@pytest.mark.parametrize(
    ("name", "written"),
    [("slurm", "--exclude=n1,n2"), ("lsf", '-R "select[hname!=n1 && hname!=n2]"'), ("flux", "--requires=-host:n1,n2")],
)
def test_nodes_are_left_out(name: str, written: str) -> None:
    assert written in asked(SCHEDULERS[name], plan(scheduled(name), exclude="n1,n2"))


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("slurm", ["--signal=B:USR1@330"]),
        ("lsf", ["-wa USR1", "-wt 0:06"]),  # LSF counts minutes: rather too early
        ("lsf-csm", ["-wa USR1", "-wt 0:06"]),
        ("flux", ["--signal=SIGUSR1@330s"]),
    ],
)
def test_a_signal_comes_before_the_end(name: str, written: list[str]) -> None:
    found = asked(SCHEDULERS[name], plan(scheduled(name), early_signal=EarlySignal(signal="USR1", seconds=330)))
    assert [text for text in found if "USR1" in text or text.startswith("-wt")] == written


CHAIN = Chain(first=1, last=5)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("slurm", {"--array=1-5%1"}),
        # qsub refuses an array with -r n; without a place for the number, tasks may write over each other's output
        ("pbs", {"-J 1-5", "-W max_run_subjobs=1", "-r y", "-o /scratch/runs/small/logs/task^array_index^.out"}),
        ("lsf", {'-J "small[1-5]%1"'}),
        ("lsf-csm", {'-J "small[1-5]%1"'}),
    ],
)
def test_a_chain_is_an_array_of_which_one_task_runs_at_a_time(name: str, written: set[str]) -> None:
    one, chain = (asked(SCHEDULERS[name], plan(scheduled(name), array=array)) for array in (None, CHAIN))
    assert set(chain) - set(one) == written


@pytest.mark.parametrize(
    ("keys", "wrong"),
    [
        ({"save": None}, "no save is given"),
        ({"save": "/elsewhere"}, "is not the run's own"),
        ({"save": "/elsewhere", "load": "/other"}, "is not the run's own"),
        ({}, None),
        ({"save": "/elsewhere", "load": "/elsewhere"}, None),
    ],
)
def test_a_chain_needs_checkpoints_of_its_own_to_go_on_from(keys: dict[str, str], wrong: str | None) -> None:
    found = [text for text in wrongs(planned(scheduled("slurm"), keys=keys, asked={"array": CHAIN})) if "--array" in text]
    assert not found if wrong is None else len(found) == 1 and wrong in found[0]


@pytest.mark.parametrize(
    ("name", "no", "yes"),
    [("slurm", "--no-requeue", "--requeue"), ("pbs", "-r n", "-r y"), ("lsf", "-rn", "-r"), ("lsf-csm", "-rn", "-r")],
)
def test_a_script_starts_again_only_when_asked_to(name: str, no: str, yes: str) -> None:
    without, with_it = (asked(SCHEDULERS[name], plan(scheduled(name), requeue=requeue)) for requeue in (False, True))
    assert no in without and yes not in without
    assert yes in with_it and no not in with_it


ASKED = {
    "--after": {"after": (After(job_id="7"),)},
    "--array": {"array": CHAIN},
    "--exclude": {"exclude": "n1"},
    "--signal": {"early_signal": EarlySignal(signal="USR1", seconds=60)},
    "--requeue": {"requeue": True},
    "--directive": {"directives": ("--x",)},
}
CANNOT = [
    *(("local", option) for option in ASKED),
    *(("pbs", option) for option in ("--exclude", "--signal")),
    ("lsf-csm", "--exclude"),
    *(("flux", option) for option in ("--requeue", "--array")),
]


@pytest.mark.parametrize(("name", "option"), CANNOT)
def test_what_a_scheduler_cannot_do_is_refused_with_the_reason(name: str, option: str) -> None:
    where = site("local") if name == "local" else scheduled(name)
    found = wrongs(planned(where, asked=ASKED[option]))
    assert len(found) == 1 and found[0].startswith(f"{option}: {name} cannot: ")


def test_what_cannot_be_done_is_all_that_is_refused() -> None:
    assert {(name, option) for name in SCHEDULERS for option in SCHEDULERS[name].cannot} == set(CANNOT)


@pytest.mark.parametrize("name", QUEUED)
@pytest.mark.parametrize("evil", ["7 8", "7;id", "$(id)", "7\n8", "7,8", "-7", "", "ä"])
def test_no_scheduler_takes_an_id_or_a_node_that_it_would_read_otherwise(name: str, evil: str) -> None:
    assert any("--after" in wrong for wrong in wrongs(planned(scheduled(name), asked={"after": (After(job_id=evil),)})))
    assert evil == "7,8" or wrongs(planned(scheduled(name), asked={"exclude": evil}))


def test_a_signal_that_the_script_does_not_pass_on_is_refused() -> None:
    found = wrongs(planned(scheduled("slurm"), asked={"early_signal": EarlySignal(signal="USR2", seconds=60)}))
    assert len(found) == 1 and "USR2 would end it" in found[0] and "--signal USR1@60" in found[0]


def test_a_directive_stands_in_the_script_as_it_was_written() -> None:
    for name in QUEUED:
        text = "-y1 'a b' $(id) `id`"
        assert text in asked(SCHEDULERS[name], plan(scheduled(name), directives=(text,)))


@pytest.mark.parametrize(
    ("name", "text", "owner", "instead"),
    [
        ("slurm", "--nodes=4", "--nodes", "--nodes"),
        ("slurm", "-N4", "-N", "--nodes"),
        ("slurm", "-C nvme -t 10", "-t", "--time"),
        ("slurm", "--tim=10", "--time", "--time"),
        ("slurm", "--array=0-7", "--array", "--array"),
        ("slurm", "--gres=gpu:a100:2", "--gres gpu", "--site-set gpu_directive"),
        ("slurm", "--gre nvme:1,gpu:2", "--gres gpu", "--site-set gpu_directive"),
        ("slurm", "--gpus-per-task=1", "--gpus-per-task", "--site-set gpu_directive"),
        ("slurm", "--gpus-per-socket=2", "--gpus-per-socket", "--site-set gpu_directive"),
        ("slurm", "--tres-per-task=gres/gpu:1", "--tres-per-task", "--site-set gpu_directive"),
        ("slurm", "--gpu-bind=closest", "--gpu-bind", "--site-set gpus_visible"),
        ("slurm", "--ntasks-per-gpu=1", "--ntasks-per-gpu", "--nodes"),
        ("slurm", "--ntasks-per-socket=1", "--ntasks-per-socket", "--nodes"),
        ("pbs", "-l walltime=10", "-l walltime", "--time"),
        ("pbs", "-lselect=4", "-l select", "--nodes"),
        ("pbs", "-l filesystems=home:eagle,walltime=10", "-l walltime", "--time"),
        ("pbs", "-W depend=afterok:1", "-W depend", "--after"),
        ("lsf", "-W 10", "-W", "--time"),
        ("lsf", '-R "span[hosts=1]"', "-R span", "--nodes"),
        ("lsf-csm", "-nnodes 4", "-nnodes", "--nodes"),
        ("flux", "-N4", "-N", "--nodes"),
        ("flux", "--setattr=bank=x", "--setattr bank", "--account"),
        ("flux", "--requires=-host:n1", "--requires -host", "--exclude"),
    ],
)
def test_a_directive_that_contradicts_the_plan_is_refused_with_the_option_to_use(
    name: str, text: str, owner: str, instead: str
) -> None:
    found = wrongs(planned(scheduled(name), asked={"directives": (text,)}))
    assert len(found) == 1
    assert found[0].startswith(f"--directive {text!r}: the plan decides {owner} / use {instead}")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("slurm", "--mem=0"),
        ("slurm", "-C nvme"),
        ("slurm", "--gres=nvme:1"),
        ("slurm", "--gres-flags=disable-binding"),
        ("slurm", "--exclusive"),
        ("pbs", "-l filesystems=home:eagle"),
        ("pbs", "-l place=scatter:excl"),
        ("pbs", "-W tolerate_node_failures=all"),
        ("lsf", '-R "select[mem>100]"'),
        ("lsf", "-x"),
        ("lsf-csm", '-alloc_flags "gpumps smt1"'),
        ("flux", "--setattr=rdzv_get_en=0"),
        ("flux", "--requires=host:n1"),
        ("flux", "-o mpibind=off"),
    ],
)
def test_other_directives_are_taken(name: str, text: str) -> None:
    assert wrongs(planned(scheduled(name), asked={"directives": (text,)})) == []


@pytest.mark.parametrize("text", ["nodes", "", "--a\nb", "--a\x00b", "--a\rb"])
def test_what_is_no_argument_is_refused(text: str) -> None:
    assert "is no argument of slurm" in wrongs(planned(scheduled("slurm"), asked={"directives": (text,)}))[0]


def test_a_site_is_checked_as_the_command_line_is() -> None:
    found = wrongs(planned(scheduled("slurm", 'directives=["--nodes=4"]')))
    assert len(found) == 1 and "slurm.yml  directives '--nodes=4': the plan decides --nodes" in found[0]


def test_directives_of_a_container_are_checked_where_one_runs() -> None:
    where = scheduled("slurm", 'container={"runtime": "apptainer", "directives": ["--nodes=4"]}')
    assert wrongs(planned(where)) == []
    found = wrongs(planned(where, asked={"container": "/images/neox.sif"}))
    assert len(found) == 1 and "slurm.yml  container.directives '--nodes=4': the plan decides --nodes" in found[0]


def test_of_alloc_flags_only_one_counts() -> None:
    where = scheduled("lsf-csm", 'directives=["-alloc_flags smt1"]')
    found = wrongs(planned(where, asked={"directives": ("-alloc_flags NVME",)}))
    assert len(found) == 1 and "only one -alloc_flags counts" in found[0]
    where = scheduled(
        "lsf-csm", 'directives=["-alloc_flags smt1"]', 'container={"runtime": "apptainer", "directives": ["-alloc_flags NVME"]}'
    )
    found = wrongs(planned(where, asked={"container": "/images/neox.sif"}))
    assert len(found) == 1 and "only one -alloc_flags counts" in found[0]


@pytest.mark.parametrize(
    ("name", "skipped"),
    [
        ("slurm", ["--export", "--open-mode"]),
        ("pbs", ["-k", "-l walltime"]),
        ("lsf", ["-env", "-R span"]),
        ("flux", ["--env", "--exclusive"]),
    ],
)
def test_what_a_sites_filter_refuses_is_not_written(name: str, skipped: list[str]) -> None:
    scheduler = SCHEDULERS[name]
    texts = ", ".join(f'"{option}"' for option in skipped)
    whole, less = (
        asked(scheduler, plan(where, walltime_s=60)) for where in (scheduled(name), scheduled(name, f"skip_directives=[{texts}]"))
    )
    assert [text for text in whole if text not in less] == [
        text for text in whole if set(scheduler.options_of(text)) & set(skipped)
    ]
    assert len(less) < len(whole)


def test_what_the_site_leaves_out_may_be_written_otherwise() -> None:
    where = scheduled("slurm", 'skip_directives=["--export"]')
    found = asked(SCHEDULERS["slurm"], plan(where, directives=("--export=ALL",)))
    assert [text for text in found if "export" in text] == ["--export=ALL"]


def test_leaving_out_what_is_never_written_is_told() -> None:
    found = wrongs(planned(scheduled("slurm", 'skip_directives=["--mem"]')))
    assert len(found) == 1 and "skip_directives: no directive --mem is written for slurm" in found[0]


@pytest.mark.parametrize("name", QUEUED)
def test_every_directive_of_the_plan_is_owned_by_it(name: str) -> None:
    """So that a site can leave out any of them, and a user can contradict none."""
    more = {
        "after": (After(job_id=JOBS[name][0]),),
        "array": CHAIN,
        "early_signal": EarlySignal(signal="USR1", seconds=60),
        "exclude": "n1",
    }
    scheduler = SCHEDULERS[name]
    cannot = {field for option in scheduler.cannot for field in (*ASKED.get(option, {}),)}
    job = plan(
        scheduled(name),
        account="a",
        queue="q",
        walltime_s=60,
        **{key: value for key, value in more.items() if key not in cannot},
    )
    placed = {"-l place"}  # the plan gives way to a site's own
    assert {option for text in scheduler.directives(job) for option in scheduler.options_of(text)} - placed <= set(scheduler.owned)


def test_texts_of_the_command_line() -> None:
    assert read_after("4711") == After(job_id="4711") and read_after("4711.pbs:any") == After(job_id="4711.pbs", condition="any")
    assert read_early_signal("SIGUSR1@300") == read_early_signal("USR1@300") == EarlySignal(signal="USR1", seconds=300)
    for text in ("USR1", "USR1@", "USR1@0", "USR1@5m", "usr1@5", "@5"):
        with pytest.raises(ValueError, match="write USR1@300"):
            read_early_signal(text)
    assert read_array("1-5%1") == CHAIN and read_array("07-10%1") == Chain(first=7, last=10)
    for text in ("5", "1-5", "1-5%2", "5-1%1", "3-3%1", "1,3%1", "1-9:2%1", "", "a-b%1"):
        with pytest.raises(ValueError, match=r"write \d-\d%1"):
            read_array(text)
    with pytest.raises(ValueError, match="write JOB"):
        read_after("4711:maybe")


def test_the_command_line_reaches_the_script(desk: Desk) -> None:
    facts = ("--site-set", "node.gpus=4", "--site-set", "software.python=/bin/sh")
    more = (
        "--after",
        "7:any",
        "--array",
        "1-5%1",
        "--set",
        "save=x",
        "--exclude",
        "n[1-2]",
        "--signal",
        "USR1@60",
        "--requeue",
        "--directive=--mem=0",
    )
    script = desk("submit", "-s", "slurm", *facts, *more, "--dry-run", "my.yml").out
    for text in ("--dependency=afterany:7", "--array=1-5%1", "--exclude=n[1-2]", "--signal=B:USR1@60", "--requeue", "--mem=0"):
        assert f"#SBATCH {text}\n" in script


def test_every_mistake_on_the_command_line_is_told_at_once(desk: Desk) -> None:
    said = desk("submit", "-s", "nowhere", "--time", "10", "--signal", "x", "--after", "7:y", "my.yml")
    assert said.code == 2
    assert all(where in said.err for where in ("--site nowhere", "--time", "--signal", "--after"))
    said = desk("submit", "-s", "slurm", "--nodes", "0", "--queue", "a b", "--dry-run", "my.yml")
    assert "--nodes: 0 nodes" in said.err and "--queue" in said.err and "node.gpus" in said.err
