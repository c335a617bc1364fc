"""Sample from a trained model: ``python -m model.generate run.json``; changes when prompts or samples have another form.

    python -m model.generate runs/quickstart/run.json --set temperature=0.8 --set maximum_tokens=200

On one rank, or on ``model_parallel_size`` x ``pipe_parallel_size`` of them under a launcher.
Prompts are the lines of ``sample_input_file``; without it
samples begin as a new document.  Samples are written as JSON lines with GPT-NeoX's fields.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import load_weights, newest_checkpoint
from model.config import ConfigError, Layout, RunConfig, RunFile, read_run
from model.engine.start import choose_device, leave_ranks
from model.failure import report_failure
from model.gpt import GPT
from model.mpi import find_place
from model.mup_base import read_base_shapes
from model.parallel.groups import Groups, make_groups
from model.ranks import Ranks, likely_rank, set_ranks
from model.sampling import batches, continue_together, uniforms
from model.tokenizers import Tokenizer, build_tokenizer

TOGETHER = 64
"""Samples in one batch."""

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A line of the output file."""

    context: str
    text: str
    """What was generated, without the context."""
    length: int
    """Tokens of ``text``."""
    finished: bool
    """The model ended the document."""
    message: str | None
    """What went otherwise than asked for."""
    duration_seconds: float
    """Of the whole batch in which it was sampled."""


def main(argv: list[str] | None = None) -> int:
    """Run one rank; return its exit code."""
    arguments = _parser().parse_args(argv)
    rank = likely_rank(os.environ)
    try:
        run_file = arguments.run_file.resolve()
        run = read_run(run_file)
        config = run.config.with_keys(**dict(map(_assignment, arguments.set)))
        generate_run(
            run.model_copy(update={"config": config}),
            run_file.parent,
            find_place(os.environ, mpi=config.launch.deepspeed_mpi),
            arguments.checkpoint,
        )
    except Exception as error:  # noqa: BLE001 (whatever fails, this rank says so itself)
        return report_failure(error, rank)
    finally:
        leave_ranks()
    return 0


def generate_run(run: RunFile, run_dir: Path, ranks: Ranks, checkpoint: Path | None) -> None:
    """Sample what the run's keys ask for, and write it.

    Raises:
        ValueError: a key, the checkpoint, the tokenizer, the prompts or the ranks do not fit; the message says which.
    """
    config = run.config
    if refusals := config.untrained():
        raise ConfigError(refusals)
    tokenizer = build_tokenizer(config.tokenizer)
    prompts = read_prompts(config, run_dir)
    weights = load_weights(find_checkpoint(config, run_dir, checkpoint))
    device = choose_device(run.device, ranks)
    groups = _groups(config, ranks, device)
    network = GPT(config, tokenizer.vocab_size, groups, device=device, weights=weights, base=read_base_shapes(config))
    network.to(device, DTYPES[config.precision]).eval()
    begin = time.perf_counter()
    samples = list(sample(network, tokenizer, prompts, config))
    if ranks.rank == 0:
        path = run_dir / config.generation.sample_output_file
        write_samples(samples, path)
        print(
            f"{len(samples)} samples in {time.perf_counter() - begin:.1f} s: {path}",
            flush=True,
        )


def sample(network: GPT, tokenizer: Tokenizer, prompts: Sequence[str], config: RunConfig) -> Iterator[Sample]:
    """``num_samples`` continuations of every prompt, in the prompts' order."""
    keys, eod, longest = (
        config.generation,
        tokenizer.eod,
        config.architecture.seq_length,
    )
    device = next(network.parameters()).device
    asked = [prompt for prompt in prompts for _ in range(keys.num_samples)]
    contexts = [_begin(tokenizer.encode(prompt), eod) for prompt in asked]
    samples: dict[int, Sample] = {}
    for together in batches(contexts, TOGETHER):
        begin = time.perf_counter()
        length = len(contexts[together[0]])
        room = min(keys.maximum_tokens, max(0, longest - length))
        context_BS = torch.tensor([contexts[number] for number in together], device=device)
        uniform_BM = torch.stack([uniforms(config.training.seed, number, room) for number in together])
        found = continue_together(network, context_BS, uniform_BM, keys, eod=eod)
        duration_s = time.perf_counter() - begin
        for number, continuation in zip(together, found, strict=True):
            cut = room < keys.maximum_tokens and not continuation.finished
            samples[number] = Sample(
                context=asked[number],
                text=tokenizer.decode(continuation.tokens),
                length=len(continuation.tokens),
                finished=continuation.finished,
                message=f"stopped after {length + room} tokens in all: seq_length is {longest}" if cut else None,
                duration_seconds=round(duration_s, 4),
            )
    return (samples[number] for number in range(len(asked)))


def read_prompts(config: RunConfig, run_dir: Path) -> list[str]:
    """The lines of ``sample_input_file`` that are not blank; one empty prompt without it.

    Raises:
        ValueError: the file is missing or empty, or text_gen_type asks for it and it is not given.
    """
    keys = config.generation
    if keys.text_gen_type == "unconditional" or (keys.text_gen_type is None and keys.sample_input_file is None):
        return [""]
    if keys.sample_input_file is None:
        raise ValueError("text_gen_type input-file: sample_input_file is not given\n  fix: --set sample_input_file=PROMPTS.txt")
    path = run_dir / keys.sample_input_file
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"sample_input_file: {path} cannot be read: {error}\n  fix: give a text file, one prompt a line"
        ) from error
    if not any(map(str.strip, lines)):
        raise ValueError(f"sample_input_file: {path} has no prompt\n  fix: write one prompt a line")
    return [line for line in lines if line.strip()]


def find_checkpoint(config: RunConfig, run_dir: Path, given: Path | None) -> Path:
    """The newest whole checkpoint of the directory given, else of ``save``, else of ``load``.

    Raises:
        ValueError: there is none.
    """
    keys = config.checkpoints
    places = [given.resolve()] if given else [run_dir / text for text in (keys.save, keys.load) if text is not None]
    for place in places:
        if found := newest_checkpoint(place, say=lambda message: print(message, file=sys.stderr, flush=True)):
            return found
    looked = " or ".join(map(str, places)) or "the run's configuration (it has neither save nor load)"
    raise ValueError(f"no checkpoint in {looked}\n  fix: train first, or give --checkpoint DIRECTORY")


def write_samples(samples: Sequence[Sample], path: Path) -> None:
    """Write the file at once: a reader sees all samples or none.  ASCII, for readers to whom U+2028 ends a line."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(
            "".join(json.dumps(asdict(s)) + "\n" for s in samples),
            encoding="utf-8",
        )
        os.replace(partial, path)
    except OSError as error:
        raise ValueError(f"sample_output_file: {path} cannot be written: {error.strerror}\n  fix: give another path") from error


def _begin(tokens: list[int], eod: int | None) -> list[int]:
    if tokens:
        return tokens
    if eod is None:
        raise ValueError("an empty prompt begins with the end-of-document token, and the vocabulary has none\n  fix: give prompts")
    return [eod]


def _groups(config: RunConfig, ranks: Ranks, device: torch.device) -> Groups:
    tensor, pipe = config.parallelism.model_parallel_size, max(1, config.parallelism.pipe_parallel_size)
    if ranks.world_size not in (1, tensor * pipe):
        fix = "start one rank" if tensor * pipe == 1 else f"start one rank, or {tensor * pipe}"
        cut = f"model_parallel_size {tensor} x pipe_parallel_size {pipe}"
        raise ValueError(f"{ranks.world_size} ranks, and a model is cut over {cut}\n  fix: {fix}")
    alone = ranks.world_size == 1
    if ranks.world_size > 1:
        set_ranks(os.environ, ranks)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        torch.distributed.init_process_group("gloo" if device.type == "cpu" else "nccl")
    layout = Layout(world_size=ranks.world_size, tensor=1 if alone else tensor, pipe=1 if alone else pipe)
    return make_groups(layout, ranks.rank)  # no sequence parallelism: a single token cannot be shared out


def _assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text}: no value\n  fix: write --set key=value")
    try:
        return key.replace("-", "_"), json.loads(value)
    except json.JSONDecodeError:
        return key.replace("-", "_"), value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model.generate", description="Sample from a trained model.")
    parser.add_argument("run_file", type=Path, help="run.json; its directory is the run directory")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="a checkpoint, or a directory of them; the run's own when absent",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a key, e.g. temperature=0.8",
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # some launchers append it
    return parser


if __name__ == "__main__":
    sys.exit(main())
