"""Small networks and batches for tests."""

from __future__ import annotations

from typing import Any

import torch

from model.config import RunConfig
from model.data.batch import Batch

VOCAB = 61
"""Odd, so that the padding (to 64) is seen."""


def small_config(**keys: Any) -> RunConfig:
    """Two layers, four heads, fp32; wide initial values, so that every part of the network matters."""
    small = {
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "seq_length": 24,
        "max_position_embeddings": 24,
        "pos_emb": "rotary",
        "rotary_pct": 0.5,
        "no_weight_tying": True,
        "make_vocab_size_divisible_by": 32,
        "init_method_std": 0.3,
        "output_layer_init_method": "normal",
        "train_micro_batch_size_per_gpu": 3,
        "train_iters": 5,
    }
    return RunConfig.from_keys(small | keys)


def small_batch(*, seed: int = 0, sequences: int = 3, length: int = 24, doc_ids: torch.Tensor | None = None) -> Batch:
    """Random tokens with some labels masked out."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCAB, (sequences, length + 1), generator=generator)
    mask = (torch.rand(sequences, length, generator=generator) > 0.2).float()
    return Batch(
        tokens_BS=tokens[:, :-1],
        labels_BS=tokens[:, 1:].contiguous(),
        loss_mask_BS=mask,
        doc_ids_BS=doc_ids,
        sample_B=torch.arange(sequences),
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "sequential": {},
    "sequential, tied head, flash": {"no_weight_tying": False, "attention_config": [[["flash"], "all"]]},
    "parallel": {"gpt_j_residual": True},
    "parallel, fused, no biases": {
        "gpt_j_residual": True,
        "use_bias_in_attn_linear": False,
        "use_bias_in_mlp": False,
        "scaled_upper_triang_masked_softmax_fusion": True,
        "bias_gelu_fusion": True,
    },
    "parallel, tied norm, tied head": {"gpt_j_residual": True, "gpt_j_tied": True, "no_weight_tying": False},
    "no positions": {"pos_emb": "none", "attention_config": ["global", "flash"]},
}
"""Name -> keys: every rule of the network at least once."""
