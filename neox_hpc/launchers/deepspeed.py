"""Every launcher as a runner of DeepSpeed's, and the parts of DeepSpeed's launcher that ``neox-hpc launch`` stands on.

Importing it imports torch (2 s): late only.  Changes when DeepSpeed's launcher does: deepspeed/launcher/runner.py and
multinode_runner.py, 0.19.8.  Nothing of DeepSpeed is changed.
"""

from __future__ import annotations

import os
import shlex
import shutil
from argparse import Namespace
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

from deepspeed.accelerator import get_accelerator
from deepspeed.launcher import runner
from deepspeed.launcher.multinode_runner import MultiNodeRunner

from neox_hpc.launchers import LAUNCHERS, PER_NODE
from neox_hpc.launchers.interface import Step

PROGRAMS = {
    "srun": "srun",
    "jsrun": "jsrun",
    "flux": "flux",
    "openmpi": "mpirun",
    "mpich": "mpiexec",
    "pals": "mpiexec",
    "impi": "mpirun",
    "mvapich": "mpirun",
    "pdsh": "pdsh",
}
"""Launcher -> the program that it is.  ``local`` needs none."""

ASKS_SCHEDULER = {"srun": "--nodelist={}", "flux": "--requires=hosts:{}", "jsrun": None}
"""Launchers that take no list of hosts, and their option for a part of the job's."""

Active = Mapping[str, Sequence[int]]


class Runner(MultiNodeRunner):  # type: ignore[misc]
    """One of our launchers, where DeepSpeed expects a runner.  ``runner_of`` makes the classes."""

    launcher: str
    step: Step
    """What DeepSpeed's arguments do not say: Python, container, cores, files."""

    def __init__(self, args: Namespace, world_info_base64: str, resource_pool: Mapping[str, int] | None = None) -> None:
        super().__init__(args, world_info_base64)
        self.resource_pool = resource_pool

    @property
    def name(self) -> str:
        return self.launcher

    def backend_exists(self) -> bool:
        return self.launcher not in PROGRAMS or shutil.which(PROGRAMS[self.launcher]) is not None

    def validate_args(self) -> None:
        """Raises ValueError: what is to run is no module."""
        if not self.args.module or self.args.no_python:
            raise ValueError(f"{self.launcher} starts Python modules: write --module NAME")

    def add_export(self, key: str, var: str) -> None:
        """The value as it is: it travels in the environment, and no shell would take quotes away."""
        self.exports[key.strip()] = var

    def get_cmd(self, environment: MutableMapping[str, str], active_resources: Active) -> list[str]:
        """The argv; what is exported goes into ``environment``.

        Raises:
            ValueError: hosts have different numbers of slots, or the launcher cannot choose devices.
        """
        self.validate_active_resources(active_resources)
        environment.update(self.exports)
        if self.launcher == "pdsh" and self.args.ssh_port is not None:
            given = environment.get("PDSH_SSH_ARGS_APPEND", "")
            environment["PDSH_SSH_ARGS_APPEND"] = f"{given} -p {self.args.ssh_port}".strip()
        if self.launcher == "srun":
            environment["SLURM_EXPORT_ENV"] = "ALL"  # a job submitted with --export=NONE leaves NONE here
        step = replace(
            self.step,
            nodes=len(active_resources),
            ranks_per_node=len(next(iter(active_resources.values()))),
            master_addr=self.args.master_addr or self.step.master_addr,
            env=tuple(dict.fromkeys((*self.step.env, *self.exports))),
            launcher_args=(*self.step.launcher_args, *shlex.split(self.args.launcher_args), *self._only(active_resources)),
            module=self.args.user_script,
            module_args=tuple(self.user_arguments),
        )
        return LAUNCHERS[self.launcher](step)

    def _only(self, active_resources: Active) -> list[str]:
        """How a launcher that asks its scheduler for hosts keeps to a part of them; the others read a list of hosts."""
        if self.launcher not in ASKS_SCHEDULER or self.resource_pool is None or set(active_resources) == set(self.resource_pool):
            return []
        option = ASKS_SCHEDULER[self.launcher]
        if option is None:
            raise ValueError(f"{self.launcher} cannot be told which of {len(self.resource_pool)} nodes to use")
        return [option.format(",".join(active_resources))]

    @classmethod
    def validate_active_resources(cls, active_resources: Active) -> None:
        """Raises ValueError as DeepSpeed's Slurm runner does; for every launcher that starts ranks itself."""
        counts = {host: len(slots) for host, slots in active_resources.items()}
        if len(set(counts.values())) != 1:
            raise ValueError(f"{cls.launcher} needs as many slots on every host, got {counts}")
        for host, slots in active_resources.items():
            if cls.launcher not in PER_NODE and list(slots) != list(range(len(slots))):
                raise ValueError(f"{cls.launcher} cannot choose devices by number: {list(slots)} of {host}")


def runner_of(launcher: str, step: Step) -> type[Runner]:
    """The class of a launcher, for one step."""
    return type(f"{launcher.capitalize()}Runner", (Runner,), {"launcher": launcher, "step": step})


def read_args(words: Sequence[str], script: str, script_args: Sequence[str]) -> Namespace:
    """DeepSpeed's own reading of its command line; a module is started."""
    args = runner.parse_args([*words, "--module", script])
    args.user_args = list(script_args)  # as they are: some are words that the job's shell expands
    return args


def choose_hosts(pool: Mapping[str, int], args: Namespace) -> dict[str, list[int]]:
    """Host -> devices, after --include, --exclude, --num_nodes and --num_gpus.

    Raises:
        ValueError: they name what is not there, or exclude each other.
    """
    active = runner.parse_inclusion_exclusion(pool, args.include, args.exclude)
    return dict(runner.apply_num_nodes_and_gpus(active, args.num_nodes, args.num_gpus))


def world_info(active: Active) -> str:
    """Host -> devices, as DeepSpeed's launcher of one node takes it."""
    return str(runner.encode_world_info({host: list(slots) for host, slots in active.items()}))


def exported_names(environ: Mapping[str, str]) -> list[str]:
    """Variables that reach the ranks on every host, by DeepSpeed's rules."""
    begun = tuple(runner.EXPORT_ENVS + get_accelerator().export_envs())
    left_out = {name for key, names in runner.EXCLUDE_ENVS.items() if key in environ for name in names}
    return [name for name in environ if name.startswith(begun) and name not in left_out]


def environment_files() -> list[str]:
    """Where .deepspeed_env may stand: the home directory, then this one, whose values count."""
    return [os.path.join(path, runner.DEEPSPEED_ENVIRONMENT_NAME) for path in runner.DEEPSPEED_ENVIRONMENT_PATHS]


def make_runner(launcher: str, step: Step, args: Namespace, active: Active, pool: Mapping[str, int]) -> Any:
    """The runner of a launcher."""
    return runner_of(launcher, step)(args, world_info(active), dict(pool))
