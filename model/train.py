"""Train a run: ``python -m model.train run.json``, once per rank.

neox-hpc config show --json my.yml > run.json
torchrun --nproc_per_node 2 -m model.train run.json
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from model.failure import report_failure
from model.mpi import find_place
from model.ranks import likely_rank, set_ranks


def main(argv: list[str] | None = None) -> int:
    """Run one rank; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m model.train", description="Train a run, one process per rank.")
    parser.add_argument("run_file", type=Path, help="run.json; its directory is the run directory")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # some launchers append it; the environment says it too
    arguments = parser.parse_args(argv)
    rank = likely_rank(os.environ)
    try:
        _train(arguments.run_file.resolve())
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return report_failure(error, rank)
    return 0


def _train(run_file: Path) -> None:
    from model.config import read_run

    run = read_run(run_file)
    ranks = find_place(os.environ, mpi=run.config.launch.deepspeed_mpi)
    set_ranks(os.environ, ranks)
    from model.training import train_run  # imports torch: not before the ranks are known

    train_run(run, run_file.parent, ranks)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a rank that failed does not wait for the others in a library's exit handler
