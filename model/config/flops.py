"""Floating-point operations of a step.  Arithmetic, no torch; changes when the network computes something else.

The formula: Narayanan et al. 2021, "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM",
arXiv:2104.04473, section 5.1: 24 c B S L D^2 (1 + S / 6D + V / 16LD), c = 3 (forward, and twice that backward), 4 when
activations are recomputed; here with the MLP's real width F: its share of the 24 D^2, 16 D^2, becomes 4 D F (6 D F where a gate
has a matrix of its own); and with the real width K of keys and values: 8 D^2 becomes 4 D (D + K).  Selective recomputation
repeats the scores: 2 S D.
"""

from __future__ import annotations

from model.config.run import RunConfig


def step_flops(config: RunConfig, sequences: int, padded_vocab: int, *, recomputed: bool) -> float:
    """Floating-point operations of one optimizer step over ``sequences`` sequences.

    ``recomputed``: count recomputed activations too (hardware FLOPs); without, model FLOPs.
    """
    shape = config.architecture
    tokens = sequences * shape.seq_length
    width, again = shape.hidden_size, config.recomputes if recomputed else "nothing"
    scores = 4 * shape.seq_length * width
    matrices = 3 if shape.gated else 2
    per_layer = 4 * width * (width + shape.kv_heads * shape.head_size) + 2 * matrices * width * shape.ffn_size + scores
    repeated = {"nothing": 0, "selective": scores // 2, "full": per_layer}[again]
    return tokens * (shape.num_layers * (3 * per_layer + repeated) + 3 * 2 * width * padded_vocab)
