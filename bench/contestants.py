"""Who trains in bench/train.py: the same network by us and by others, and its matrix products alone.

Changes when another implementation is measured.  Everyone gets the same tokens, the same plain loop and the same optimizer, so that
what differs is the network and its loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
"""tokens_BS and the tokens after them -> the mean loss."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A network of Pythia's (Biderman et al. 2023, arXiv:2304.01373), untied, and its batch."""

    name: str
    hidden: int
    heads: int
    micro_batch: int
    layers: int = 6
    vocab: int = 50304
    sequence: int = 512

    @property
    def tokens(self) -> int:
        """In a step."""
        return self.micro_batch * self.sequence


SHAPES = {
    "14M": Shape(name="14M", hidden=128, heads=4, micro_batch=4),
    "70M": Shape(name="70M", hidden=512, heads=8, micro_batch=2),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def ours(shape: Shape, dtype: torch.dtype, compiled: bool) -> tuple[torch.nn.Module, Loss]:
    """The product's network, with the loss in its forward pass."""
    from model.config import RunConfig
    from model.data.batch import Batch
    from model.gpt import GPT

    keys = {
        "num_layers": shape.layers,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "seq_length": shape.sequence,
        "max_position_embeddings": shape.sequence,
        "pos_emb": "rotary",
        "rotary_pct": 0.25,
        "no_weight_tying": True,
        "gpt_j_residual": True,
        "scaled_upper_triang_masked_softmax_fusion": True,
        "train_micro_batch_size_per_gpu": shape.micro_batch,
        "train_iters": 1,
        **({"neox_hpc": {"compile": True}} if compiled else {}),
    }
    network = GPT(RunConfig.from_keys(keys), shape.vocab).to(dtype)

    def loss(tokens_BS: Tensor, labels_BS: Tensor) -> Tensor:
        mask_BS = torch.ones(labels_BS.shape)
        return network(Batch(tokens_BS=tokens_BS, labels_BS=labels_BS, loss_mask_BS=mask_BS))

    return network, loss


def transformers(shape: Shape, dtype: torch.dtype, compiled: bool) -> tuple[torch.nn.Module, Loss]:
    """Hugging Face's GPTNeoXForCausalLM, with its own loss."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.hidden,
        max_position_embeddings=shape.sequence,
        rotary_pct=0.25,
        use_parallel_residual=True,
        tie_word_embeddings=False,
        use_cache=False,
        attn_implementation="sdpa",
    )
    network = GPTNeoXForCausalLM(config).to(dtype)

    def loss(tokens_BS: Tensor, labels_BS: Tensor) -> Tensor:
        return network(input_ids=tokens_BS, labels=labels_BS, shift_labels=labels_BS).loss

    return network, torch.compile(loss) if compiled else loss


def litgpt(shape: Shape, dtype: torch.dtype, compiled: bool) -> tuple[torch.nn.Module, Loss]:
    """LitGPT's Pythia; its pretraining cuts the loss in chunks of 128 tokens, which the compiler does better without."""
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    network = GPT(Config.from_name(f"pythia-{shape.name.lower()}", block_size=shape.sequence)).to(dtype)
    network.apply(network._init_weights)
    facts = network.config
    found = (facts.n_layer, facts.n_embd, facts.n_head, facts.padded_vocab_size)
    assert found == (shape.layers, shape.hidden, shape.heads, shape.vocab), found

    def loss(tokens_BS: Tensor, labels_BS: Tensor) -> Tensor:
        return chunked_cross_entropy(network(tokens_BS), labels_BS, chunk_size=0 if compiled else 128)

    return network, torch.compile(loss) if compiled else loss


CONTESTANTS = {"ours": ours, "transformers": transformers, "litgpt": litgpt}


class Training:
    """A plain loop: loss, gradients, fused AdamW on fp32 weights."""

    def __init__(self, network: torch.nn.Module, loss: Loss, shape: Shape) -> None:
        self._loss, self._shape = loss, shape
        self._weights = [p for p in network.parameters() if p.requires_grad]
        self._masters = [p if p.dtype == torch.float32 else p.detach().float() for p in self._weights]
        groups = [
            {"params": [p for p in self._masters if p.dim() > 1], "weight_decay": 0.01},
            {"params": [p for p in self._masters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), eps=1e-8, fused=True)
        self._generator = torch.Generator().manual_seed(1)

    def step(self) -> float:
        """The loss of one step."""
        size = (self._shape.micro_batch, self._shape.sequence + 1)
        tokens = torch.randint(0, 50_000, size, generator=self._generator)
        value = self._loss(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        value.backward()
        for weight, master in zip(self._weights, self._masters, strict=True):
            if master is not weight:
                master.grad, weight.grad = weight.grad.float(), None
        self._optimizer.step()
        self._optimizer.zero_grad()
        for weight, master in zip(self._weights, self._masters, strict=True):
            if master is not weight:
                weight.data.copy_(master)
        return value.item()


class Products:
    """The ceiling: the products with the network's matrices, forward and backward, into outputs that exist; none of attention's."""

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        width = shape.hidden
        layer = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
        self._products = [
            *self._of(shape.tokens, layer, dtype) * shape.layers,
            *self._of(shape.tokens, [(shape.vocab, width)], dtype),
        ]

    def step(self) -> float:
        """One step's products."""
        for a, b, out in self._products:
            torch.mm(a, b, out=out)
        return 0.0

    @staticmethod
    def _of(tokens: int, matrices: Iterable[tuple[int, int]], dtype: torch.dtype) -> list[tuple[Tensor, Tensor, Tensor]]:
        products = []
        for outputs, inputs in matrices:
            x, w, y = (torch.randn(size).to(dtype) for size in ((tokens, inputs), (outputs, inputs), (tokens, outputs)))
            products += [(x, w.T, torch.empty_like(y)), (y, w, torch.empty_like(x)), (y.T, x, torch.empty_like(w))]
        return products


def make(name: str, shape: Shape, dtype: torch.dtype) -> Any:
    """Something with a ``step``: ``products``, or a contestant's name and mode, as ``ours compiled``."""
    torch.manual_seed(0)
    if name == "products":
        return Products(shape, dtype)
    who, mode = name.split()
    return Training(*CONTESTANTS[who](shape, dtype, mode == "compiled"), shape)
