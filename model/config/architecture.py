"""Keys that shape the network and how its weights begin."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from pydantic import field_validator, model_validator

from model.config.keys import Section, live, planned, retired
from model.config.kinds import ACTIVATIONS, NORMS, POSITIONS, PositionEncoding

AttentionKind = Literal[
    "global", "local", "sparse_fixed", "sparse_variable", "bigbird", "bslongformer", "gmlp", "amlp", "flash", "rwkv", "mamba"
]
InitMethod = Literal[
    "normal",
    "scaled_normal",
    "orthogonal",
    "scaled_orthogonal",
    "xavier_uniform",
    "xavier_normal",
    "wang_init",
    "small_init",
    "single_residual_scaled_normal",
]
if TYPE_CHECKING:  # a checker of types sees no Literal in names that a table has
    NormName = str
    ActivationName = str
    PositionName = str
else:
    NormName, ActivationName, PositionName = Literal[tuple(NORMS)], Literal[tuple(ACTIVATIONS)], Literal[tuple(POSITIONS)]
SPARSE = ("local", "sparse_fixed", "sparse_variable", "bigbird", "bslongformer")
"""Kinds of attention whose queries see some blocks of keys."""


class Sparsity(Section):
    """Which blocks of keys a block of queries sees, in layers of the kinds in ``SPARSE``.

    The names and rules are those of DeepSpeed's SparsityConfig classes.  A key is for the kinds that it names.
    """

    block: int = live(16, ge=1, doc="Tokens of a block, in all kinds.")
    different_layout_per_head: bool = live(
        False, doc="Heads differ in what is global (sparse_fixed) or random (sparse_variable, bigbird); otherwise they are alike."
    )
    num_local_blocks: int | None = live(
        None,
        ge=1,
        doc="Blocks of a window: in sparse_fixed side by side (4 when absent), in local twice what a query sees before its own.",
    )
    num_global_blocks: int = live(
        1,
        ge=1,
        doc="sparse_fixed: the last blocks of each window, for all rows below. bigbird: the first blocks, for and to all.",
    )
    num_different_global_patterns: int = live(
        1, ge=1, doc="sparse_fixed: which blocks of the window those are, in turn over the heads."
    )
    num_random_blocks: int | None = live(
        None, ge=0, doc="sparse_variable (0 when absent), bigbird (1): random blocks of each row, drawn from the run's seed."
    )
    local_window_blocks: tuple[int, ...] = live(
        (4,), strict=False, min_length=1, doc="sparse_variable: blocks of the windows side by side; the last one repeats."
    )
    global_block_indices: tuple[int, ...] = live(
        (0,), strict=False, doc="sparse_variable, bslongformer: the blocks that all rows below see, or their first ones."
    )
    global_block_end_indices: tuple[int, ...] | None = live(
        None,
        strict=False,
        doc="sparse_variable, bslongformer: where those end, each before the block named here; one block each when absent.",
    )
    num_sliding_window_blocks: int | None = live(
        None,
        ge=1,
        doc="bigbird, bslongformer (3 when absent): half of these before a block's own. local (4): without num_local_blocks.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Sparsity:
        patterns = self.num_different_global_patterns
        if patterns > 1 and not self.different_layout_per_head:
            raise ValueError(f"num_different_global_patterns {patterns} is of different heads: add different_layout_per_head: true")
        if min(self.global_block_indices, default=0) < 0:
            raise ValueError(f"global_block_indices {list(self.global_block_indices)}: the first block is 0")
        ends = self.global_block_end_indices
        if ends is not None and len(ends) != len(self.global_block_indices):
            raise ValueError(
                f"global_block_end_indices names {len(ends)} blocks, global_block_indices {len(self.global_block_indices)}"
            )
        wrong = next(
            (f"{start} to {end}" for start, end in zip(self.global_block_indices, ends or (), strict=False) if start >= end), None
        )
        if wrong is not None:
            raise ValueError(f"global_block_end_indices: {wrong} is no block: an end is above its global_block_indices")
        if min(self.local_window_blocks) < 1:
            raise ValueError(f"local_window_blocks {list(self.local_window_blocks)}: a window has at least 1 block")
        return self


READ_BY = {
    "different_layout_per_head": {"sparse_fixed", "sparse_variable", "bigbird"},
    "num_local_blocks": {"local", "sparse_fixed"},
    "num_global_blocks": {"sparse_fixed", "bigbird"},
    "num_different_global_patterns": {"sparse_fixed"},
    "num_random_blocks": {"sparse_variable", "bigbird"},
    "local_window_blocks": {"sparse_variable"},
    "global_block_indices": {"sparse_variable", "bslongformer"},
    "global_block_end_indices": {"sparse_variable", "bslongformer"},
    "num_sliding_window_blocks": {"local", "bigbird", "bslongformer"},
}
"""Key of sparsity_config -> the kinds of attention that it shapes, if not all of them."""


class Parallelism(Section):
    """How the model is cut over GPUs."""

    model_parallel_size: int = live(1, ge=1, doc="Tensor parallelism: GPUs that share each layer's matrices.")
    pipe_parallel_size: int = live(0, ge=0, doc="Pipeline stages; 0 and 1 both mean that every GPU holds all layers.")
    pipe_partition_method: str = live(
        "type:transformer|mlp",
        doc="How layers are dealt to stages: evenly by number (uniform), by parameters, or by the number of layers whose class in "
        "GPT-NeoX matches (type:REGEX).",
    )
    sequence_parallel: bool = live(False, doc="Norms and dropouts work on a share of the sequence under tensor parallelism.")

    @field_validator("pipe_partition_method")
    @classmethod
    def _method_is_known(cls, method: str) -> str:
        kind, colon, pattern = method.partition(":")
        if kind.lower() == "type" and pattern:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression ({error})") from error
        elif colon or kind.lower() not in ("parameters", "uniform"):
            raise ValueError(f"{method!r} is no method: write type:transformer|mlp (or another type:REGEX), parameters or uniform")
        return method


class Architecture(Section):
    """Sizes and shape of the transformer."""

    num_layers: int = live(ge=1, doc="Transformer blocks.")
    hidden_size: int = live(ge=1, doc="Width of the residual stream.")
    num_attention_heads: int = live(ge=1, doc="Attention heads; must divide hidden_size.")
    seq_length: int = live(ge=1, doc="Tokens in a training sequence.")
    max_position_embeddings: int = live(ge=1, doc="Longest sequence the positions can name; at least seq_length.")
    intermediate_size: int | None = live(None, ge=1, doc="Width of the MLP; 4 x hidden_size when absent.")
    expansion_factor: float | None = live(None, gt=0, doc="Width of the MLP as a multiple of hidden_size.")
    mlp_multiple_of: int = live(
        1, ge=1, doc="The width of a gated MLP, a third of the one that is asked for, is rounded up to a multiple of this."
    )
    num_kv_heads: int | None = live(None, ge=1, doc="Key-value heads (GQA); as many as attention heads when absent.")
    sliding_window_width: int | None = live(
        None, ge=1, doc="Each token sees this many before it, and itself (sliding_window of Mistral and Hugging Face is one more)."
    )
    norm: NormName = live(
        "layernorm",
        trains=tuple(name for name, kind in NORMS.items() if kind.make),
        doc="Normalization of every sub-layer's input; te_: Transformer Engine's.",
    )
    layernorm_epsilon: float = live(1e-5, gt=0, doc="Added to the variance in LayerNorm.")
    rms_norm_epsilon: float = live(1e-8, gt=0, doc="Added to the mean square in RMSNorm.")
    scalenorm_epsilon: float = live(1e-8, gt=0, doc="Least length that ScaleNorm divides by.")
    use_bias_in_norms: bool = live(True, doc="LayerNorm has a bias.")
    use_qk_layernorm: bool = live(False, doc="Normalize queries and keys, each head by itself, before positions are told.")
    rmsnorm_fusion: bool = planned(False, doc="Fused RMSNorm kernel.")
    layernorm_fusion: bool = planned(False, doc="Fused LayerNorm kernel instead of torch's.")
    pos_emb: PositionName = live("learned", doc="Position encoding.")
    rotary_pct: float = live(1.0, gt=0, le=1, doc="Share of each head's dimensions that rotate.")
    rotary_emb_base: int = live(10000, ge=2, doc="Base of the rotary frequencies.")
    rotary_save_freqs_buffer: bool = live(
        False, doc="Rotary frequencies stand in the checkpoint; a run that continues from it with others is refused."
    )
    rpe_num_buckets: int = live(32, ge=2, doc="Buckets of T5's relative positions; half of them for one distance each.")
    rpe_max_distance: int = live(128, ge=2, doc="Distance from which they share a bucket.")
    opt_pos_emb_offset: int = live(
        0, ge=0, doc="Learned positions start at this row of max_position_embeddings (2 for OPT, which has 2050 of them)."
    )
    no_weight_tying: bool = live(False, doc="True: the output head has its own matrix.")
    attention_config: tuple[AttentionKind, ...] | None = live(
        None, strict=False, doc="Kind of attention per layer, e.g. [[[flash], 12]] or [[[global], all]]; global when absent."
    )
    sparsity_config: Sparsity | None = live(None, doc="Block sizes and patterns of sparse attention.")
    make_vocab_size_divisible_by: int = live(128, ge=1, doc="The vocabulary is padded to a multiple of this x model_parallel_size.")
    activation: ActivationName = live("gelu", doc="Activation of the MLP.")
    use_flashattn_swiglu: bool = live(False, doc="SwiGLU by flash-attn.")
    scaled_masked_softmax_fusion: bool = planned(False, doc="Fused softmax under a mask that is not causal.")
    fused_kernels_build_path: str | None = planned(None, doc="Where compiled kernels are kept.")
    apply_query_key_layer_scaling: bool = live(
        False, doc="Scores of the unfused attention stay divided by the layer's number until their softmax, which is in fp32."
    )
    onnx_safe: bool = planned(False, doc="Operations that ONNX can express.")
    scaled_upper_triang_masked_softmax_fusion: bool = live(
        False, doc="Causal attention as one fused operation instead of scores, softmax and product."
    )
    bias_gelu_fusion: bool = live(False, doc="GELU by its tanh approximation, as GPT-NeoX's fused kernel; erf otherwise.")
    attention_softmax_in_fp32: bool = live(False, doc="Softmax of the unfused attention in fp32 under reduced precision.")
    rope_fusion: bool = planned(False, doc="Rotary positions as one fused kernel.")
    gpt_j_residual: bool = live(False, doc="Attention and MLP side by side on the same residual, summed once.")
    gpt_j_tied: bool = live(False, doc="With gpt_j_residual: one norm feeds both attention and MLP.")
    use_bias_in_attn_linear: bool = live(True, doc="Biases in the attention's linear layers.")
    use_bias_in_mlp: bool = live(True, doc="Biases in the MLP's linear layers.")
    hidden_dropout: float = live(0.0, ge=0, lt=1, doc="Dropout on embeddings and on both residual additions.")
    attention_dropout: float = live(0.0, ge=0, lt=1, doc="Dropout on attention probabilities.")
    init_method: InitMethod = live("normal", doc="Initialization of embeddings, QKV, MLP input and head.")
    output_layer_init_method: InitMethod = live(
        "scaled_normal", doc="Initialization of the two matrices that write to the residual stream."
    )
    init_method_std: float = live(0.02, gt=0, doc="Standard deviation of the normal methods.")
    use_cpu_initialization: bool = live(
        False, doc="Draw initial weights on the CPU, the same on every machine; a GPU draws them faster, those of its kind."
    )
    num_unique_layers: int | None = retired(
        None, doc="Layers with weights of their own.", why="validated and never read by GPT-NeoX"
    )
    param_sharing_style: str = retired("grouped", doc="How layers share weights.", why="never read by GPT-NeoX")
    output_layer_parallelism: Literal["column", "row"] = live(
        "column", doc="How the output head is cut under tensor parallelism: along the vocabulary (column) or along its width (row)."
    )
    bias_dropout_fusion: bool = planned(False, doc="Bias, dropout and residual addition as one fused kernel.")

    @model_validator(mode="after")
    def _fits(self) -> Architecture:
        if self.hidden_size % self.num_attention_heads and "mamba" not in self.attention_kinds:  # Mamba has no heads
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}")
        if self.max_position_embeddings < self.seq_length:
            raise ValueError(
                f"max_position_embeddings {self.max_position_embeddings} is below seq_length {self.seq_length}: "
                f"write max_position_embeddings: {self.seq_length}"
            )
        if self.num_attention_heads % self.kv_heads:
            raise ValueError(f"num_kv_heads {self.num_kv_heads} does not divide num_attention_heads {self.num_attention_heads}")
        if self.intermediate_size is not None and self.expansion_factor is not None:
            raise ValueError("expansion_factor and intermediate_size both say how wide the MLP is: remove one of them")
        if self.output_layer_parallelism == "row" and not self.no_weight_tying:
            raise ValueError(
                "output_layer_parallelism row cuts the head along its width, and a tied one is cut as the embedding is: "
                "write no_weight_tying: true, or output_layer_parallelism: column"
            )
        if self.attention_config is not None and len(self.attention_config) != self.num_layers:
            raise ValueError(
                f"attention_config names {len(self.attention_config)} layers, num_layers is {self.num_layers}: "
                "name as many, or write 'all' for the last number: [[[global], all]]"
            )
        self._check_positions()
        self._check_sparsity()
        return self

    def _check_positions(self) -> None:
        if self.pos_emb == "rotary" and self.rotary_dims == 0:
            raise ValueError(
                f"rotary_pct {self.rotary_pct:g} of a head's {self.head_size} dimensions is no pair that could rotate: write more, "
                "or pos_emb: none"
            )
        if self.pos_emb == "learned" and self.seq_length + self.opt_pos_emb_offset > self.max_position_embeddings:
            raise ValueError(
                f"opt_pos_emb_offset {self.opt_pos_emb_offset}: the last of {self.seq_length} tokens (seq_length) needs row "
                f"{self.seq_length + self.opt_pos_emb_offset}, and max_position_embeddings is {self.max_position_embeddings}: "
                f"write max_position_embeddings: {self.seq_length + self.opt_pos_emb_offset}"
            )
        if self.pos_emb == "rpe" and self.rpe_max_distance <= self.rpe_num_buckets // 2:
            raise ValueError(
                f"rpe_max_distance {self.rpe_max_distance} lies among the {self.rpe_num_buckets // 2} distances that have a bucket "
                "each: write more, or fewer rpe_num_buckets"
            )

    def _check_sparsity(self) -> None:
        kinds, keys = set(self.attention_kinds), self.sparsity_config
        if keys is None or not kinds & set(SPARSE):
            return
        window, patterns = keys.num_local_blocks or 4, keys.num_different_global_patterns
        if "sparse_fixed" in kinds and patterns * keys.num_global_blocks > window:
            times = f"num_different_global_patterns {patterns} x " if patterns > 1 else ""
            raise ValueError(
                f"sparsity_config: {times}num_global_blocks {keys.num_global_blocks} does not fit in sparse_fixed's window of "
                f"{window} blocks (num_local_blocks)"
            )
        blocks, furthest = -(-self.seq_length // keys.block), max(keys.global_block_indices, default=0)
        if kinds & READ_BY["global_block_indices"] and furthest >= blocks:
            raise ValueError(f"sparsity_config: global_block_indices {furthest}, and seq_length has the blocks 0 to {blocks - 1}")
        for key, shaped in READ_BY.items():
            if getattr(keys, key) != Sparsity.model_fields[key].default and not kinds & shaped:
                raise ValueError(
                    f"sparsity_config: {key} is for {', '.join(sorted(shaped))}, and no layer is of these kinds: remove it"
                )

    @property
    def head_size(self) -> int:
        """Dimensions of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def kv_heads(self) -> int:
        """Key-value heads."""
        return self.num_kv_heads or self.num_attention_heads

    @property
    def kept_by_activation(self) -> int:
        """Tensors of the MLP's width that its activation keeps for the backward pass."""
        return ACTIVATIONS[self.activation].tensors_kept

    @property
    def gated(self) -> bool:
        """The MLP's first matrix makes values and gates."""
        return ACTIVATIONS[self.activation].gated

    @property
    def ffn_size(self) -> int:
        """Width of the MLP between its two matrices; of values, and of gates, where it is gated.

        GPT-NeoX shares out two thirds of the width that is asked for between values and gates, so that a gated MLP has as many
        weights as a plain one (megatron/model/transformer.py, ParallelMLP): LLaMA's 11008 is asked for as 3 x 11008.
        """
        asked = 4 * self.hidden_size
        if self.intermediate_size is not None:
            asked = self.intermediate_size
        elif self.expansion_factor is not None:
            asked = int(self.expansion_factor * self.hidden_size)
        multiple = self.mlp_multiple_of
        return -(-(2 * asked // 3) // (2 * multiple)) * multiple if self.gated else asked

    @property
    def attention_kinds(self) -> tuple[AttentionKind, ...]:
        """The kind of attention of each layer."""
        default: AttentionKind = "global"
        return self.attention_config or (default,) * self.num_layers

    @property
    def positions(self) -> PositionEncoding:
        """What is known of ``pos_emb``."""
        return POSITIONS[self.pos_emb]

    @property
    def rotary_dims(self) -> int:
        """Dimensions of a head that rotate: an even number, rounded down."""
        return int(self.head_size * self.rotary_pct) // 2 * 2


__all__ = ["Architecture", "AttentionKind", "InitMethod", "Parallelism"]
