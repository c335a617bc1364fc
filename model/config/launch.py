"""Keys by which GPT-NeoX's launcher is told where to run, and what it tells the ranks."""

from __future__ import annotations

from typing import Any, Literal

from model.config.keys import Section, live, retired, runtime

_RANKS = "ranks learn it from their launcher"
_DERIVED = "it is derived from other keys"


class Launch(Section):
    """Hosts, ports and launcher.  They count for ``neox-hpc launch``; under a scheduler site and job decide, and planning says once
    which keys they replace.
    """

    hostfile: str | None = live(None, doc="Hosts and slots, where no scheduler gives them; else the job writes its own.")
    include: str | None = live(None, doc="Hosts (and slots) to use: NAME[:SLOT,SLOT][@NAME…].")
    exclude: str | None = live(None, doc="Hosts (and slots) to leave out.")
    num_nodes: int = live(-1, ge=-1, doc="Nodes to use; -1: all.")
    num_gpus: int | None = live(None, ge=1, doc="GPUs of each node to use.")
    global_num_gpus: int | None = live(None, ge=1, doc="GPUs of the whole job.")
    master_port: int = live(29500, ge=1, le=65535, doc="Port of the rendezvous; at its default every start has one of its own.")
    master_addr: str | None = live(None, doc="Host of the rendezvous; else the first one.")
    launcher: Literal["pdsh", "openmpi", "mvapich", "mpich", "impi", "slurm", "jsrun", "flux", "pals", "srun", "local"] = live(
        "pdsh", doc="What starts ranks on the hosts of a hostfile; slurm is srun."
    )
    force_multi: bool = live(False, doc="Use the launcher on this machine alone, too.")
    no_ssh_check: bool = live(False, doc="Do not try to reach the first host by ssh before.")
    deepspeed_mpi: bool = live(
        False, doc="Where the launcher sets no variable that is known, ranks ask MPI (mpi4py) which they are."
    )
    deepspeed_slurm: bool = live(False, doc="Ranks are started by srun: as force_multi.")
    autotuning_run: str | None = retired(
        None, doc="tune or run.", why="there is no autotuning here: `neox-hpc plan` shows what fits"
    )
    comment: str | None = live(None, doc="Comment of the batch job.")
    account: str | None = live(None, doc="Account that pays for the batch job.")


class RunTime(Section):
    """What GPT-NeoX keeps in its arguments while it runs; no file may set it."""

    world_size: int | None = runtime(None, doc="Ranks of the job.", why=_RANKS)
    rank: int | None = runtime(None, doc="This rank.", why=_RANKS)
    local_rank: int | None = runtime(None, doc="This rank on its node.", why=_RANKS)
    is_pipe_parallel: bool | None = runtime(None, doc="Pipeline parallelism is on.", why="pipe_parallel_size says it")
    lazy_mpu_init: bool | None = runtime(None, doc="Process groups are made later.", why="they are made by the training")
    user_script: str | None = runtime(None, doc="The training script.", why="neox-hpc starts its own")
    config_files: dict[str, Any] | None = runtime(None, doc="Text of the configuration files.", why="the run directory holds them")
    do_train: bool | None = runtime(None, doc="There is training data.", why="the data paths say it")
    do_valid: bool | None = runtime(None, doc="There is validation data.", why="the data paths say it")
    do_test: bool | None = runtime(None, doc="There is test data.", why="the data paths say it")
    padded_vocab_size: int | None = runtime(None, doc="Rows of the embedding.", why=_DERIVED)
    tokenizer: Any = runtime(None, doc="The open tokenizer.", why="it is an object in memory")
    adlr_autoresume_object: Any = runtime(None, doc="A cluster's resume hook.", why="it is an object in memory")
    curriculum_seqlen: int | None = runtime(None, doc="Sequence length of this step.", why="the curriculum sets it")
    optimizer_type: str | None = runtime(None, doc="The optimizer's name.", why="write optimizer: {type: …}")
    zero_stage: int | None = runtime(None, doc="The ZeRO stage.", why="write zero_optimization: {stage: …}")
    lr: float | None = runtime(None, doc="The peak learning rate.", why="write optimizer: {params: {lr: …}}")
    batch_size: int | None = runtime(None, doc="The micro-batch.", why="write train_micro_batch_size_per_gpu")
    dynamic_loss_scale: bool | None = runtime(None, doc="The loss scale moves.", why="write fp16: {loss_scale: 0}")
