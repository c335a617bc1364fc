"""What DeepSpeed has counted of its own collectives; changes when DeepSpeed shows it otherwise."""

from __future__ import annotations

from model.config import RunConfig


def show_collectives(config: RunConfig) -> None:
    """Print the table of ``comms_logger`` on the first rank, if it is asked for.  Collective; once, at the end of a run.

    Without it DeepSpeed would only gather numbers, and with ``verbose`` print a line for each.
    """
    logger = config.deepspeed.comms_logger
    if logger is not None and logger.enabled:
        from deepspeed import comm

        comm.log_summary()
