"""Where the argv of our runners is another one than that of DeepSpeed's, and why.  Read by docs/launching.md and by the test that
compares both, word by word.

Changes when one of ours or of DeepSpeed's does (deepspeed/launcher/multinode_runner.py, 0.19.8).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Words of DeepSpeed's that ours have not, and the other way round."""

    launchers: tuple[str, ...]
    """DeepSpeed's names."""
    theirs: str = ""
    ours: str = ""
    why: str
    where: str = ""
    """Only in some cases: *filtered* hosts, or a module."""


_HYDRA = ("mpich", "impi", "mvapich")

DIFFERENCES = (
    Difference(
        launchers=("slurm",),
        theirs="-n {ranks}",
        ours="--nodes={nodes} --ntasks={ranks} --ntasks-per-node={slots} --distribution=block",
        why="-n alone lets Slurm spread ranks unevenly, and not in the order of nodes",
    ),
    Difference(
        launchers=("slurm",),
        theirs="--nodelist {hosts} --nodes {nodes}",
        ours="--nodelist={hosts}",
        where="filtered",
        why="the number of nodes stands there already",
    ),
    Difference(
        launchers=("slurm",),
        theirs="--nodes {nodes}",
        ours="--nodelist={hosts}",
        where="fewer",
        why="the first hosts are meant, and Slurm would take any",
    ),
    Difference(
        launchers=("slurm",),
        theirs="--gpus-per-node {slots}",
        where="num_gpus",
        why="ranks of a node are its slots already; the step has all GPUs of its job",
    ),
    Difference(
        launchers=("slurm",),
        ours="--kill-on-bad-exit=1",
        why="else one failed rank leaves the others waiting until the time limit",
    ),
    Difference(launchers=("slurm",), ours="--label", why="every line carries its rank"),
    Difference(launchers=("slurm",), ours="-m", why="DeepSpeed drops --module, and Python would look for a file of that name"),
    Difference(
        launchers=("openmpi",), theirs="-hostfile {their_hostfile}", ours="--hostfile {hostfile}", why="the hosts that are used"
    ),
    Difference(
        launchers=("openmpi",),
        theirs="--mca btl ^openib --mca btl_tcp_if_include eth0",
        why="supercomputers have no eth0; Open MPI's own choice, or the site's launcher_args",
    ),
    Difference(launchers=("openmpi",), theirs="-x UCX_TLS=tcp", why="it would turn the fast network off"),
    Difference(
        launchers=("openmpi",),
        ours="--map-by ppr:{slots}:node --bind-to none",
        why="as many ranks on each host; Open MPI's default would bind a rank and its threads to one core",
    ),
    Difference(launchers=("openmpi",), ours="--tag-output", why="every line carries its rank"),
    Difference(
        launchers=("mpich",), theirs="mpirun", ours="mpiexec", why="the program's name in MPI's standard; mpirun may be another's"
    ),
    Difference(launchers=_HYDRA[:2], theirs="-hosts {hosts}", ours="-f {nodefile}", why="a line of a thousand names is too long"),
    Difference(
        launchers=("mvapich",),
        theirs="--hostfile /tmp/deepspeed_mvapich_hostfile",
        ours="-f {nodefile}",
        why="a file in /tmp is another user's, too",
    ),
    Difference(launchers=("mvapich",), theirs="-np {ranks}", ours="-n {ranks}", why="one name for all relatives of Hydra"),
    Difference(
        launchers=("mpich", "impi"),
        theirs="-genv MASTER_ADDR {address} -genv MASTER_PORT {port} -genv WORLD_SIZE {ranks} -genv LOCAL_SIZE {slots}",
        why="they are in the environment (-genvall); the size is Hydra's own PMI_SIZE",
    ),
    Difference(launchers=_HYDRA, ours="-genvall", why="the whole environment goes along; no value stands in an argv"),
    Difference(launchers=("mpich", "mvapich"), ours="-bind-to none", why="said, where sites and versions differ in their default"),
    Difference(launchers=("mvapich",), ours="-genv MV2_ENABLE_AFFINITY 0", why="DeepSpeed exports the same variable"),
    Difference(launchers=_HYDRA, ours="-prepend-rank", why="every line carries its rank"),
    Difference(launchers=_HYDRA, ours="{abort}", why="Hydra would wait for the other ranks when one fails"),
    Difference(
        launchers=("mpich",),
        theirs="{helper} --launcher mpich --module",
        why="model/ranks.py reads Hydra's variables itself",
    ),
    Difference(launchers=("impi",), ours="-n {ranks}", why="one command for all ranks, instead of one part of it each"),
    Difference(
        launchers=("pdsh",),
        theirs="-f 1024 -w {hosts}",
        ours="-b -f {nodes} -w ^{nodefile}",
        why="one signal ends all; all at once; a line of a thousand names is too long",
    ),
    Difference(launchers=("pdsh",), ours="-R ssh", why="DeepSpeed says the same with PDSH_RCMD_TYPE"),
    Difference(
        launchers=("pdsh",),
        theirs="cd {cwd};",
        ours="sh $node_sh ranks",
        why="a file with the job's variables, which only its owner can read",
    ),
    Difference(
        launchers=("pdsh",), theirs="--world_info={world_info}", ours="--world_info=$world_info", why="it stands in that file"
    ),
    Difference(
        launchers=("pdsh",),
        theirs="--master_addr={address} --master_port={port}",
        ours="--master_addr {address} --master_port {port}",
        why="two words instead of one",
    ),
    Difference(launchers=("pdsh",), theirs="--enable_each_rank_log=None", why="it is the default"),
    Difference(launchers=("pdsh",), ours="--quiet --no_local_rank", why="ranks read LOCAL_RANK; the lines are the training's"),
)
"""Beside these: exported variables travel by their names or in the environment, never with their values in an argv; Intel MPI's
part of the command for each rank (``-n 1 -env RANK … :``) is one for all."""
