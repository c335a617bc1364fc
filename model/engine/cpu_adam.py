"""DeepSpeed's Adam on the CPU, and its compiled operation, which is built ahead: never in a job.

    python -m model.engine.cpu_adam /path/to/cpu_adam.so

builds it once, in two minutes, where a C++ compiler and ninja are, on the processors on which the job will run (it is built for the
processor that it is built on); ``neox_hpc: {cpu_adam_op: /path/to/cpu_adam.so}`` tells the job.
Changes when DeepSpeed finds its operations in another way.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import torch

NAME = "cpu_adam"
FIX = (
    "  fix: build it, `python -m model.engine.cpu_adam FILE.so`, and write neox_hpc: {cpu_adam_op: FILE.so}; or train with torch's "
    "Adam, deepspeed_extra_args: {zero_force_ds_cpu_optimizer: false}"
)


def make_cpu_adam(
    groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float, adam_w_mode: bool
) -> torch.optim.Optimizer:
    """DeepSpeed's CPUAdam.  Its operation has been loaded (:func:`load_operation`)."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    made: torch.optim.Optimizer = DeepSpeedCPUAdam(groups, lr=lr, betas=betas, eps=eps, adamw_mode=adam_w_mode)
    return made


def load_operation(file: str | None) -> None:
    """Give DeepSpeed its built operation, so that it does not compile one.

    Raises:
        ValueError: there is none, or it is of another torch or processor; the message says how to build it.
    """
    from deepspeed.accelerator import get_accelerator
    from deepspeed.git_version_info import accelerator_name, installed_ops
    from deepspeed.ops.op_builder.builder import OpBuilder

    if NAME in OpBuilder._loaded_ops:
        return
    if file is None:
        if installed_ops.get(NAME, False) and accelerator_name == get_accelerator()._name:
            return  # DeepSpeed was installed with DS_BUILD_CPU_ADAM=1
        raise ValueError(f"optimizer.type: CPUAdam's operation {NAME} is not built, and a job compiles nothing\n{FIX}")
    loader = ExtensionFileLoader(NAME, file)
    spec = spec_from_loader(NAME, loader)
    assert spec is not None
    try:
        module = module_from_spec(spec)
        loader.exec_module(module)
    except ImportError as error:
        raise ValueError(f"neox_hpc.cpu_adam_op: {file} cannot be loaded: {error}\n{FIX}") from error
    OpBuilder._loaded_ops[NAME] = module


def build_operation(file: Path) -> None:
    """Compile the operation and put it at ``file``."""
    from deepspeed.ops.op_builder import CPUAdamBuilder

    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCH_EXTENSIONS_DIR"] = folder
        built = CPUAdamBuilder().jit_load(verbose=False).__file__
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(built, file)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("python -m model.engine.cpu_adam FILE.so")
    build_operation(Path(sys.argv[1]))
    print(f"built {sys.argv[1]}; write neox_hpc: {{cpu_adam_op: {Path(sys.argv[1]).resolve()}}}")
