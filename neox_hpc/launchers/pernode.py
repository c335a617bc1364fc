"""DeepSpeed's launcher of one node, started once a node: it starts a process a rank and ends all of its own when one fails.

Sources: deepspeed/launcher/launch.py, 0.19.8; pdsh(1) of pdsh 2.31.
"""

from __future__ import annotations

import base64
import json
import shlex

from neox_hpc.launchers.interface import Owned, Shell, Step

_LAUNCH = {
    **dict.fromkeys(("--node_rank", "--world_info", "--master_addr", "--master_port"), "remove it: the job knows its own nodes"),
    **dict.fromkeys(("--module", "--no_python", "--no_local_rank"), "remove it: the plan starts the training"),
}

_NODE_RANK = "--node_rank=%n"

OWNED_LOCAL = Owned(flags=_LAUNCH, abbreviates=True)

OWNED_PDSH = Owned(
    flags={
        **dict.fromkeys(("-w", "-x", "-a", "-g"), "remove it: the job writes the list of its own nodes"),
        **dict.fromkeys(("-R", "-S", "-b", "-N"), "remove it: ssh is used, a failed node ends the others, lines carry their node"),
    },
    glued=True,
)


def local(step: Step) -> list[str]:
    """``[container] python -m deepspeed.launcher.launch … --module MODULE``."""
    if step.node_rank is not None:
        return _launch(step, Shell("$world_info"), f"--node_rank={step.node_rank}", *step.launcher_args)
    assert step.nodes == 1, "plan.py gives this launcher one node"
    return _launch(step, world_info(step), *step.launcher_args)


def pdsh(step: Step) -> list[str]:
    """``pdsh … sh NODE.SH ranks python -m deepspeed.launcher.launch …``.

    The far shell knows nothing of the job and need not be a POSIX one: it runs ``$node_sh`` (templates/launch/pdsh.sh.j2), which
    holds the job's variables, evaluates the command, and ends it when another node fails or pdsh is gone.  A program that is no
    training runs to its end.
    -S: the exit status of the node that failed comes back; -b: one signal ends all; %n: the node's number.
    """
    return [
        "pdsh",
        *("-R", "ssh"),
        *("-S", "-b"),
        *("-f", str(step.nodes)),  # all at once
        *("-w", type(step.nodefile)(f"^{step.nodefile}")),
        *step.launcher_args,
        *("sh", Shell("$node_sh"), "program" if step.program else "ranks"),
        *map(_far, _launch(step, Shell("$world_info"), _NODE_RANK)),
    ]


def world_info(step: Step) -> str:
    """Host -> device ids, as DeepSpeed's launcher takes it: JSON in URL-safe base64."""
    return base64.urlsafe_b64encode(json.dumps({"localhost": devices(step)}).encode()).decode()


def devices(step: Step) -> list[int | str]:
    """The devices of a node that the ranks use."""
    return [int(text) if text.isdigit() else text for text in step.gpu_ids] or list(range(step.ranks_per_node))


def local_note(step: Step) -> str:
    """What the base64 text says."""
    if step.node_rank is not None:
        return f"node {step.node_rank} of {step.nodes}, each started by itself; world_info names the devices of all"
    return f"world_info is {json.dumps({'localhost': devices(step)})}"


def _launch(step: Step, world: str, *more: str) -> list[str]:
    if step.program:
        return list(step.program)
    return [
        *step.container,
        *(step.python, "-u", "-m", "deepspeed.launcher.launch"),
        type(world)(f"--world_info={world}"),
        *("--master_addr", step.master_addr),
        *("--master_port", step.master_port),
        *more,
        "--quiet",
        "--no_local_rank",  # ranks read LOCAL_RANK
        "--module",
        step.module,
        *step.module_args,
    ]


def _far(word: str) -> str:
    """A word that comes through pdsh, which reads %n in it, and the far shell, to be evaluated by node.sh."""
    if word == _NODE_RANK:
        return word
    if isinstance(word, Shell):
        return Shell(_as_it_is(f"'\"{word}\"'".replace("%", "%%")))
    return shlex.quote(shlex.quote(word)).replace("%", "%%")


def _as_it_is(text: str) -> str:
    """Text in the double quotes of the job's shell, which is to leave it alone."""
    for special in '\\$`"':
        text = text.replace(special, f"\\{special}")
    return text
