"""Norms, activations and position encodings by name: where the code of each is, and what has to be known of it without torch.

From these tables the keys ``norm``, ``activation`` and ``pos_emb`` have their choices, partition.py counts parameters, and
model/implementations.py makes its rows.  Changes when a kind is added: a file with its code, and one line here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from model.config.architecture import Architecture


@dataclass(frozen=True)
class Norm:
    """A norm of the residual stream, or of heads."""

    make: str
    """``module:name`` of its layer (model/layers/norm.py: ``Norm``); empty: not built yet."""
    parameters: Callable[[Architecture, int], int] = lambda a, width: width
    """How many it has at a width; a gain for each dimension unless it says else."""
    epsilon: str = ""
    """The key that it reads beside."""
    alike_at_widths: bool = True
    """What it makes has the same size at every width, as muP needs."""


@dataclass(frozen=True)
class Activation:
    """An activation of the MLP."""

    function: str
    """``module:name`` of a function of one tensor."""
    gated: bool = False
    """The MLP's first matrix makes values and gates, and the activation is values x function(gates)."""
    kept: int | None = None
    """Tensors of the MLP's width that stay for the backward pass: what goes in, what comes out, and what its formula keeps; 2, or 4
    of a gated one, unless it says else."""

    @property
    def tensors_kept(self) -> int:
        """The same."""
        return self.kept if self.kept is not None else 4 if self.gated else 2


@dataclass(frozen=True)
class PositionEncoding:
    """How tokens know where they stand."""

    make: str
    """``module:name``: (configuration, groups) -> model/layers/positions.py: ``Positions``"""
    in_embedding: Callable[[Architecture], int] = lambda a: 0
    """Parameters that lie with the embedding, whole on every tensor rank."""
    shared: Callable[[Architecture], int] = lambda a: 0
    """Parameters that all blocks share, cut over tensor ranks."""
    to_scores: Literal["nothing", "fixed", "learned"] = "nothing"
    """What is added to the attention's scores."""
    alike_at_widths: bool = True
    """What it makes has the same size at every width, as muP needs."""


def _with_bias(a: Architecture, width: int) -> int:
    return 2 * width if a.use_bias_in_norms else width


NORMS = {
    "layernorm": Norm("model.layers.norm:LayerNorm", _with_bias, "layernorm_epsilon"),
    "rmsnorm": Norm("model.layers.norm:RMSNorm", epsilon="rms_norm_epsilon"),
    "non_parametric_layernorm": Norm("model.layers.norm:NonParametricLayerNorm", lambda a, width: 0, "layernorm_epsilon"),
    "scalenorm": Norm(
        "model.layers.norm:ScaleNorm",
        lambda a, width: 1,
        "scalenorm_epsilon",
        alike_at_widths=False,  # the length is, not the entries
    ),
    "te_rmsnorm": Norm("", epsilon="rms_norm_epsilon"),
    "te_layernorm": Norm("", lambda a, width: 2 * width, "layernorm_epsilon"),
}
"""``norm``"""

ACTIVATIONS = {
    "gelu": Activation("model.kernels.activations:gelu_erf"),
    "geglu": Activation("model.kernels.activations:gelu_erf", gated=True),
    "relu": Activation("torch.nn.functional:relu", kept=1),  # its result alone
    "softsign": Activation("torch.nn.functional:softsign", kept=3),  # x / (1 + |x|)
    "swish": Activation("torch.nn.functional:silu"),  # x sigmoid(x)
    "mish": Activation("torch.nn.functional:mish"),  # x tanh(softplus(x)): Misra 2019, arXiv:1908.08681
    "silu": Activation("torch.nn.functional:silu"),
    "reglu": Activation("torch.nn.functional:relu", gated=True),
    "swiglu": Activation("torch.nn.functional:silu", gated=True),
    "bilinear": Activation("model.kernels.activations:identity", gated=True, kept=3),
    "glu": Activation("torch:sigmoid", gated=True),
}
"""``activation``"""

POSITIONS = {
    "learned": PositionEncoding(
        "model.layers.positions_added:learned", in_embedding=lambda a: a.max_position_embeddings * a.hidden_size
    ),
    "rotary": PositionEncoding("model.layers.positions:rotary"),
    "sinusoidal": PositionEncoding("model.layers.positions_added:sinusoidal"),
    "rpe": PositionEncoding(
        "model.layers.positions_bias:relative",
        shared=lambda a: a.rpe_num_buckets * a.num_attention_heads,
        to_scores="learned",
        alike_at_widths=False,  # GPT-NeoX multiplies it by the root of the head's size
    ),
    "alibi": PositionEncoding("model.layers.positions_bias:alibi", to_scores="fixed"),
    "none": PositionEncoding("model.layers.positions:nowhere"),
}
"""``pos_emb``"""
