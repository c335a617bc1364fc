"""Keys of trackers and profilers."""

from __future__ import annotations

from typing import Any

from model.config.keys import Section, planned, retired, runtime


class Trackers(Section):
    """Weights & Biases, TensorBoard, Comet."""

    use_wandb: bool | None = planned(None, doc="Log to Weights & Biases.")
    wandb_group: str | None = planned(None, doc="Group of runs.")
    wandb_run_name: str | None = planned(None, doc="Name of the run.")
    wandb_team: str | None = planned(None, doc="Team (entity).")
    wandb_project: str = planned("neox", doc="Project.")
    wandb_host: str = planned("https://api.wandb.ai", doc="Server.")
    wandb_init_all_ranks: bool = planned(False, doc="Every rank logs.")
    tensorboard_dir: str | None = planned(None, doc="Directory of TensorBoard event files.")
    use_comet: bool | None = planned(None, doc="Log to Comet.")
    comet_workspace: str | None = planned(None, doc="Workspace.")
    comet_project: str | None = planned(None, doc="Project.")
    comet_experiment_name: str | None = planned(None, doc="Name of the experiment.")
    comet_tags: tuple[str, ...] | None = planned(None, strict=False, doc="Tags of the experiment.")
    comet_others: dict[str, Any] | None = planned(None, doc="Further values logged once.")
    tensorboard_writer: Any = runtime(None, doc="The open writer.", why="it is an object in memory")
    comet_experiment: Any = runtime(None, doc="The open experiment.", why="it is an object in memory")


class Profiling(Section):
    """What is measured beside the loss."""

    log_dir: str | None = planned(None, doc="Directory of per-host output files (logs/job.out in the run directory has it all).")
    log_grad_pct_zeros: bool = planned(False, doc="Share of zeros in each gradient.")
    log_param_norm: bool = planned(False, doc="Norm of each parameter.")
    log_optimizer_states: bool = planned(False, doc="Norms of the optimizer's moments.")
    log_gradient_noise_scale: bool = planned(False, doc="Estimate the gradient noise scale.")
    gradient_noise_scale_n_batches: int = planned(5, ge=1, doc="Batches in that estimate.")
    gradient_noise_scale_cpu_offload: bool = planned(False, doc="Keep its buffers on the CPU.")
    memory_profiling: bool = planned(False, doc="Record the allocator's history.")
    memory_profiling_path: str | None = planned(None, doc="Directory of that record.")
    profile: bool = planned(False, doc="Trace some steps with torch.profiler.")
    profile_step_start: int = planned(10, ge=0, doc="First traced step.")
    profile_step_stop: int = planned(12, ge=0, doc="Last traced step.")
    char_level_ppl: bool = planned(False, doc="Perplexity per character as well.")
    git_hash: str | None = retired(None, doc="Commit of the code.", why="run.json records the commit of the submit directory")
