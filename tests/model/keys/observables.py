"""What a key may change, each as a function from a configuration's keys to a value that can be compared."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch

from model.config import RunConfig, stage_bounds
from model.data.loader import open_data
from model.data.tokens import TokenFileWriter
from model.engine.start import join_ranks
from model.generate import read_prompts, sample
from model.gpt import GPT
from model.implementations import choose
from model.mpi import find_place
from model.mup_base import base_shapes_of, read_base_shapes, write_base_shapes
from model.mup_check import widths
from model.optim import make_optimizer
from model.parallel.groups import Groups
from model.tokenizers import build_tokenizer
from neox_hpc.decisions import hostfile_paths
from neox_hpc.probe import read_hostfile
from neox_hpc.render import render
from tests import planning
from tests.model.networks import VOCAB, small_batch, small_config
from tests.ranks import RankPool

Keys = Mapping[str, Any]
TEXT = "An ant, an otter, and a newt at ten."


@dataclasses.dataclass(frozen=True)
class Here:
    """Where an observation may read and write."""

    folder: Path
    pool: RankPool
    four: RankPool
    """Of four ranks."""
    files: Path
    """Token files a and b, tokenizers, prompts."""

    def fill(self, value: Any) -> Any:
        """``FILES`` in a text is the folder of files."""
        if isinstance(value, str):
            return value.replace("FILES", str(self.files))
        if isinstance(value, list):
            return [self.fill(entry) for entry in value]
        return value


Observable = Callable[[dict[str, Any], Here], Any]

# Networks ----------------------------------------------------------------------------------------------------------------


def shapes(keys: dict[str, Any], here: Here) -> Any:
    """Names and shapes of parameters and buffers."""
    network = GPT(small_config(**keys), VOCAB)
    return {name: tuple(value.shape) for name, value in (*network.named_parameters(), *network.named_buffers())}


def shapes_on_two_tensor_ranks(keys: dict[str, Any], here: Here) -> Any:
    """Names and shapes of the parameters of the first of two tensor ranks."""
    config = small_config(model_parallel_size=2, **keys)
    network = GPT(config, VOCAB, Groups(layout=config.layout(2)))
    return {name: tuple(value.shape) for name, value in network.named_parameters()}


def stream(keys: dict[str, Any], here: Here) -> Any:
    """The shape of what blocks are given on one of four tensor ranks."""
    return here.four.run("tests.model.keys.cases:stream", keys)[0]


def recomputation(keys: dict[str, Any], here: Here) -> Any:
    """What recomputes the blocks, and how DeepSpeed stores what they begin from."""
    return here.pool.run("tests.model.keys.cases:recomputation", keys)[0]


def first_loss(keys: dict[str, Any], here: Here) -> Any:
    """Loss and gradient of the first step."""
    config = small_config(**keys)
    network = GPT(config, VOCAB).train()
    torch.manual_seed(0)
    loss = network(small_batch(length=config.architecture.seq_length))
    loss.backward()
    return float(loss.detach()), [float(p.grad.square().sum()) for p in network.parameters() if p.grad is not None]


def drawn_on(keys: dict[str, Any], here: Here) -> Any:
    """Where the weights of a network for a GPU are drawn."""
    with mock.patch("model.gpt.reset_parameters") as drawn:
        GPT(small_config(**keys), VOCAB, device=torch.device("cuda"))
    return drawn.call_args.args[2]


def bf16_logits(keys: dict[str, Any], here: Here) -> Any:
    """The same network under reduced precision."""
    network = GPT(small_config(**keys), VOCAB).to(torch.bfloat16).eval()
    with torch.no_grad():
        return network.logits(small_batch().tokens_BS).double().sum().item()


def fp16_loss(keys: dict[str, Any], here: Here) -> Any:
    """The loss of the network in fp16."""
    network = GPT(small_config(fp16={"enabled": True}, **keys), VOCAB).to(torch.float16).eval()
    return float(network(small_batch()).detach())


def compiled_blocks(keys: dict[str, Any], here: Here) -> Any:
    """Which layers torch.compile has a hand in."""
    return [layer._compiled_call_impl is not None for layer in GPT(small_config(**keys), VOCAB).layers]


def implementations(keys: dict[str, Any], here: Here) -> Any:
    """The rows of the implementation table that run."""
    return choose(small_config(**keys), torch.device("cpu")).rows()


def implementations_on_a_gpu(keys: dict[str, Any], here: Here) -> Any:
    """The same on a GPU, with every extra installed."""
    with mock.patch("importlib.util.find_spec", return_value=object()):
        return choose(small_config(**keys), torch.device("cuda")).rows()


def longest_input(keys: dict[str, Any], here: Here) -> Any:
    """How many tokens the positions can name."""
    network = GPT(small_config(**keys), VOCAB)
    taken = 0
    for length in (24, 32, 48, 64):
        try:
            network.logits(torch.zeros(1, length, dtype=torch.int64))
        except AssertionError:
            break
        taken = length
    return taken


def recomputed(keys: dict[str, Any], here: Here) -> Any:
    """What the forward pass keeps for the backward pass: the bytes of tensors, and the parts that are computed again."""
    network = GPT(small_config(**keys), VOCAB).train()
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    import model.gpt as gpt

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        mock.patch.object(gpt, "checkpoint", wraps=gpt.checkpoint) as again,
    ):
        network(small_batch())
    return sum(kept), again.call_count


def rate_curve(keys: dict[str, Any], here: Here) -> Any:
    """The learning rate of every step."""
    config = small_config(train_iters=20, **keys)
    return [config.schedule.rate(step) for step in range(22)]


def maximal_update(keys: dict[str, Any], here: Here) -> Any:
    """Loss and gradient of the first step, and the learning rates, on a base of half the width."""
    config = small_config(**{"base_shapes_file": str(here.files / "base.json")} | keys if keys.get("use_mup") else keys)
    network = GPT(config, VOCAB, base=read_base_shapes(config))
    loss = network(small_batch())
    loss.backward()
    groups = make_optimizer(config, network.parameters()).param_groups
    gradients = [float(p.grad.square().sum()) for p in network.parameters() if p.grad is not None]
    return float(loss.detach()), gradients, [group.get("lr_scale") for group in groups]


def widths_checked(keys: dict[str, Any], here: Here) -> Any:
    """The widths of the coordinate check."""
    config = small_config(**keys)
    return widths(config, base_shapes_of(config))


def optimizer_steps(keys: dict[str, Any], here: Here) -> Any:
    """Weights after two steps with given gradients."""
    config = small_config(**keys)
    network = GPT(config, VOCAB)
    optimizer = make_optimizer(config, network.parameters())
    generator = torch.Generator().manual_seed(3)
    for _ in range(2):
        for parameter in network.parameters():
            parameter.grad = 1e-3 * torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return float(sum(parameter.detach().double().abs().sum() for parameter in network.parameters()))


def optimizer_class(keys: dict[str, Any], here: Here) -> Any:
    """Who makes the optimizer."""
    return small_config(**keys).optimizer.make


def cpu_adam_refusal(keys: dict[str, Any], here: Here) -> Any:
    """Why a run with DeepSpeed's CPUAdam does not begin."""
    return here.pool.run("tests.model.keys.cases:refused_operation", keys)[0]


# Plans -------------------------------------------------------------------------------------------------------------------


def plan(keys: dict[str, Any], here: Here) -> Any:
    """Nodes, layout and batch on a Slurm site of 4 GPUs a node."""
    found = planning.plan(planning.slurm(), keys=keys)
    return found.nodes, found.layout, found.batch


def stages(keys: dict[str, Any], here: Here) -> Any:
    """The layers that each of four pipeline stages holds."""
    return stage_bounds(small_config(**keys), 4)


def script(keys: dict[str, Any], here: Here) -> Any:
    """The rendered job: directives and launch argv."""
    return render(planning.plan(planning.slurm(), keys=keys))["job.sh"]


def plan_problems(keys: dict[str, Any], here: Here) -> Any:
    """What planning refuses."""
    return planning.wrongs(planning.planned(planning.slurm(), keys=keys))


def place(keys: dict[str, Any], here: Here) -> Any:
    """Which rank a process is that no known launcher started, in an MPI world of four."""
    world: Any = SimpleNamespace(
        Get_rank=lambda: 3, Get_size=lambda: 4, bcast=lambda text, root: text, Split_type=lambda kind: world
    )
    mpi: Any = SimpleNamespace(MPI=SimpleNamespace(COMM_WORLD=world, COMM_TYPE_SHARED=1))
    with mock.patch.dict("sys.modules", {"mpi4py": mpi}):
        return find_place({}, mpi=small_config(**keys).launch.deepspeed_mpi)


def nodes_of_a_hostfile(keys: dict[str, Any], here: Here) -> Any:
    """Nodes of a site whose hosts stand in a file: one, or two."""
    for name, hosts in (("one", "n1 slots=2\n"), ("two", "n1 slots=2\nn2 slots=2\n")):
        (here.folder / name).write_text(hosts)
    where = planning.site("local", "max_nodes=null", "launcher=srun", "hostfile=/job/hostfile")
    asked, given = planning.request(cwd=str(here.folder)), planning.loaded(**keys)
    found = [read_hostfile(path) for path in hostfile_paths(given, where, asked)]
    facts = dataclasses.replace(planning.TWO_CORES, hostfile=next(filter(None, found)))
    return planning.plan(where, keys=keys, facts=facts, cwd=str(here.folder)).nodes


def launched(keys: dict[str, Any], here: Here) -> Any:
    """The job of ``neox-hpc launch``, its hosts, and who was asked by ssh; on the hosts of FOLDER/hosts where hostfile names it."""
    from neox_hpc.cli.launch import Start
    from neox_hpc.cli.prepare import prepare
    from neox_hpc.launch import read_command

    programs, asked = here.folder / "bin", here.folder / "asked"
    programs.mkdir()
    for name in ("ssh", "pdsh", "mpirun", "mpiexec"):
        (programs / name).write_text(f'#!/bin/sh\necho "$@" >>"{asked}"\n')
        (programs / name).chmod(0o755)
    (here.folder / "hosts").write_text("n1 slots=2\nn2 slots=2\n")
    (here.folder / "small.yml").write_text(json.dumps(planning.SMALL | keys))
    environ = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(here.folder)}
    with mock.patch.dict("os.environ", environ, clear=True):
        start = Start(command=read_command(["train", "-s", "local", str(here.folder / "small.yml")]), environ=environ)
        files = prepare(start.asked, cwd=here.folder, as_launched=start.as_launched).files
    assert files is not None
    script = files["job.sh"].replace(str(here.folder), "FOLDER")
    return script, files.get("hosts"), asked.exists() and asked.read_text()


def backend(keys: dict[str, Any], here: Here) -> Any:
    """What torch.distributed is asked for on GPUs."""
    asked = mock.MagicMock()
    deepspeed: Any = SimpleNamespace(ops=SimpleNamespace(__compatible_ops__={}), init_distributed=mock.MagicMock())
    with (
        mock.patch("torch.cuda.set_device"),
        mock.patch("torch.distributed.is_initialized", return_value=False),
        mock.patch("torch.distributed.init_process_group", asked),
        mock.patch("torch.distributed.get_backend"),
        mock.patch.dict("sys.modules", deepspeed=deepspeed),
        mock.patch.dict("os.environ"),
    ):
        config = small_config(**keys)
        minutes = config.own.neox_hpc.collective_timeout_minutes
        join_ranks(torch.device("cuda", 0), config.training.distributed_backend, timedelta(minutes=minutes))
    return asked.call_args


# Data and text -----------------------------------------------------------------------------------------------------------


def served(keys: dict[str, Any], here: Here) -> Any:
    """The first micro-batch of every split, and how many samples it has."""
    config = RunConfig.from_keys(keys)
    found = open_data(config, config.batch_sizes(config.layout(1)), here.folder / "index", build=True, eod=0, vocab_size=512)
    splits = {name: getattr(found, name) for name in ("train", "valid", "test")}
    return {
        name: (len(split), split.batch(0, 0).tokens_BS.tolist(), split.batch(0, 0).loss_mask_BS.tolist())
        for name, split in splits.items()
        if split is not None
    }


def tokens(keys: dict[str, Any], here: Here) -> Any:
    """A text's tokens."""
    return build_tokenizer(RunConfig.from_keys(keys).tokenizer).encode(TEXT)


def samples(keys: dict[str, Any], here: Here) -> Any:
    """Texts sampled from the untrained network, and how many positions it computed for them."""
    config = RunConfig.from_keys(keys)
    tokenizer = build_tokenizer(config.tokenizer)
    network = GPT(config, tokenizer.vocab_size).eval()
    computed: list[int] = []
    network.layers[0].register_forward_pre_hook(lambda layer, stage: computed.append(stage[0].x.shape[-1]))
    found = list(sample(network, tokenizer, read_prompts(config, here.folder), config))
    return [(one.context, one.text, one.length) for one in found], sum(computed)


def generated(keys: dict[str, Any], here: Here) -> list[str]:
    """Files that sampling leaves in the run directory."""
    from model.config import RunFile
    from model.generate import generate_run
    from model.ranks import Ranks

    config = RunConfig.from_keys(keys)
    network = GPT(config, 512)
    weights = {p.global_name: p.detach() for p in network.parameters()}  # type: ignore[attr-defined]
    with (
        mock.patch("model.generate.find_checkpoint", return_value=here.folder),
        mock.patch("model.generate.load_weights", return_value=weights),
    ):
        run = RunFile(name="tiny", device="cpu", config=config)
        generate_run(run, here.folder, Ranks(rank=0, world_size=1, local_rank=0), None)
    return sorted(path.name for path in here.folder.iterdir())


# Trainings ---------------------------------------------------------------------------------------------------------------


def training(keys: dict[str, Any], here: Here) -> dict[str, Any]:
    """A tiny training: metrics, checkpoints, printed lines."""
    path = here.folder / "run"
    if keys.get("save") is not None:
        keys = keys | {"save": str(path / keys["save"])}
    found: dict[str, Any] = here.pool.run("tests.model.keys.cases:train_here", path, keys)[0]
    return found


def left_behind(keys: dict[str, Any], here: Here) -> Any:
    """The files of a run, and the base shapes."""
    files = here.pool.run("tests.model.keys.cases:files_of_a_run", here.folder / "run", keys)[0]
    return files, Path(keys["base_shapes_file"]).read_text()


def metrics_of_four(keys: dict[str, Any], here: Here) -> Any:
    """metrics.jsonl of four ranks, without times."""
    return here.four.run("tests.model.keys.cases:train_here", here.folder / "run", keys)[0]["metrics"]


def metrics(keys: dict[str, Any], here: Here) -> Any:
    """metrics.jsonl without times."""
    return training(keys, here)["metrics"]


def continued(keys: dict[str, Any], here: Here) -> Any:
    """metrics.jsonl without times, or why the run was refused."""
    return here.pool.run("tests.model.keys.cases:train_or_say_why_not", here.folder / "run", keys)[0]


def checkpoints(keys: dict[str, Any], here: Here) -> Any:
    """The checkpoints in the run directory."""
    return training(keys, here)["checkpoints"]


def kept_frequencies(keys: dict[str, Any], here: Here) -> Any:
    """The rotary frequencies that stand in the last checkpoint."""
    last = training(keys, here)["checkpoints"][-1]
    return json.loads((here.folder / "run" / "checkpoints" / last / "manifest.json").read_text())["rotary_frequencies"]


def printed(keys: dict[str, Any], here: Here) -> Any:
    """How many lines of steps are printed."""
    lines = training(keys, here)["lines"]
    assert lines, "the console prints steps in another form now"
    return lines


def engine(keys: dict[str, Any], here: Here) -> Any:
    """DeepSpeed's own configuration object."""
    return here.pool.run("tests.model.keys.cases:deepspeed_understands", keys)[0]


# Files -------------------------------------------------------------------------------------------------------------------


def write_files(folder: Path) -> None:
    """Token files a and b (bytes, documents that end with 0), two tokenizers of two forms, prompts."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        with TokenFileWriter(folder / name, np.uint16) as writer:
            for _ in range(60):
                writer.add([*rng.integers(97, 122, size=int(rng.integers(5, 40))).tolist(), 0])
    _write_tokenizers(folder)
    for name, width in (("base", 16), ("other", 8), ("kept", 16)):
        write_base_shapes(
            small_config(use_mup=True, base_shapes_file=str(folder / f"{name}.json"), hidden_size=width, rotary_pct=1.0)
        )
    (folder / "prompts.txt").write_text("ab\ncd\n")
    (folder / "other.txt").write_text("xy\n")


def _write_tokenizers(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    for name, size in (("small", 262), ("large", 270)):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator([TEXT] * 3, trainer)
        tokenizer.save(str(folder / f"{name}.json"))
        (folder / name).mkdir()
        tokenizer.model.save(str(folder / name))
    merges = (folder / "large" / "merges.txt").read_text().splitlines()
    (folder / "fewer.txt").write_text("\n".join(merges[:3]) + "\n")
