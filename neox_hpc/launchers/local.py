"""DeepSpeed's launcher of one node: it starts a process a rank and ends all when one fails.

Source: deepspeed/launcher/launch.py, 0.19.8.
"""

from __future__ import annotations

import base64
import json

from neox_hpc.launchers.interface import Step


def local(step: Step) -> list[str]:
    """``[container] python -m deepspeed.launcher.launch … --module MODULE``."""
    assert step.nodes == 1, "plan.py gives this launcher one node"
    return [
        *step.container,
        *(step.python, "-u", "-m", "deepspeed.launcher.launch"),
        f"--world_info={world_info(step)}",
        *("--master_addr", step.master_addr),
        *("--master_port", step.master_port),
        *step.launcher_args,
        "--quiet",
        "--no_local_rank",  # ranks read LOCAL_RANK
        "--module",
        step.module,
        *step.module_args,
    ]


def world_info(step: Step) -> str:
    """Host -> device ids, as DeepSpeed's launcher takes it: JSON in URL-safe base64."""
    return base64.urlsafe_b64encode(_slots(step).encode()).decode()


def local_note(step: Step) -> str:
    """What the base64 text says."""
    return f"world_info is {_slots(step)}"


def _slots(step: Step) -> str:
    ids = [int(text) if text.isdigit() else text for text in step.gpu_ids] or list(range(step.ranks_per_node))
    return json.dumps({"localhost": ids})
