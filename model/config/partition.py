"""Which layers each pipeline stage holds, and how many parameters a layer has.  Arithmetic, no torch.

The layers of the network in order are the embedding, block 0 ... block L-1, the final norm and the head: L + 3 of them.
``pipe_partition_method`` has DeepSpeed's meanings (deepspeed/runtime/pipe/module.py, ``_partition_layers``), and layers have the
class names of GPT-NeoX (megatron/model/gpt2_model.py), so that its files cut as they did: the fullest stage is as small as can be.
Among the cuts that share this smallest maximum ours is the most even one, and what cannot be even stands on a stage in the middle:
the last one computes the head as well, and the first one holds the activations of most micro-batches.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

from model.config.architecture import Architecture
from model.config.kinds import NORMS
from model.config.run import RunConfig

BLOCK_NAMES = {"rwkv": "RWKVResidualLayerPipe", "mamba": "ParallelMambaResidualLayerPipe", "gmlp": "GMLPBlock", "amlp": "GMLPBlock"}
"""GPT-NeoX's class of a block by its kind of attention; ``ParallelTransformerLayerPipe`` for the others."""


def stage_bounds(config: RunConfig, pipe: int, *, parameters: Sequence[int] | None = None) -> tuple[range, ...]:
    """The layers of every stage, as ranges over embedding, blocks, final norm and head.

    Args:
        pipe: number of stages; 0 and 1 are one stage.
        parameters: parameters of each layer (:func:`layer_parameters`), which ``pipe_partition_method: parameters`` needs.

    Raises:
        ValueError: the method names no layer, or there are more stages than layers that it counts.
    """
    method, stages = config.parallelism.pipe_partition_method, max(1, pipe)
    weights = _weights(config, parameters) if stages > 1 else (1,) * (config.architecture.num_layers + 3)
    counted = sum(weight > 0 for weight in weights)
    if not counted:
        raise ValueError(f"pipe_partition_method {method} names no layer of {', '.join(sorted(set(layer_names(config))))}")
    if counted < stages:
        raise ValueError(
            f"pipe_partition_method {method} counts {counted} layers, which cannot be dealt to {stages} stages: "
            f"write pipe_parallel_size {counted} or less"
        )
    return _evenest(tuple(weights), stages)


def layer_names(config: RunConfig) -> tuple[str, ...]:
    """The class of each layer, as GPT-NeoX calls it."""
    blocks = (BLOCK_NAMES.get(kind, "ParallelTransformerLayerPipe") for kind in config.architecture.attention_kinds)
    head = "ParallelLinearPipe" if config.architecture.no_weight_tying else "EmbeddingPipe"
    return ("EmbeddingPipe", *blocks, "NormPipe", head)


def layer_parameters(config: RunConfig, padded_vocab: int, tensor: int = 1) -> tuple[int, ...]:
    """Parameters of each layer on one of ``tensor`` ranks; a tied head counts its copy of the embedding's matrix."""
    shape = config.architecture
    matrix = padded_vocab * shape.hidden_size // tensor
    positions = shape.positions.in_embedding(shape)
    return (matrix + positions, *(_block(shape, tensor),) * shape.num_layers, _norm(shape, shape.hidden_size), matrix)


def shared_parameters(config: RunConfig, tensor: int = 1) -> int:
    """Parameters that all blocks share, of which every stage has a copy, on one of ``tensor`` ranks."""
    return config.architecture.positions.shared(config.architecture) // tensor


def _block(shape: Architecture, tensor: int) -> int:
    hidden, inner = shape.hidden_size, shape.ffn_size
    key_values = 2 * shape.head_size * shape.kv_heads
    shared = key_values if shape.kv_heads % tensor else 0  # fewer heads than ranks: every rank holds them all
    gates = 2 if shape.gated else 1
    cut_outputs = hidden + key_values - shared
    cut = hidden * cut_outputs + hidden * hidden + (gates + 1) * hidden * inner
    cut += cut_outputs * shape.use_bias_in_attn_linear + gates * inner * shape.use_bias_in_mlp
    whole = hidden * shared + (shared + hidden) * shape.use_bias_in_attn_linear + hidden * shape.use_bias_in_mlp
    norms = 1 if shape.gpt_j_residual and shape.gpt_j_tied else 2
    of_heads = 2 * _norm(shape, shape.head_size) if shape.use_qk_layernorm else 0
    return cut // tensor + whole + norms * _norm(shape, hidden) + of_heads


def _norm(shape: Architecture, width: int) -> int:
    """Parameters of a norm of that width."""
    return NORMS[shape.norm].parameters(shape, width)


def _weights(config: RunConfig, parameters: Sequence[int] | None) -> Sequence[int]:
    method, names = config.parallelism.pipe_partition_method, layer_names(config)
    if method.lower() == "uniform":
        return (1,) * len(names)
    if method.lower() == "parameters":
        assert parameters is not None and len(parameters) == len(names), "the parameters of every layer are needed"
        return parameters
    pattern = re.compile(method.partition(":")[2], re.IGNORECASE)
    counted = {name: int(pattern.search(name) is not None) for name in set(names)}
    return [counted[name] for name in names]


_Reached = tuple[tuple[int, int, int], int]
"""The cost of the stages up to some layer, and where the last of them begins."""


@lru_cache(maxsize=64)
def _evenest(weights: tuple[int, ...], stages: int) -> tuple[range, ...]:
    """Contiguous parts, none empty, with the smallest maximum; then the least sum of squares; then extras in the middle;
    then the most even numbers of layers, where layers are not counted."""
    sums = (0, *accumulate(weights))
    most = _smallest_maximum(weights, stages)
    best: list[dict[int, _Reached]] = [{0: ((0, 0, 0), 0)}]
    for stage in range(stages):
        found: dict[int, _Reached] = {}
        for start, ((squares, dislike, lengths), _) in best[-1].items():
            for end in range(start + 1, len(weights) - (stages - 1 - stage) + 1):
                load = sums[end] - sums[start]
                if load > most:
                    break
                length = end - start
                cost = (squares + load * load, dislike + load * _dislike(stage, stages), lengths + length * length)
                if end not in found or cost < found[end][0]:
                    found[end] = (cost, start)
        best.append(found)
    return _follow_back(best, len(weights))


def _follow_back(best: Sequence[dict[int, _Reached]], end: int) -> tuple[range, ...]:
    parts: list[range] = []
    for found in reversed(best[1:]):
        start = found[end][1]
        parts.append(range(start, end))
        end = start
    return tuple(reversed(parts))


def _dislike(stage: int, stages: int) -> int:
    """Where an extra layer stands worse: the last stage computes the head, the earlier ones hold more micro-batches."""
    return stages if stage == stages - 1 else stages - 1 - stage


def _smallest_maximum(weights: Sequence[int], stages: int) -> int:
    """The least load that the fullest of ``stages`` contiguous parts can have.

    Parts may be split further without becoming larger, so what fits in fewer parts fits in exactly ``stages``.
    """
    low, high = max(weights), sum(weights)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _parts(weights, middle) <= stages else (middle + 1, high)
    return low


def _parts(weights: Sequence[int], most: int) -> int:
    """How many parts greedy filling up to ``most`` makes."""
    parts, load = 1, 0
    for weight in weights:
        if load + weight > most:
            parts, load = parts + 1, 0
        load += weight
    return parts
