"""GPT-NeoX's own 66 files, written back as their users write them, and its 321 keys with their types and defaults.

Data: EleutherAI/gpt-neox @ ea7aefd8 (2026-05-20), facts only: config -> key -> value, and key, type, default.
"""

from __future__ import annotations

import ast
import csv
import json
import math
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest

from model.config import KEYS, iter_keys
from model.config.keys import Status, status_of
from model.config.run import sub_section
from neox_hpc.errors import UserError
from neox_hpc.settings import Checked, check_files

DATA = Path(__file__).parent / "data"
CONFIGS: dict[str, dict[str, Any]] = json.loads((DATA / "neox_configs.json").read_text())

REFUSED = {
    "configs/gmlp_small.yml": [
        # the file says 1.0e_8, which YAML reads as text; GPT-NeoX passes the text on to the optimizer, which fails
        "optimizer.params.eps: expected a number, got the text '1.0e_8'",
    ],
}
"""The files that do not pass, and why."""

PARTS = {
    "configs/cpu_mock_config.yml",
    "configs/docker/pythia-paths.yml",
    "configs/eleutherai_cluster.yml",
    "configs/llama/train_config.yml",
    "configs/local_setup.yml",
    "configs/local_setup_comet.yml",
    "configs/local_setup_wandb.yml",
    "configs/prof.yml",
    "configs/slurm_local.yml",
    "configs/sparse.yml",
    "configs/text_generation.yml",
}
"""The files that are a part of a configuration."""

NOTED = {
    "configs/19M.yml": ["deepspeed_extra_args.comms_logger"],
    "configs/finetuning_configs/6-9B.yml": ["zero_optimization.load_from_fp32_weights"],
    "configs/llemma/34B.yml": ["attention_type"],
    "configs/llemma/7B.yml": ["decay_lr_to", "warmup_iters"],
    "configs/pythia/1B.yml": ["fp16.type"],
    "configs/rwkv/170M.yml": ["bf16.loss_scale"],
}
"""The files with former keys that say something else than today's."""


def as_users_write(config: Mapping[str, Any]) -> str:
    """JSON-like YAML with dashes, ``True``, comments, and a comma after every last entry."""
    lines = ["# GPT-NeoX", "{"]
    for number, (key, value) in enumerate(config.items()):
        name = key.replace("_", "-") if number % 2 else key
        lines.append(f'  "{name}": {_written(value)},' + (f"  # {number}" if number % 3 == 0 else ""))
    return "\n".join([*lines, "}", ""])


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and "." not in repr(value) and not math.isinf(value):
        return repr(value).replace("e", ".0e")
    if isinstance(value, dict):
        return "{" + "".join(f'"{key}": {_written(inner)},' for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_written, value)) + (",]" if value else "]")
    return json.dumps(value)


def checked(name: str, folder: Path) -> Checked:
    (folder / "neox.yml").write_text(as_users_write(CONFIGS[name]))
    return check_files(["neox"], cwd=folder)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in REFUSED])
def test_a_file_of_gpt_neox_passes(name: str, tmp_path: Path) -> None:
    found = checked(name, tmp_path)
    assert found.whole == (name not in PARTS)
    assert [note.partition(": ")[0].partition("  ")[2] for note in found.notes] == NOTED.get(name, [])


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_with_a_mistake_is_refused_for_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        checked(name, tmp_path)
    assert [f"{p.where.partition('  ')[2]}: {p.wrong}" for p in caught.value.problems] == REFUSED[name]


def test_nearly_all_of_the_66_pass() -> None:
    assert len(CONFIGS) == 66
    assert len(CONFIGS) - len(REFUSED) >= 55


# The keys ----------------------------------------------------------------------------------------------------------------

NEOX = {row["key"]: row for row in csv.DictReader((DATA / "neox_keys.csv").open())}

OTHER_DEFAULTS = {
    "gradient_accumulation_steps": "absent: solved from the batch equation, which GPT-NeoX's default of 1 forbids",
    "optimizer": "the section's own defaults; GPT-NeoX fills in the same at start",
    "zero_optimization": "the section's own defaults; GPT-NeoX fills in the same at start",
    "git_hash": "the commit is found when a run is planned, not when a module is imported",
    "is_pipe_parallel": "set by the launcher: a file that gives it is refused, so absent is the only value",
    "lazy_mpu_init": "set by the launcher: a file that gives it is refused, so absent is the only value",
    "curriculum_seqlen": "set by the launcher: a file that gives it is refused, so absent is the only value",
    "optimizer_type": "derived from optimizer: a file that gives it is refused, so absent is the only value",
    "num_layers": "required: GPT-NeoX's default of None is refused when it starts",
    "hidden_size": "required: GPT-NeoX's default of None is refused when it starts",
    "num_attention_heads": "required: GPT-NeoX's default of None is refused when it starts",
    "max_position_embeddings": "required: GPT-NeoX's default of None is refused when it starts",
    "seq_length": "required: GPT-NeoX fails without it",
}
"""Key -> why its default is another one than GPT-NeoX's."""

OTHER_TYPES = {
    "output_layer_parallelism": "also row: the head cut along its width",
    "launcher": "also the launchers that DeepSpeed has and GPT-NeoX's type forbids: mpich, impi, jsrun",
    "communication_data_type": "DeepSpeed's: the name of a data type; GPT-NeoX's annotation says bool",
    "distributed_backend": "the backends of torch.distributed by name",
    "text_gen_type": "the four kinds by name",
    "optimizer_type": "refused in a file",
    "zero_stage": "refused in a file",
    "tokenizer": "an object in memory",
    "tensorboard_writer": "an object in memory",
    "adlr_autoresume_object": "an object in memory",
    "comet_experiment": "an object in memory",
    "autotuning_run": "tune or run",
}
"""Key -> why its type is another one than GPT-NeoX's annotation."""


def _defaults() -> Iterator[tuple[str, Any, str]]:
    for key, field in iter_keys():
        if key in NEOX:
            yield key, None if field.is_required() else field.get_default(call_default_factory=True), NEOX[key]["default"]


def test_all_keys_are_there_and_no_others() -> None:
    assert len(NEOX) == 321
    assert set(KEYS) - {"neox_hpc"} == set(NEOX)


def test_every_default_is_gpt_neoxs_or_says_why_not() -> None:
    different = set()
    for key, ours, theirs in _defaults():
        if theirs == "get_git_commit_hash()" or ours != ast.literal_eval(theirs):
            different.add(key)
    required = {key for key, field in iter_keys() if field.is_required()}
    assert different | required == set(OTHER_DEFAULTS)


def test_every_type_is_gpt_neoxs_or_says_why_not() -> None:
    compared = {key: field for key, field in iter_keys() if key in NEOX and key not in OTHER_TYPES}
    assert {key for key, field in compared.items() if not _same(field.annotation, NEOX[key]["type"], sub_section(field))} == set()


def _same(ours: Any, theirs: str, section: Any) -> bool:
    """The kinds of values that our type takes are GPT-NeoX's; a list may be of anything, a dict may be a section."""
    mine = _kinds(ours)
    if theirs.startswith("Literal"):
        return mine == {f"={value}" for value in ast.literal_eval(theirs.removeprefix("Literal"))}
    names = theirs.removeprefix("Optional[").removeprefix("Union[").rstrip("]")
    expected = {{"List[int": "list", "List[str": "list"}.get(name.strip(), name.strip()) for name in names.split(",")}
    return ({"dict"} if section else mine) == expected or (mine == {"float", "int"} and expected == {"float"})


def _kinds(kind: Any) -> set[str]:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return {f"={value}" for value in args}
    if origin in (Union, types.UnionType):
        return set().union(*(_kinds(arg) for arg in args if arg is not type(None)))
    if hasattr(kind, "__metadata__"):
        return _kinds(args[0])
    if origin is tuple:
        return {"list"}
    return {origin.__name__ if origin else getattr(kind, "__name__", str(kind))}


NEVER_READ = {
    *("param_sharing_style", "num_unique_layers", "use_bias_in_norms", "weight_server_port", "te_fp8_margin", "git_hash"),
    *("zero_reduce_scatter", "zero_contiguous_gradients", "zero_reduce_bucket_size", "zero_allgather_bucket_size"),
    *("short_seq_prob", "adlr_autoresume_interval", "adlr_autoresume", "deepscale", "deepscale_config", "no_save_optim"),
    *("clip_grad", "hysteresis", "dynamic_loss_scale", "loss_scale", "loss_scale_window", "min_scale"),
    *("mup_attn_temp", "mup_output_temp", "moe_lbl_in_fp32"),
}
"""GPT-NeoX's arguments that nothing reads (inventory 1.4)."""


REPLACED = {
    *("amp", "sparse_gradients", "elasticity", "compression_training"),  # DeepSpeed 0.19.8 has them no more
    *("activation_checkpointing", "checkpoint", "autotuning", "autotuning_run"),
}
"""Arguments that GPT-NeoX hands to DeepSpeed and that would be idle here; the reason stands at each of them."""


def test_only_keys_without_effect_are_retired() -> None:
    assert {key for key, field in iter_keys() if status_of(field) is Status.RETIRED} <= NEVER_READ | REPLACED
