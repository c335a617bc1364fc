"""The whole configuration of a run as frozen sections, and the numbers derived from it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from model.config.architecture import SPARSE, Architecture, AttentionKind, Parallelism
from model.config.former import translate
from model.config.keys import KeyProblem, Section, Status, reason_of, status_of, trained_values
from model.config.kinds import NORMS
from model.config.launch import Launch, RunTime
from model.config.layout import BatchSizes, Layout, solve_batch
from model.config.optimization import NAMES, DeepSpeed, LearningRate, Optimization, Precision
from model.config.optimizers import OPTIMIZERS, Optimizer
from model.config.own import Own
from model.config.post_training import PostTraining
from model.config.schedule import Schedule
from model.config.services import Profiling, Trackers
from model.config.training import Checkpoints, Data, Generation, Logging, Tokenizer, Training
from model.config.variants import Experts, MaximalUpdate, Recurrent, TransformerEngine


class ConfigError(ValueError):
    """Every problem of a configuration."""

    def __init__(self, problems: tuple[KeyProblem, ...]) -> None:
        self.problems = problems
        super().__init__("\n".join(f"{p.key}: {p.wrong}" + (f"\n  fix: {p.fix}" if p.fix else "") for p in problems))


class RunConfig(BaseModel):
    """GPT-NeoX's vocabulary in sections.  ``from_keys`` makes one from its flat namespace."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)  # from_keys validates each section by itself

    parallelism: Parallelism
    architecture: Architecture
    optimization: Optimization
    learning_rate: LearningRate
    deepspeed: DeepSpeed
    tokenizer: Tokenizer
    data: Data
    training: Training
    checkpoints: Checkpoints
    logging: Logging
    generation: Generation
    experts: Experts
    recurrent: Recurrent
    transformer_engine: TransformerEngine
    maximal_update: MaximalUpdate
    post_training: PostTraining
    trackers: Trackers
    profiling: Profiling
    launch: Launch
    run_time: RunTime
    own: Own

    @classmethod
    def from_keys(cls, values: Mapping[str, Any]) -> RunConfig:
        """Build from flat keys (underscores), today's or former ones.

        Raises:
            ConfigError: holding every unknown key, wrong type and broken rule at once.
        """
        sections, problems = _read(values)
        if not problems:
            config = cls.model_construct(None, **sections)  # every section has just been validated
            problems = list(_contradictions(config))
        if problems:
            raise ConfigError(tuple(problems))
        return config

    def keys(self) -> dict[str, Any]:
        """The flat namespace: every key with its value."""
        return {key: getattr(getattr(self, section), key) for key, section in KEYS.items()}

    def with_keys(self, **changes: Any) -> RunConfig:
        """A copy with some keys changed; the other values stay as they are."""
        return RunConfig.from_keys(_plain(self.keys() | changes))

    # Derived numbers ---------------------------------------------------------------------------------------------------

    @property
    def precision(self) -> Precision:
        """Arithmetic of the model."""
        return self.deepspeed.arithmetic

    @property
    def zero_stage(self) -> int:
        """The ZeRO stage that runs: reduced precision with stage 0 runs as stage 1.

        The mathematics is the same; DeepSpeed 0.19.8 begins stage 0 there from an optimizer that has already stepped once.
        """
        stage = self.deepspeed.zero_optimization.stage
        return stage if self.precision == "fp32" else max(stage, 1)

    @property
    def recomputes(self) -> Literal["nothing", "full", "selective"]:
        """What the backward pass computes again."""
        return self.own.neox_hpc.recompute_granularity if self.training.checkpoint_activations else "nothing"

    @property
    def optimizer_name(self) -> str:
        """The optimizer that runs, by its name in OPTIMIZERS."""
        keys, extra = self.optimization, self.deepspeed.deepspeed_extra_args
        name, forced = keys.optimizer.type, None if extra is None else extra.zero_force_ds_cpu_optimizer
        if keys.use_bnb_optimizer and name in ADAM_NAMES:
            return "adam8bit"
        if name in ADAM_NAMES and forced and self.deepspeed.zero_optimization.offloads_optimizer:
            return "cpu_adam"
        return "cpu_torch_adam" if name == "cpu_adam" and forced is False else name

    @property
    def optimizer(self) -> Optimizer:
        """What there is to know of it."""
        return OPTIMIZERS[self.optimizer_name]

    @property
    def optimizer_numbers(self) -> Mapping[str, Any]:
        """Its numbers, beside the learning rate."""
        params = self.optimization.optimizer.params
        given = {key: getattr(params, key) for key in self.optimizer.reads}
        return {key: self.optimizer.reads[key] if value is None else value for key, value in given.items()}

    @property
    def optimizer_states(self) -> tuple[str, ...]:
        """Its tensors of a weight's shape."""
        return self.optimizer.states(self.optimizer_numbers)

    @property
    def schedule(self) -> Schedule:
        """The learning rate over steps."""
        rate, steps = self.learning_rate, self.lr_decay_steps
        return Schedule(
            lr=self.optimization.optimizer.params.lr,
            min_lr=rate.min_lr,
            warmup_steps=rate.warmup * steps,
            decay_steps=steps,
            lr_decay_style=rate.lr_decay_style,
        )

    @property
    def lr_decay_steps(self) -> int:
        """Steps of the learning-rate curve, warm-up included (at least 1)."""
        rate = self.learning_rate
        train_iters = self.training.train_iters or 1
        if rate.lr_decay_iters is not None:
            return rate.lr_decay_iters
        if rate.lr_decay_fraction is not None:
            return max(1, int(train_iters * rate.lr_decay_fraction))
        return train_iters

    def layout(self, world_size: int) -> Layout:
        """The layout on ``world_size`` ranks.

        Raises:
            ValueError: the ranks cannot hold the model's cut.
        """
        return Layout(
            world_size=world_size,
            tensor=self.parallelism.model_parallel_size,
            pipe=max(1, self.parallelism.pipe_parallel_size),
        )

    def batch_sizes(self, layout: Layout) -> BatchSizes:
        """The batch equation on a layout.

        Raises:
            ValueError: the numbers do not multiply out.
        """
        return solve_batch(
            train=self.deepspeed.train_batch_size,
            micro=self.deepspeed.train_micro_batch_size_per_gpu,
            accumulation=self.deepspeed.gradient_accumulation_steps,
            data=layout.data,
        )

    def padded_vocab_size(self, tokenizer_vocab_size: int) -> int:
        """Rows of the embedding: the smallest multiple of make_vocab_size_divisible_by x model_parallel_size that holds it."""
        multiple = self.architecture.make_vocab_size_divisible_by * self.parallelism.model_parallel_size
        return -(-tokenizer_vocab_size // multiple) * multiple

    def untrained(self) -> tuple[KeyProblem, ...]:
        """The values that plan and render but do not train yet; training refuses them."""
        found: list[KeyProblem] = []
        for name in SECTIONS:
            found += _untrained(getattr(self, name), "")
        kinds = sorted(set(self.architecture.attention_kinds) - TRAINED_ATTENTION)
        if kinds:
            fix = f"write one of {', '.join(sorted(TRAINED_ATTENTION))}"
            found.append(KeyProblem(key="attention_config", wrong=f"{', '.join(kinds)} does not train yet", fix=fix))
        return tuple(found)


def _contradictions(config: RunConfig) -> Iterator[KeyProblem]:
    """Keys of two sections that cannot stand together on any machine."""
    zero, tensor = config.deepspeed.zero_optimization, config.parallelism.model_parallel_size
    if config.optimization.scheduler is not None:
        for key, field in LearningRate.model_fields.items():
            if getattr(config.learning_rate, key) != field.get_default(call_default_factory=True):
                wrong = "shapes our learning-rate curve, and scheduler puts DeepSpeed's in its place"
                yield KeyProblem(key=key, wrong=wrong, fix="remove it, or scheduler")
    for key in zero.needing_groups_of_nodes if tensor > 1 else ():
        wrong = f"DeepSpeed groups ranks for it as if there were no tensor parallelism, and model_parallel_size is {tensor}"
        yield KeyProblem(key=f"zero_optimization.{key}", wrong=wrong, fix="remove it, or write model_parallel_size: 1")
    yield from _recomputation(config)
    yield from _maximal_update(config)
    yield from _optimizer(config)
    if config.own.neox_hpc.rope_scaling is not None and config.architecture.pos_emb != "rotary":
        wrong = f"stretches rotary positions, and pos_emb is {config.architecture.pos_emb}"
        yield KeyProblem(key="neox_hpc.rope_scaling", wrong=wrong, fix="remove it, or write pos_emb: rotary")
    profiler = config.deepspeed.flops_profiler
    if profiler is not None and profiler.enabled and config.parallelism.pipe_parallel_size > 1:
        wrong = "DeepSpeed's pipeline engine never shows the profile"
        yield KeyProblem(key="flops_profiler", wrong=wrong, fix="profile without stages: pipe_parallel_size: 1")
    if profiler is not None and profiler.enabled and zero.stage == 3:  # seen: ZeRO-3 puts a function of its own around linear
        wrong = "DeepSpeed counts every linear layer twice under ZeRO-3"
        yield KeyProblem(key="flops_profiler", wrong=wrong, fix="profile at stage: 2")


def _recomputation(config: RunConfig) -> Iterator[KeyProblem]:
    """What only DeepSpeed's activation checkpointing can."""
    keys = config.training
    asked = [key for key in STORED_ELSEWHERE if getattr(keys, key)]
    if config.recomputes == "selective" and asked:
        wrong = "is of whole blocks, and neox_hpc.recompute_granularity is selective"
        yield KeyProblem(key=asked[0], wrong=wrong, fix="remove one of them")
    elif config.recomputes == "full" and asked and not keys.deepspeed_activation_checkpointing:
        wrong = "is what DeepSpeed's activation checkpointing can, and deepspeed_activation_checkpointing is false"
        yield KeyProblem(key=asked[0], wrong=wrong, fix="remove one of them")
    if (
        config.recomputes == "full"
        and keys.deepspeed_activation_checkpointing
        and config.architecture.pos_emb == "rpe"
        and config.zero_stage == 3
    ):
        wrong = "each recomputed block sends the gradient of rpe's one table by itself, and ZeRO-3 (DeepSpeed 0.19.8) takes it once"
        fix = "write deepspeed_activation_checkpointing: false, neox_hpc: {recompute_granularity: selective}, or stage: 2"
        yield KeyProblem(key="deepspeed_activation_checkpointing", wrong=wrong, fix=fix)
    if config.recomputes == "full" and keys.contiguous_checkpointing and not keys.partition_activations:
        wrong = "DeepSpeed stores in one buffer what it has partitioned"
        yield KeyProblem(key="contiguous_checkpointing", wrong=wrong, fix="add partition_activations: true, or remove it")


def _maximal_update(config: RunConfig) -> Iterator[KeyProblem]:
    """Keys of muP that would change nothing, and what has no rule in it."""
    keys = config.maximal_update
    if not keys.use_mup:
        for key, field in MaximalUpdate.model_fields.items():
            if key != "soft_prompt_tuning" and getattr(keys, key) != field.default:
                yield KeyProblem(key=key, wrong="is a key of muP, and use_mup is false", fix="add use_mup: true, or remove it")
        return
    if keys.base_shapes_file is None and not keys.coord_check:
        fix = "write base_shapes_file: FILE; a run of the narrow network with save_base_shapes: true writes it"
        yield KeyProblem(key="use_mup", wrong="is relative to base shapes, and base_shapes_file is not given", fix=fix)
    if keys.save_base_shapes and keys.coord_check:
        yield KeyProblem(key="save_base_shapes", wrong="and coord_check are two things to do instead of training", fix="remove one")
    if config.optimizer.rates_by_width is None:
        fix = f"write one of {', '.join(name for name in NAMES if OPTIMIZERS[name].rates_by_width)}"
        wrong = f"muP has no rule for the learning rates of {config.optimizer_name}"
        yield KeyProblem(key="optimizer.type", wrong=wrong, fix=fix)
    if config.optimization.scheduler is not None:
        wrong = "DeepSpeed's schedule gives all parameters one learning rate, and muP gives them several"
        yield KeyProblem(key="scheduler", wrong=wrong, fix="remove it, or use_mup")
    shape = config.architecture
    for key, kind in (("norm", NORMS[shape.norm]), ("pos_emb", shape.positions)):
        if not kind.alike_at_widths:
            wrong = f"what {getattr(shape, key)} makes does not keep its size over widths, and muP has no rule for it"
            yield KeyProblem(key=key, wrong=wrong, fix="choose another, or remove use_mup")
    if keys.mup_rp_embedding_mult != 1 and config.architecture.pos_emb not in ("learned", "sinusoidal"):
        wrong = f"multiplies learned and sinusoidal positions, and pos_emb is {config.architecture.pos_emb}"
        yield KeyProblem(key="mup_rp_embedding_mult", wrong=wrong, fix="remove it")


def _optimizer(config: RunConfig) -> Iterator[KeyProblem]:
    """Where an optimizer's formula cannot be computed (model/config/optimizers.py)."""
    name, kind = config.optimizer_name, config.optimizer
    yield from _choice(config)
    params = config.optimization.optimizer.params
    for key in type(params).model_fields:
        if key != "lr" and key not in kind.reads and getattr(params, key) is not None:
            wrong = f"{name} has none; it reads {', '.join(('lr', *kind.reads))}"
            yield KeyProblem(key=f"optimizer.params.{key}", wrong=wrong, fix="remove it")
    if kind.whole_because and config.zero_stage:
        stage = config.deepspeed.zero_optimization.stage
        why = f"stage {stage}" if stage else f"{config.precision} runs as stage 1"
        wrong = f"{name} {kind.whole_because}, and ZeRO cuts weights into flat pieces ({why})"
        yield KeyProblem(key="optimizer.type", wrong=wrong, fix="write stage: 0 and precision: fp32, or another optimizer")
    if kind.uncut_because and config.parallelism.model_parallel_size > 1:
        wrong = f"{name} {kind.uncut_because}, and tensor parallelism cuts them"
        yield KeyProblem(key="optimizer.type", wrong=wrong, fix="write model_parallel_size: 1, or another optimizer")
    if kind.in_memory_of_node and not config.deepspeed.zero_optimization.offloads_optimizer:
        wrong = f"{name} updates in the memory of the node, and the optimizer is not offloaded to it"
        fix = "write zero_optimization: {stage: 2, offload_optimizer: {device: cpu}}, or type: adam"
        yield KeyProblem(key="optimizer.type", wrong=wrong, fix=fix)
    if not kind.decays and config.optimization.weight_decay:
        yield KeyProblem(key="weight_decay", wrong=f"{name} has none", fix="write weight_decay: 0")


def _choice(config: RunConfig) -> Iterator[KeyProblem]:
    """Keys that choose the optimizer beside ``optimizer.type``, where they would change nothing."""
    asked, runs = config.optimization.optimizer.type, config.optimizer_name
    zero, extra = config.deepspeed.zero_optimization, config.deepspeed.deepspeed_extra_args
    forced = None if extra is None else extra.zero_force_ds_cpu_optimizer
    force = "deepspeed_extra_args.zero_force_ds_cpu_optimizer"
    if config.optimization.use_bnb_optimizer and asked not in ADAM_NAMES:
        yield KeyProblem(key="use_bnb_optimizer", wrong=f"is 8-bit Adam, and optimizer.type is {asked}", fix="keep one")
    if config.optimization.use_bnb_optimizer and zero.offloads_optimizer:
        wrong = "keeps Adam's moments in 8 bits on the GPU, and offload_optimizer puts them into the memory of the node"
        yield KeyProblem(key="use_bnb_optimizer", wrong=wrong, fix="keep one")
    if asked == "adamw" and config.optimization.optimizer.params.adam_w_mode is False:
        wrong = "adamw is Adam with decoupled weight decay, and adam_w_mode: false couples it"
        yield KeyProblem(key="optimizer.params.adam_w_mode", wrong=wrong, fix="write type: adam, or remove it")
    if forced is not None and not zero.offloads_optimizer:
        yield KeyProblem(
            key=force, wrong="is about an offloaded optimizer, and offload_optimizer is not asked for", fix="remove it"
        )
    elif forced and runs != "cpu_adam":
        wrong = f"DeepSpeed's CPUAdam is not {runs}"
        yield KeyProblem(key=force, wrong=wrong, fix="write optimizer: {type: adam}, or remove it")
    elif forced is False and asked not in (*ADAM_NAMES, "cpu_adam"):
        yield KeyProblem(key=force, wrong=f"{asked} is none of DeepSpeed's", fix="remove it")
    if config.own.neox_hpc.cpu_adam_op is not None and runs != "cpu_adam":
        wrong = f"is the operation of DeepSpeed's CPUAdam, and the optimizer is {runs}"
        yield KeyProblem(key="neox_hpc.cpu_adam_op", wrong=wrong, fix="write optimizer: {type: cpu_adam}, or remove it")


ADAM_NAMES = ("adam", "adamw")

STORED_ELSEWHERE = (
    "partition_activations",
    "contiguous_checkpointing",
    "checkpoint_in_cpu",
    "synchronize_each_layer",
    "profile_backward",
)


def check_fragment(values: Mapping[str, Any]) -> tuple[KeyProblem, ...]:
    """Every problem of a part of a configuration: what other files may still bring is none."""
    return tuple(_read(values, fragment=True)[1])


def untrained_in_fragment(values: Mapping[str, Any]) -> tuple[KeyProblem, ...]:
    """The values of a part of a configuration, without problems, that do not train yet."""
    sections, _ = _read(values, fragment=True)
    written = translate(values).values
    found = (problem for section in sections.values() for problem in _untrained(section, ""))
    return tuple(problem for problem in found if problem.key.partition(".")[0] in written)


def is_fragment(values: Mapping[str, Any]) -> bool:
    """A file that gives none of the required keys is meant as a part of a configuration."""
    required = {key for section in _REQUIRED for key, field in section.model_fields.items() if field.is_required()}
    return not required & values.keys()


def _untrained(section: Section, prefix: str) -> Iterator[KeyProblem]:
    for key, field in type(section).model_fields.items():
        value, dotted = getattr(section, key, None), f"{prefix}{key}"
        if isinstance(value, Section):
            yield from _untrained(value, f"{dotted}.")
            continue
        trains = trained_values(field)
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if status_of(field) is Status.PLANNED and trains is None and value != default:
            fix = f"remove it; the default is {_named(default)}" if default is not None else "remove it"
            if isinstance(section, Architecture):
                fix = "wait for a later release: without it this is another network"
            yield KeyProblem(key=dotted, wrong=f"{_named(value, long='')} is known and not built yet".lstrip(), fix=fix)
        if trains is not None and value not in trains and value is not None:
            fix = f"write {' or '.join(map(_named, trains))}"
            yield KeyProblem(key=dotted, wrong=f"{_named(value)} does not train yet", fix=fix)


TRAINED_ATTENTION = {"global", "flash", *SPARSE}
ATTENTION_KINDS: tuple[str, ...] = get_args(AttentionKind)

SECTIONS: dict[str, type[Section]] = {name: field.annotation for name, field in RunConfig.model_fields.items()}  # type: ignore[misc]
"""Section name -> its type."""

KEYS: dict[str, str] = {key: name for name, section in SECTIONS.items() for key in section.model_fields}
"""Key -> the section it stands in.  Keys are unique over all sections, as in GPT-NeoX's one namespace."""
_REQUIRED = {section for section in SECTIONS.values() if any(field.is_required() for field in section.model_fields.values())}
assert len(KEYS) == sum(len(section.model_fields) for section in SECTIONS.values()), "a key stands in two sections"


def iter_keys() -> Iterator[tuple[str, FieldInfo]]:
    """Every key with its field, section by section."""
    for section in SECTIONS.values():
        yield from section.model_fields.items()


def nearest_key(key: str) -> str | None:
    """The known key that is spelled most like ``key``, if any is near."""
    return next(iter(difflib.get_close_matches(key, KEYS, n=1, cutoff=0.7)), None)


def expand_attention(value: Any, num_layers: Any, *, layers_known: Any = True) -> Any:
    """GPT-NeoX's patterns ``[[[kind, ...], n], ...]`` and ``[[[kind, ...], "all"]]`` as one flat list of a kind per layer.

    Where num_layers stands in another file, "all" is written out once.

    Raises:
        ValueError: the patterns and num_layers do not fit.
    """
    if not isinstance(value, (list, tuple)):
        kind = value if value in ATTENTION_KINDS else "global"
        raise ValueError(f"expected a list, got {_shown(value)}: write [[[{kind}], all]]")
    if all(isinstance(entry, str) for entry in value):
        return value
    flat: list[str] = []
    for entry in value:
        if not (isinstance(entry, (list, tuple)) and len(entry) == 2 and isinstance(entry[0], (list, tuple)) and entry[0]):
            raise ValueError(f"{entry!r} is no pattern: write [[[kind, ...], times], ...], e.g. [[[flash], 12]]")
        kinds, times = entry
        if times == "all" and not layers_known:
            times = 1
        elif times == "all":
            if not isinstance(num_layers, int) or num_layers % len(kinds):
                raise ValueError(f"'all' repeats {len(kinds)} kinds, which does not divide num_layers {num_layers}")
            times = num_layers // len(kinds)
        if not isinstance(times, int) or isinstance(times, bool) or times < 1:
            raise ValueError(f"{times!r} is no number of repetitions: write a whole number or 'all'")
        flat += [str(kind).lower() for kind in kinds] * times
    return flat


def _read(written: Mapping[str, Any], *, fragment: bool = False) -> tuple[dict[str, Section], list[KeyProblem]]:
    """The sections, and every problem.  In a fragment, nothing that another file may bring is missed."""
    translated = translate(written)
    problems = [*translated.problems, *(_unknown(key) for key in translated.values if key not in KEYS)]
    values = _normalize(translated.values, problems, fragment=fragment)
    sections: dict[str, Section] = {}
    for name, section in SECTIONS.items():
        given = {key: value for key, value in values.items() if KEYS.get(key) == name}
        try:
            sections[name] = section.model_validate(given) if given or section in _REQUIRED else section.model_construct()
        except ValidationError as error:
            missed = ("missing", "absent") if fragment else ()
            found = [details for details in error.errors() if len(details["loc"]) > 1 or details["type"] not in missed]
            problems += [_problem(section, details) for details in found]
            if not found:
                sections[name] = section.model_construct(set(given), **given)
    for key, value in values.items():
        problems += _refusals(key, SECTIONS[KEYS[key]].model_fields[key], value)
    return sections, problems


def _normalize(values: Mapping[str, Any], problems: list[KeyProblem], *, fragment: bool) -> dict[str, Any]:
    """GPT-NeoX's looser spellings: choices in any case, absent as ``None``, nested attention patterns."""
    normal: dict[str, Any] = {}
    for key, value in values.items():
        if key not in KEYS:
            continue
        field = SECTIONS[KEYS[key]].model_fields[key]
        if value is None:  # GPT-NeoX: absent
            if not field.is_required() and field.get_default(call_default_factory=True) is not None:
                continue
        elif isinstance(value, str):
            value = next((choice for choice in _choices(field) if choice.lower() == value.lower()), value)
        normal[key] = value
    if normal.get("attention_config") is not None:
        layers = normal.get("num_layers")
        try:
            normal["attention_config"] = expand_attention(normal["attention_config"], layers, layers_known=not fragment or layers)
        except ValueError as error:
            problems.append(KeyProblem(key="attention_config", wrong=str(error)))
            del normal["attention_config"]
        else:
            if unknown := tuple(_unknown_kinds(normal["attention_config"])):
                problems += unknown
                del normal["attention_config"]
    return normal


def _unknown_kinds(kinds: Any) -> Iterator[KeyProblem]:
    """Names of attention that are none, each once however many layers have it."""
    for kind in dict.fromkeys(kind for kind in kinds if isinstance(kind, str) and kind not in ATTENTION_KINDS):
        near = difflib.get_close_matches(kind, ATTENTION_KINDS, n=1, cutoff=0.5)
        fix = f"did you mean {near[0]}?" if near else f"write one of {', '.join(ATTENTION_KINDS)}"
        yield KeyProblem(key="attention_config", wrong=f"{kind!r} is no kind of attention", fix=fix)


def _choices(field: FieldInfo) -> tuple[str, ...]:
    found: list[str] = []
    pending = [field.annotation]
    while pending:
        annotation = pending.pop()
        args = getattr(annotation, "__args__", ())
        found += [arg for arg in args if isinstance(arg, str)]
        pending += [arg for arg in args if not isinstance(arg, str)]
    return tuple(found)


def _unknown(key: str) -> KeyProblem:
    near = nearest_key(key)
    return KeyProblem(key=key, wrong="unknown key", fix=f"did you mean {near}?" if near else "remove it")


def _refusals(key: str, field: FieldInfo, value: Any) -> Iterator[KeyProblem]:
    """Keys, also inside sections, that the launcher sets or that have no effect."""
    status, inner = status_of(field), sub_section(field)
    if status is Status.RUNTIME and value is not None:
        yield KeyProblem(key=key, wrong=f"is set by the launcher: {reason_of(field)}", fix="remove it")
    if status is Status.RETIRED and value != field.get_default(call_default_factory=True):
        yield KeyProblem(key=key, wrong=f"has no effect: {reason_of(field)}", fix="remove it")
    elif inner is not None and isinstance(value, Mapping):
        for name in value.keys() & inner.model_fields.keys():
            yield from _refusals(f"{key}.{name}", inner.model_fields[name], value[name])


def _problem(section: type[Section], details: ErrorDetails) -> KeyProblem:
    """Pydantic's error in our words: which key, what it should be, what it was."""
    location = ".".join(str(part) for part in details["loc"] if not str(part).startswith(("literal[", "tuple[", "constrained-")))
    kind, value = details["type"], details["input"]
    if kind == "missing" and isinstance(details["loc"][-1], int):  # pydantic names each place of a tuple that is not filled
        return KeyProblem(key=location.rpartition(".")[0], wrong=f"expected more values, got {_shown(value)}")
    if kind == "missing":
        return KeyProblem(key=location, wrong="is required and absent", fix=f"add {location}: {_example(section, location)}")
    if kind == "extra_forbidden":
        return KeyProblem(key=location, wrong="unknown key", fix=_nearest_inside(section, location))
    if kind in ("value_error", "absent"):
        text = str(details["ctx"]["error" if kind == "value_error" else "text"])
        return KeyProblem(key=location or _first_word(text), wrong=text)
    expected = _EXPECTED.get(kind)
    if expected is None:
        text, fix = details["msg"], _text_trap(kind, value) or _nearest_choice(details)
        return KeyProblem(key=location, wrong=f"{text[0].lower()}{text[1:]}, got {_shown(value)}", fix=fix)
    return KeyProblem(key=location, wrong=f"expected {expected}, got {_shown(value)}", fix=_text_trap(kind, value))


def _nearest_choice(details: ErrorDetails) -> str:
    """Of the words that a key can have, the one that is spelled most like what it was given."""
    if details["type"] != "literal_error" or not isinstance(details["input"], str):
        return ""
    choices = re.findall(r"'([^']*)'", details["ctx"]["expected"])
    near = difflib.get_close_matches(details["input"].lower(), choices, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else ""


def _nearest_inside(section: type[Section], location: str) -> str:
    """The key of the same sub-section that is spelled most like the last word of ``location``."""
    *outer, last = location.split(".")
    inside: type[Section] | None = section
    for name in outer:
        inside = sub_section(inside.model_fields[name]) if inside is not None and name in inside.model_fields else None
    near = difflib.get_close_matches(last, inside.model_fields, n=1, cutoff=0.6) if inside is not None else []
    if near:
        return f"did you mean {'.'.join((*outer, near[0]))}?"
    return f"{last} stands outside of {outer[0]}: move it there" if outer and last in KEYS else "remove it"


def sub_section(field: FieldInfo) -> type[Section] | None:
    """The type of a key that is itself a section (``optimizer``, ``fp16``), or ``None``."""
    for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "dict_type": "a section (key: value)",
    "model_type": "a section (key: value)",
    "list_type": "a list",
    "tuple_type": "a list",
}


def _text_trap(kind: str, value: Any) -> str:
    """YAML 1.1 reads some numbers as text."""
    if kind in ("float_type", "int_type") and isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return ""
        if kind == "int_type" and not number.is_integer():
            return ""
        mantissa = value if "e" not in value.lower() else f"{value.lower().split('e')[0]}.0e{value.lower().split('e')[1]}"
        written = mantissa if kind == "float_type" else f"{int(number)}"
        return f"YAML 1.1 reads {value} as text; write {written}"
    if kind in ("string_type", "literal_error") and isinstance(value, bool):
        return "YAML 1.1 reads no, off, yes and on as false and true; put the text in quotes"
    return ""


def _named(value: Any, long: str = "the value") -> str:
    """A short value as it is written, for a sentence."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 30 else long


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"the text {value!r}" if isinstance(value, str) else repr(value)


def _example(section: type[Section], key: str) -> str:
    field = section.model_fields.get(key)
    return {int: "<number>", float: "<number>"}.get(field.annotation, "<value>") if field is not None else "<value>"  # type: ignore[arg-type]


def _first_word(message: str) -> str:
    return next((word.strip(":,") for word in message.split() if word.strip(":,").split(".")[0] in KEYS), message.split()[0])


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.model_dump() if isinstance(value, BaseModel) else value for key, value in values.items()}
