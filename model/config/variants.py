"""Keys of blocks and parametrizations beyond the dense transformer: experts, Mamba, RWKV, gMLP, Transformer Engine, muP."""

from __future__ import annotations

from typing import Any, Literal

from model.config.keys import Section, live, planned, retired


class Experts(Section):
    """Mixture of experts."""

    moe_num_experts: int = planned(1, ge=1, doc="Experts in an expert layer; 1: no experts.")
    moe_expert_interval: int = planned(1, ge=1, doc="Every how many layers the MLP is a mixture of experts.")
    moe_top_k: int = planned(1, ge=1, doc="Experts that each token visits.")
    moe_router_type: Literal["sinkhorn", "topk"] = planned("sinkhorn", doc="How tokens choose experts.")
    moe_jitter_eps: float | None = planned(None, ge=0, doc="Noise on the router's input.")
    moe_lbl_in_fp32: bool = retired(False, doc="Load-balancing loss in fp32.", why="GPT-NeoX computes no load-balancing loss")


class Recurrent(Section):
    """Mamba, RWKV and gMLP blocks."""

    mamba_selective_scan_fusion: bool = planned(False, doc="Fused selective scan.")
    mamba_causal_conv_fusion: bool = planned(False, doc="Fused causal convolution.")
    mamba_inner_func_fusion: bool = planned(False, doc="The whole Mamba block as one kernel.")
    mamba_selective_fp32_params: bool = planned(True, doc="A_log and D stay in fp32.")
    mamba_use_bias_in_conv: bool = planned(True, doc="Bias in Mamba's convolution.")
    mamba_use_bias_in_linears: bool = planned(False, doc="Bias in Mamba's linear layers.")
    dim_att: int | None = planned(None, ge=1, doc="Width of RWKV's time mixing; hidden_size when absent.")
    head_size: int | None = planned(None, ge=1, doc="Size of an RWKV head.")
    ffn_dim: int | None = planned(None, ge=1, doc="Width of RWKV's channel mixing.")
    gmlp_attn_dim: int = planned(64, ge=1, doc="Width of the small attention in aMLP blocks.")


class TransformerEngine(Section):
    """Layers by NVIDIA's Transformer Engine."""

    te_columnparallel: bool = planned(False, doc="Column-parallel layers by Transformer Engine.")
    te_rowparallel: bool = planned(False, doc="Row-parallel layers by Transformer Engine.")
    te_layernorm_mlp: bool = planned(False, doc="Norm and MLP as one Transformer Engine module.")
    te_mha: bool = planned(False, doc="Attention by Transformer Engine.")
    te_fp8_format: Literal["e4m3", "hybrid"] = planned("hybrid", doc="FP8 format of forward and backward.")
    te_fp8_wgrad: bool = planned(True, doc="Weight gradients in FP8.")
    te_fp8_amax_history_len: int = planned(1, ge=1, doc="Steps over which FP8 scales look back.")
    te_fp8_amax_compute_algo: str = planned("most_recent", doc="How FP8 scales are taken from that history.")
    te_fp8_margin: int = retired(0, doc="Margin of FP8 scales.", why="never read by GPT-NeoX")
    te_fp8_mha: bool = planned(False, doc="Attention in FP8.")


class MaximalUpdate(Section):
    """muP (rules: model/mup.py), and tuning of prompts alone."""

    use_mup: bool = live(False, doc="Maximal update parametrization (arXiv:2203.03466), relative to base_shapes_file.")
    coord_check: bool = live(False, doc="Measure activations over widths, with and without muP, instead of training.")
    save_base_shapes: bool = live(False, doc="Write base_shapes_file for this width instead of training.")
    base_shapes_file: str | None = live(None, doc="Base shapes of muP.")
    mup_init_scale: float = live(1.0, gt=0, doc="Initial weights are multiplied by this under muP.")
    mup_embedding_mult: float = live(1.0, doc="Multiplier of embeddings under muP.")
    mup_rp_embedding_mult: float = live(1.0, doc="Multiplier of learned and sinusoidal positions under muP.")
    mup_width_scale: int = live(
        2, ge=2, doc="Ratio of neighbouring widths: of the base and what it is compared with, of coord_check."
    )
    mup_attn_temp: float = live(1.0, gt=0, doc="Attention scores are divided by this under muP.")
    mup_output_temp: float = live(1.0, gt=0, doc="Logits are divided by this under muP.")
    soft_prompt_tuning: dict[str, Any] | None = planned(None, doc="Train a soft prompt in front of a frozen model.")
