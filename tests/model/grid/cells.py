"""The cells of the grid: every legal layout up to eight ranks, each with a network of its own; and a few of them that cover it.

Changes when a layout or a network gets another axis.  No torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import combinations, product
from random import Random
from typing import Any, Literal

RANKS = 8
"""Of the largest cell."""
RANKS_IN_CI = 4
"""Of the largest cell that the covering few are drawn from; starting eight ranks takes longer than all of them."""
VOCAB = 61
"""Divisible by nothing: padded to PADDED on every layout."""
PADDED = 64
SEQUENCES = 8
"""In a step."""
TOKENS = 16
HEADS = 4
CLIP = 0.5
"""Below every gradient norm of the ten steps, so that clipping is always at work."""
RATE = 1e-2
BETAS = (0.9, 0.95)
EPSILON = 1e-4
"""Adam divides rounding by itself where gradients are nearly zero, unless this is large."""
WEIGHT_DECAY = 0.1


QWEN3 = {"norm": "rmsnorm", "use_qk_layernorm": True, "activation": "swiglu", "intermediate_size": 3 * 48}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A layout, and the network and batch that it trains."""

    tensor: int
    pipe: int
    """0 and 1 both mean no stages."""
    data: int
    zero: int
    sequence_parallel: bool
    recompute: Literal["nothing", "deepspeed", "torch", "selective"]
    """Whole blocks by either implementation, or attention and activation only."""

    head: Literal["untied", "tied", "row"] = "untied"
    kv_heads: int = HEADS
    parallel_residual: bool = False
    block: Literal["GPT-NeoX", "Qwen3"] = "GPT-NeoX"
    """LayerNorm and GELU, or RMSNorm, also of queries and keys, and a gated MLP."""
    dropout: float = 0.0
    accumulation: int = 1
    """Micro-batches of a data rank in a step."""
    partition: Literal["type:transformer|mlp", "uniform", "parameters"] = "type:transformer|mlp"
    positions: Literal["rotary", "learned", "rpe"] = "rotary"
    """Without parameters, with a table on the first stage, or with one that all stages share."""

    @property
    def ranks(self) -> int:
        """tensor x pipe x data"""
        return self.tensor * max(1, self.pipe) * self.data

    @property
    def legal(self) -> bool:
        """Nothing in it is refused or without effect."""
        return (
            not (self.zero > 1 and self.pipe > 1)  # DeepSpeed's pipeline engine refuses it
            and not (self.sequence_parallel and self.tensor == 1)
            and not (self.partition != "type:transformer|mlp" and self.pipe < 2)
            and not (self.positions == "rpe" and self.partition == "uniform" and self.pipe == 4)  # the last stage has no block
            and not (self.positions == "rpe" and self.zero == 3 and self.recompute == "deepspeed")  # refused
            and self.ranks <= RANKS
        )

    @property
    def network(self) -> dict[str, Any]:
        """The keys of what is trained, wherever: cells with the same ones have the same losses."""
        return {
            "num_layers": 5 if self.pipe > 1 else 2,  # 5: no number of stages divides it
            "hidden_size": 32,
            "num_attention_heads": HEADS,
            "num_kv_heads": self.kv_heads,
            "gpt_j_residual": self.parallel_residual,
            **(QWEN3 if self.block == "Qwen3" else {}),
            "no_weight_tying": self.head != "tied",
            "hidden_dropout": self.dropout,
            "attention_dropout": self.dropout,
            "seq_length": TOKENS,
            "max_position_embeddings": TOKENS,
            "pos_emb": self.positions,
            "rotary_pct": 0.5,
            "init_method_std": 0.3,  # so that every part of the network matters
            "output_layer_init_method": "normal",
            "optimizer": {"type": "Adam", "params": {"lr": RATE, "betas": list(BETAS), "eps": EPSILON}},
            "weight_decay": WEIGHT_DECAY,
            "gradient_clipping": CLIP,
            "lr_decay_style": "constant",
            "train_batch_size": SEQUENCES,
            "train_iters": 10,
        }

    @property
    def keys(self) -> dict[str, Any]:
        """Of the run of this cell."""
        whole = {"stage3_param_persistence_threshold": 100} if self.zero == 3 else {}  # else all of it is too small to be cut
        return self.network | {
            "model_parallel_size": self.tensor,
            "pipe_parallel_size": self.pipe,
            "pipe_partition_method": self.partition,
            "sequence_parallel": self.sequence_parallel,
            "output_layer_parallelism": "row" if self.head == "row" else "column",
            "make_vocab_size_divisible_by": PADDED // self.tensor,
            "zero_optimization": {"stage": self.zero} | whole,
            "checkpoint_activations": self.recompute != "nothing",
            "deepspeed_activation_checkpointing": self.recompute == "deepspeed",
            "neox_hpc": {"recompute_granularity": "selective" if self.recompute == "selective" else "full"},
            "gradient_accumulation_steps": self.accumulation,
            "train_micro_batch_size_per_gpu": SEQUENCES // self.accumulation // self.data,
        }

    def __str__(self) -> str:
        parts = [f"T{self.tensor}", f"P{self.pipe}", f"D{self.data}", f"Z{self.zero}"]
        parts += ["sequence"] * self.sequence_parallel
        parts += [self.recompute] * (self.recompute != "nothing")
        parts += [self.head, f"kv{self.kv_heads}"]
        parts += [self.block] * (self.block != "GPT-NeoX")
        parts += ["parallel"] * self.parallel_residual + ["dropout"] * bool(self.dropout)
        parts += [f"A{self.accumulation}"] * (self.accumulation > 1)
        parts += [self.partition] * (self.partition in ("uniform", "parameters"))
        parts += [self.positions] * (self.positions != "rotary")
        return "-".join(parts)


LAYOUT: dict[str, tuple[Any, ...]] = {
    "tensor": (1, 2, 4),
    "pipe": (0, 1, 2, 4),
    "data": (1, 2),
    "zero": (0, 1, 2, 3),
    "sequence_parallel": (False, True),
    "recompute": ("nothing", "deepspeed"),
}
"""Axis -> values, of which the grid has every legal combination.  "deepspeed" stands for every way to recompute."""
DEALT: dict[str, tuple[Any, ...]] = {
    "recompute": ("deepspeed", "torch", "selective"),
    "head": ("untied", "tied", "row"),
    "kv_heads": (HEADS, 2, 1),
    "parallel_residual": (False, True),
    "block": ("GPT-NeoX", "Qwen3"),
    "dropout": (0.0, 0.1),
    "accumulation": (1, 2),
    "partition": ("type:transformer|mlp", "uniform", "parameters"),
    "positions": ("rotary", "learned", "rpe"),
}
"""Axis -> values, one of which is dealt to each cell."""
SEED = 11
"""With which the grid holds every legal pair, as a test says."""
DEALS = 8
"""How often each layout is dealt to, for the covering few to be chosen from; with more they hardly become fewer."""


@cache
def layouts() -> tuple[Cell, ...]:
    """Every legal layout; the other axes have their first values."""
    made = (Cell(**dict(zip(LAYOUT, values, strict=True))) for values in product(*LAYOUT.values()))
    return tuple(cell for cell in made if cell.legal)


@cache
def every_cell() -> tuple[Cell, ...]:
    """The whole grid, small cells first: every layout once, and what runs in CI."""
    deck = Random(SEED)
    once = [_dealt(layout, deck) for layout in layouts()]
    return tuple(sorted(dict.fromkeys([*once, *in_ci()]), key=lambda cell: cell.ranks))


@cache
def in_ci() -> tuple[Cell, ...]:
    """Few cells that hold every pair of values that a legal cell of so few ranks can have."""
    deck = Random(SEED)
    small = [layout for layout in layouts() if layout.ranks <= RANKS_IN_CI]
    return tuple(covering([_dealt(layout, deck) for _ in range(DEALS) for layout in small]))


def _dealt(layout: Cell, deck: Random) -> Cell:
    chosen = {axis: values[int(deck.random() * len(values))] for axis, values in DEALT.items()}
    if layout.recompute == "nothing":
        del chosen["recompute"]
    if layout.pipe < 2:
        del chosen["partition"]
    cell = replace(layout, **chosen)
    return cell if cell.legal else replace(cell, positions="rotary")


Pair = tuple[tuple[str, Any], tuple[str, Any]]
"""Two axes, each with a value."""


def pairs_of(cell: Cell) -> set[Pair]:
    """Every two axes of a cell."""
    return set(combinations(asdict(cell).items(), 2))


def legal_pairs(most_ranks: int) -> set[Pair]:
    """Every two values that stand together in some legal cell of at most ``most_ranks``."""
    axes = LAYOUT | DEALT | {"recompute": ("nothing", *DEALT["recompute"])}
    order = list(Cell.__dataclass_fields__)
    found: set[Pair] = set()
    for one, other in combinations(order, 2):
        for pair in product(axes[one], axes[other]):
            wanted = dict(zip((one, other), pair, strict=True))
            if any(cell.ranks <= most_ranks for cell in _legal_with(wanted)):
                found.add(((one, pair[0]), (other, pair[1])))
    return found


def _legal_with(wanted: dict[str, Any]) -> Iterator[Cell]:
    """Legal cells with the ``wanted`` values; the other axes of the layout vary, what else is dealt does not matter to legality."""
    axes = {axis: (wanted[axis],) if axis in wanted else values for axis, values in LAYOUT.items()} | {
        axis: (value,) for axis, value in wanted.items()
    }
    for values in product(*axes.values()):
        cell = Cell(**dict(zip(axes, values, strict=True)))
        if cell.legal:
            yield cell


def covering(cells: Sequence[Cell]) -> Iterator[Cell]:
    """A few of ``cells`` that hold every pair that they all hold: always the one with most pairs not yet seen for its cost."""
    pairs = {cell: pairs_of(cell) for cell in cells}
    missing = set().union(*pairs.values())
    while missing:
        best = max(pairs, key=lambda cell: len(missing & pairs[cell]) / _cost(cell))
        missing -= pairs[best]
        yield best


def _cost(cell: Cell) -> int:
    """Roughly, in quarters of a second of two cores: some for whatever cell, more with its ranks, most under ZeRO-3."""
    return 4 + cell.ranks * (3 if cell.zero == 3 else 1)
