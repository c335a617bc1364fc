"""A training run, from its configuration to its last checkpoint."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch

from model.agreement import from_all_ranks, from_first_rank
from model.checkpoint import save_checkpoint
from model.config import BatchSizes, ConfigError, RunConfig, RunFile, step_flops
from model.config.schedule import Schedule
from model.data.batch import Batch
from model.data.loader import Split, Splits, open_data
from model.engine.fragments import fragments_of, progress_of
from model.engine.reports import show_collectives
from model.engine.start import choose_device, join_ranks, leave_ranks
from model.engine.trainer import StepResult, Trainer
from model.gpt import GPT
from model.layers.positions import kept_frequencies
from model.monitor.console import Console
from model.monitor.metrics import MetricsFile
from model.mup_base import read_base_shapes, write_base_shapes
from model.mup_check import check_coordinates, slopes, write_coordinates
from model.parallel.groups import Groups, make_groups
from model.ranks import Ranks
from model.resume import begin_run
from model.tokenizers import Tokenizer, build_tokenizer


def train_run(run: RunFile, run_dir: Path, ranks: Ranks) -> None:
    """Train ``run`` on this rank, beginning from its newest checkpoint if it has one.

    Raises:
        ConfigError: it asks for what does not train yet.
        ValueError: data, tokenizer, checkpoint or layout do not fit; the message says which.
        FloatingPointError: the loss is no number any more.
    """
    refusals = run.config.untrained()
    if refusals:
        raise ConfigError(refusals)
    if run.world_size not in (None, ranks.world_size):
        raise ValueError(f"the run was planned for {run.world_size} ranks, {ranks.world_size} were started")
    device = choose_device(run.device, ranks)
    join_ranks(device, run.config.training.distributed_backend, _timeout(run.config))
    train_joined(run, run_dir, ranks, device)
    leave_ranks()  # a rank that fails does not: first it says why


def train_joined(run: RunFile, run_dir: Path, ranks: Ranks, device: torch.device) -> None:
    """The same, once this rank has joined the others."""
    config = run.config
    layout = config.layout(ranks.world_size)
    batch = config.batch_sizes(layout)
    tokenizer = build_tokenizer(config.tokenizer)
    keys = config.parallelism
    groups = make_groups(
        layout,
        ranks.rank,
        sequence_parallel=keys.sequence_parallel,
        reduce_in_fp32=config.deepspeed.fp32_allreduce,
        timeout=_timeout(config),
    )
    _agree(run, groups)
    if config.maximal_update.save_base_shapes:
        _say_once(f"saved the base shapes of muP: {from_first_rank(lambda: write_base_shapes(config), groups)}", groups)
        return
    data = _open_data(config, batch, run_dir, groups, tokenizer)
    if config.maximal_update.coord_check:
        from_first_rank(lambda: _check_coordinates(config, data, tokenizer.vocab_size, run_dir, device), groups)
        return
    base = from_first_rank(lambda: read_base_shapes(config), groups)
    network = GPT(config, tokenizer.vocab_size, groups, device=device, base=base)
    trainer = Trainer(network, config, batch, groups, device)
    _Run(run, run_dir, batch, groups, data, trainer).train()


@dataclass(frozen=True)
class _Run:
    """Everything a run has while it trains."""

    run: RunFile
    run_dir: Path
    batch: BatchSizes
    groups: Groups
    data: Splits
    trainer: Trainer

    def train(self) -> None:
        config = self.run.config
        last = config.training.train_iters
        assert last is not None, "open_data has refused a run without train_iters"
        done, schedule = begin_run(
            config, self.run_dir, self.groups, self.trainer.engine, _say if self.groups.rank == 0 else _keep_quiet
        )
        every = config.training.exit_interval
        stop = last if every is None else min(last, (done // every + 1) * every)  # GPT-NeoX: at its next multiple
        with Console(rank=self.groups.rank, interval=config.logging.log_interval, last_step=last, begin_step=done) as console:
            console.table("implementations", self.trainer.model.implementations.rows())
            layout = self.groups.layout
            cut = f"tensor {layout.tensor} x pipe {layout.pipe} x data {layout.data}"
            console.say(f"begin at step {done} of {last}, {cut}, {config.precision}, ZeRO-{config.zero_stage}")
            metrics = MetricsFile(self.run_dir / "metrics.jsonl", begin_step=done) if self.groups.rank == 0 else None
            saved = done
            if done == 0 and 0 in (config.checkpoints.extra_save_iters or ()):
                self._save(0, schedule, console)
            for step in range(done, stop):
                self._step(step, schedule.rate(step), console, metrics)
                if (step + 1) % config.training.eval_interval == 0 or step + 1 == stop:
                    self._evaluate("validation", self.data.valid, step + 1, console, metrics)
                if self._saves_at(step + 1):
                    saved = self._save(step + 1, schedule, console)
            if config.checkpoints.save is not None and saved != stop and stop > done:
                self._save(stop, schedule, console)
            if done < stop == last:
                self._evaluate("test", self.data.test, stop, console, metrics)
            show_collectives(config)
            console.say(f"finished at step {max(done, stop)}")
            if metrics is not None:
                metrics.close()

    def _step(self, step: int, rate: float, console: Console, metrics: MetricsFile | None) -> None:
        """Optimizer step ``step`` (0 is the first) at learning rate ``rate``."""
        config = self.run.config
        torch.manual_seed(_fused_dropout_seed(config.training.seed, step, self.groups.rank))
        begin = time.perf_counter()
        first = step * self.batch.accumulation
        batches = (self.data.train.batch(first + i, self.groups.data_rank) for i in range(self.batch.accumulation))
        try:
            result = self.trainer.train_step(batches, rate)
        except FloatingPointError as error:
            raise FloatingPointError(f"step {step + 1}: {error}") from error
        if metrics is not None:
            line = self._line(step + 1, result, time.perf_counter() - begin)
            metrics.write(line)
            console.step(line)

    def _line(self, number: int, result: StepResult, seconds: float) -> dict[str, float | int]:
        config, layout = self.run.config, self.groups.layout
        vocab = self.trainer.model.padded_vocab_size
        per_rank = step_flops(config, self.batch.train, vocab, recomputed=True) / seconds / layout.world_size / 1e12
        line: dict[str, float | int] = {
            "step": number,
            "loss": result.loss,
            "lr": result.rate,
            "grad_norm": result.grad_norm,
            "step_time_s": seconds,
            "tokens_per_s": self.batch.train * config.architecture.seq_length / seconds,
            "tflops_per_rank": per_rank,
        }
        if config.logging.peak_theoretical_tflops is not None:
            model_flops = step_flops(config, self.batch.train, vocab, recomputed=False)
            line["mfu"] = model_flops / seconds / layout.world_size / 1e12 / config.logging.peak_theoretical_tflops
        if result.loss_scale is not None:
            line |= {"loss_scale": result.loss_scale, "skipped": int(result.skipped)}
        return line

    def _evaluate(self, name: str, split: Split | None, number: int, console: Console, metrics: MetricsFile | None) -> None:
        rounds = self.run.config.training.eval_iters
        if split is None or not rounds:
            return
        loss = self.trainer.validate(list(_rounds(split, rounds, self.groups.data_rank)))
        console.say(f"step {number}: {name} loss {loss:.4f}")
        if metrics is not None:
            metrics.write({"step": number, f"{name}_loss": loss})

    def _saves_at(self, number: int) -> bool:
        keys = self.run.config.checkpoints
        if keys.save is None:
            return False
        if keys.extra_save_iters and number in keys.extra_save_iters:
            return True
        if keys.checkpoint_factor is None:
            return False
        if keys.checkpoint_scale == "linear":
            return number % int(keys.checkpoint_factor) == 0
        power: float = 1
        while round(power) < number:
            power *= keys.checkpoint_factor
        return round(power) == number

    def _save(self, number: int, schedule: Schedule, console: Console) -> int:
        config, module = self.run.config, self.trainer.model
        begin = time.perf_counter()
        path = save_checkpoint(
            Path(str(config.checkpoints.save)),
            number,
            fragments_of(self.trainer.engine, config),
            progress_of(self.trainer.engine),
            self.groups,
            run=self.run.name,
            vocab_size=module.vocab_size,
            padded_vocab_size=module.padded_vocab_size,
            precision=config.precision,
            optimizer=config.optimization.optimizer.type,
            schedule=schedule if config.optimization.scheduler is None else None,
            rotary_frequencies=kept_frequencies(config),
            keep=config.checkpoints.keep_last_n_checkpoints,
        )
        console.say(f"step {number}: saved {path} in {time.perf_counter() - begin:.1f} s")
        return number


def _say(message: str) -> None:
    print(message, flush=True)


def _say_once(message: str, groups: Groups) -> None:
    if groups.rank == 0:
        _say(message)


def _keep_quiet(message: str) -> None:
    pass


def _rounds(split: Split, rounds: int, data_rank: int) -> Iterator[Batch]:
    for number in range(rounds):
        yield split.batch(number, data_rank)


def _open_data(config: RunConfig, batch: BatchSizes, run_dir: Path, groups: Groups, tokenizer: Tokenizer) -> Splits:
    """The first rank builds the sample index, the others wait for it."""
    tokens = {"eod": tokenizer.eod, "vocab_size": tokenizer.vocab_size}

    def build() -> None:
        open_data(config, batch, run_dir / "index", build=True, **tokens)

    from_first_rank(build, groups)
    return open_data(config, batch, run_dir / "index", build=False, **tokens)


def _check_coordinates(config: RunConfig, data: Splits, vocab_size: int, run_dir: Path, device: torch.device) -> None:
    """In place of training, on the first rank: on every layout the same is trained."""
    points = check_coordinates(config, data.train.batch(0, 0), vocab_size, device)
    for (parametrization, activation), slope in slopes(points).items():
        _say(f"{parametrization:>10} {activation:<16} moves as width^{slope:+.2f}")
    _say(f"saved {write_coordinates(points, run_dir)}; neox-hpc plot draws it")


def _agree(run: RunFile, groups: Groups) -> None:
    """All ranks have the same configuration, or the first that differs is named.

    Raises:
        ValueError: they have not.
    """
    mine = hashlib.sha256(run.model_dump_json().encode()).hexdigest()
    everyone = from_all_ranks((mine, os.uname().nodename), groups)
    for rank, (theirs, host) in enumerate(everyone):
        if theirs != everyone[0][0]:
            first = everyone[0][1]
            raise ValueError(f"rank {rank} on {host} has another run.json than rank 0 on {first}: is the file system shared?")


def _timeout(config: RunConfig) -> timedelta:
    return timedelta(minutes=config.own.neox_hpc.collective_timeout_minutes)


def _fused_dropout_seed(seed: int, step: int, rank: int) -> int:
    """For the dropout inside fused attention, which draws from torch's generator; resuming needs no saved random state."""
    digest = hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()
    return int.from_bytes(digest[:7], "little")
