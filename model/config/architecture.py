"""Keys that shape the network and how its weights begin."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from model.config.keys import Section, live, planned

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
TRAINED_INITS = ("normal", "scaled_normal", "wang_init", "small_init", "single_residual_scaled_normal")


class Parallelism(Section):
    """How the model is cut over GPUs."""

    model_parallel_size: int = live(1, ge=1, doc="Tensor parallelism: GPUs that share each layer's matrices.")
    pipe_parallel_size: int = live(
        0, ge=0, trains=(0, 1), doc="Pipeline stages; 0 and 1 both mean that every GPU holds all layers."
    )


class Architecture(Section):
    """Sizes and shape of the transformer."""

    num_layers: int = live(ge=1, doc="Transformer blocks.")
    hidden_size: int = live(ge=1, doc="Width of the residual stream.")
    num_attention_heads: int = live(ge=1, doc="Attention heads; must divide hidden_size.")
    seq_length: int = live(ge=1, doc="Tokens in a training sequence.")
    max_position_embeddings: int = live(ge=1, doc="Longest sequence the positions can name; at least seq_length.")
    intermediate_size: int | None = live(None, ge=1, doc="Width of the MLP; 4 x hidden_size when absent.")
    norm: Literal["layernorm", "rmsnorm", "non_parametric_layernorm", "scalenorm", "te_rmsnorm", "te_layernorm"] = live(
        "layernorm", trains=("layernorm",), doc="Normalization of every sub-layer's input."
    )
    layernorm_epsilon: float = live(1e-5, gt=0, doc="Added to the variance in LayerNorm.")
    layernorm_fusion: bool = live(False, trains=(False,), doc="Fused LayerNorm kernel instead of torch's.")
    pos_emb: Literal["learned", "rotary", "sinusoidal", "rpe", "alibi", "none"] = live(
        "learned", trains=("rotary", "none"), doc="Position encoding."
    )
    rotary_pct: float = live(1.0, gt=0, le=1, doc="Share of each head's dimensions that rotate.")
    rotary_emb_base: int = live(10000, ge=1, doc="Base of the rotary frequencies.")
    no_weight_tying: bool = live(False, doc="True: the output head has its own matrix.")
    attention_config: tuple[AttentionKind, ...] | None = live(
        None, strict=False, doc="Kind of attention per layer, e.g. [[[flash], 12]] or [[[global], all]]; global when absent."
    )
    make_vocab_size_divisible_by: int = live(128, ge=1, doc="The vocabulary is padded to a multiple of this x model_parallel_size.")
    activation: Literal[
        "gelu", "geglu", "relu", "softsign", "swish", "mish", "silu", "reglu", "swiglu", "bilinear", "glu"
    ] = live("gelu", trains=("gelu",), doc="Activation of the MLP.")
    scaled_upper_triang_masked_softmax_fusion: bool = live(
        False, doc="Causal attention as one fused operation instead of scores, softmax and product."
    )
    bias_gelu_fusion: bool = live(False, doc="GELU by its tanh approximation, as GPT-NeoX's fused kernel; erf otherwise.")
    attention_softmax_in_fp32: bool = live(False, doc="Softmax of the unfused attention in fp32 under reduced precision.")
    rope_fusion: bool = live(False, trains=(False,), doc="Rotary positions as one fused kernel.")
    gpt_j_residual: bool = live(False, doc="Attention and MLP side by side on the same residual, summed once.")
    gpt_j_tied: bool = live(False, doc="With gpt_j_residual: one norm feeds both attention and MLP.")
    use_bias_in_attn_linear: bool = live(True, doc="Biases in the attention's linear layers.")
    use_bias_in_mlp: bool = live(True, doc="Biases in the MLP's linear layers.")
    hidden_dropout: float = live(0.0, ge=0, lt=1, doc="Dropout on embeddings and on both residual additions.")
    attention_dropout: float = live(0.0, ge=0, lt=1, doc="Dropout on attention probabilities.")
    init_method: InitMethod = live("normal", trains=TRAINED_INITS, doc="Initialization of embeddings, QKV, MLP input and head.")
    output_layer_init_method: InitMethod = live(
        "scaled_normal", trains=TRAINED_INITS, doc="Initialization of the two matrices that write to the residual stream."
    )
    init_method_std: float = live(0.02, gt=0, doc="Standard deviation of the normal methods.")
    output_layer_parallelism: Literal["column"] = planned("column", doc="How the output head is cut under tensor parallelism.")
    bias_dropout_fusion: bool = live(False, trains=(False,), doc="Bias, dropout and residual addition as one fused kernel.")

    @model_validator(mode="after")
    def _fits(self) -> Architecture:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}")
        if self.max_position_embeddings < self.seq_length:
            raise ValueError(
                f"max_position_embeddings {self.max_position_embeddings} is below seq_length {self.seq_length}: "
                f"write max_position_embeddings: {self.seq_length}"
            )
        if self.attention_config is not None and len(self.attention_config) != self.num_layers:
            raise ValueError(f"attention_config names {len(self.attention_config)} layers, num_layers is {self.num_layers}")
        return self

    @property
    def head_size(self) -> int:
        """Dimensions of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def ffn_size(self) -> int:
        """Width of the MLP between its two matrices."""
        return self.intermediate_size if self.intermediate_size is not None else 4 * self.hidden_size

    @property
    def attention_kinds(self) -> tuple[AttentionKind, ...]:
        """The kind of attention of each layer."""
        return self.attention_config or ("global",) * self.num_layers

    @property
    def rotary_dims(self) -> int:
        """Dimensions of a head that rotate: an even number, rounded down."""
        return int(self.head_size * self.rotary_pct) // 2 * 2


__all__ = ["Architecture", "AttentionKind", "InitMethod", "Parallelism"]
