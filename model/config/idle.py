"""Keys that change nothing beside the others: an option of a block, norm, position or objective that the run does not have.

GPT-NeoX takes them in silence.  What is fulfilled anyway is not idle: fused attention has its softmax in fp32 whether or not
attention_softmax_in_fp32 asks for it.  Changes when a key takes effect elsewhere, or another one works only with some other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from model.config.architecture import SPARSE
from model.config.keys import KeyProblem
from model.config.kinds import NORMS
from model.config.run import KEYS, SECTIONS, RunConfig

UNJUDGED = frozenset({"gmlp", "amlp", "rwkv", "mamba"})
"""Kinds of blocks that are not built yet: which keys of the network count in one of nothing else is not known."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """What keys work with."""

    keys: tuple[str, ...]
    met: Callable[[RunConfig], bool]
    with_: str
    """``KEY: VALUE``, or in words."""


def _need(keys: str, with_: str, met: Callable[[RunConfig], bool]) -> Need:
    return Need(keys=tuple(keys.split()), with_=with_, met=met)


def _kinds(*kinds: str) -> Callable[[RunConfig], bool]:
    return lambda c: bool(set(c.architecture.attention_kinds) & set(kinds))


def _epsilons() -> Iterator[Need]:
    """The key of each norm that has one (model/config/kinds.py); the first norm that reads it is the one to name."""
    for key, name in {kind.epsilon: name for name, kind in reversed(NORMS.items()) if kind.epsilon}.items():
        yield _need(key, f"norm: {name}", lambda c, key=key: NORMS[c.architecture.norm].epsilon == key)  # type: ignore[misc]


def _draws_with_std(config: RunConfig) -> bool:
    """The methods whose deviation is not made of sizes alone (model/layers/init.py)."""
    shape = config.architecture
    return bool({shape.init_method, shape.output_layer_init_method} & {"normal", "scaled_normal", "single_residual_scaled_normal"})


NEEDS = (
    _need(
        "rotary_pct rotary_emb_base rotary_save_freqs_buffer rope_fusion",
        "pos_emb: rotary",
        lambda c: c.architecture.pos_emb == "rotary",
    ),
    _need("init_method_std", "a normal method among init_method and output_layer_init_method", _draws_with_std),
    _need("rpe_num_buckets rpe_max_distance", "pos_emb: rpe", lambda c: c.architecture.pos_emb == "rpe"),
    _need("opt_pos_emb_offset", "pos_emb: learned", lambda c: c.architecture.pos_emb == "learned"),
    _need("layernorm_fusion", "norm: layernorm", lambda c: c.architecture.norm == "layernorm"),
    _need("rmsnorm_fusion", "norm: rmsnorm", lambda c: c.architecture.norm == "rmsnorm"),
    *_epsilons(),
    _need("mlp_multiple_of", "a gated activation", lambda c: c.architecture.gated),
    _need("use_flashattn_swiglu", "activation: swiglu", lambda c: c.architecture.activation == "swiglu"),
    _need("bias_gelu_fusion", "activation: gelu", lambda c: c.architecture.activation == "gelu"),
    _need("gpt_j_tied", "gpt_j_residual: true", lambda c: c.architecture.gpt_j_residual),
    _need("apply_query_key_layer_scaling", "a layer of global or sparse attention", _kinds("global", *SPARSE)),
    _need("sparsity_config", "a local or sparse layer in attention_config", _kinds(*SPARSE)),
    _need("gmlp_attn_dim", "an amlp layer in attention_config", _kinds("amlp")),
    _need("dim_att head_size ffn_dim", "an rwkv layer in attention_config", _kinds("rwkv")),
    _need(" ".join(key for key in KEYS if key.startswith("mamba_")), "a mamba layer in attention_config", _kinds("mamba")),
    _need(
        "moe_expert_interval moe_top_k moe_router_type moe_jitter_eps", "moe_num_experts", lambda c: c.experts.moe_num_experts > 1
    ),
    _need("dpo_fp32 dpo_reference_free dpo_beta", "train_impl: dpo", lambda c: c.post_training.train_impl == "dpo"),
    _need(
        "kto_fp32 kto_desirable_weight kto_undesirable_weight kto_beta",
        "train_impl: kto",
        lambda c: c.post_training.train_impl == "kto",
    ),
    _need(
        "fp32_reinforce kl_impl kl_div_beta reinforce_leave_one_out",
        "train_impl: reinforce",
        lambda c: c.post_training.train_impl == "reinforce",
    ),
)


def idle_keys(config: RunConfig, written: Collection[str]) -> Iterator[KeyProblem]:
    """A problem for every key that is written, is no default, and changes nothing."""
    values, unjudged = config.keys(), set(config.architecture.attention_kinds) <= UNJUDGED
    for need in NEEDS:
        if need.met(config):
            continue
        for key in need.keys:
            if unjudged and KEYS[key] == "architecture":
                continue
            default = SECTIONS[KEYS[key]].model_fields[key].get_default(call_default_factory=True)
            if key in written and values[key] != default:
                write = f", or write {need.with_}" if ": " in need.with_ else ""
                yield KeyProblem(key=key, wrong=f"changes nothing without {need.with_}", fix=f"remove it{write}")
