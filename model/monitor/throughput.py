"""Tokens and floating-point operations per second.

FLOPs of a step: Narayanan et al. 2021, "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM",
arXiv:2104.04473, section 5.1: 24 c B S L D^2 (1 + S / 6D + V / 16LD), c = 3 (forward, and twice that backward), 4 when
activations are recomputed; here with the MLP's real width F: its share of the 24 D^2, 16 D^2, becomes 4 D F.
"""

from __future__ import annotations

from model.config import RunConfig


def step_flops(config: RunConfig, sequences: int, padded_vocab: int, *, recomputed: bool) -> float:
    """Floating-point operations of one optimizer step over ``sequences`` sequences.

    ``recomputed``: count recomputed activations too (hardware FLOPs); without, model FLOPs.
    """
    shape = config.architecture
    tokens = sequences * shape.seq_length
    passes = 4 if recomputed and config.training.checkpoint_activations else 3
    per_layer = 8 * shape.hidden_size**2 + 4 * shape.hidden_size * shape.ffn_size + 4 * shape.seq_length * shape.hidden_size
    return tokens * (passes * shape.num_layers * per_layer + 3 * 2 * shape.hidden_size * padded_vocab)
