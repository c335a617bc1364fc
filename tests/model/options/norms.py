"""Norms of the residual stream, and of queries and keys."""

from __future__ import annotations

from torch import Tensor

from tests.model.options.option import Option
from tests.model.options.reference import ClosedForm


class LayerNorm(ClosedForm):
    """(x - mean) / sqrt(variance + eps) weight + bias"""

    def norm(self, x_D: Tensor, name: str) -> Tensor:
        bias_D = self.w.get(f"{name}.bias", 0)
        return _centred(x_D, self.keys["layernorm_epsilon"]) * self.w[f"{name}.weight"] + bias_D


class NoParameters(ClosedForm):
    """(x - mean) / sqrt(variance + eps)"""

    def norm(self, x_D: Tensor, name: str) -> Tensor:
        return _centred(x_D, self.keys["layernorm_epsilon"])


class RootMeanSquare(ClosedForm):
    """x / sqrt(mean of squares + eps) scale"""

    def norm(self, x_D: Tensor, name: str) -> Tensor:
        return x_D / (x_D.square().mean(-1, keepdim=True) + self.keys["rms_norm_epsilon"]).sqrt() * self.w[f"{name}.scale"]


class Length(ClosedForm):
    """x / |x| g, with eps in place of a shorter length"""

    def norm(self, x_D: Tensor, name: str) -> Tensor:
        return x_D / x_D.square().sum(-1, keepdim=True).sqrt().clamp(min=self.keys["scalenorm_epsilon"]) * self.w[f"{name}.g"]


class NormedHeads(ClosedForm):
    """Queries and keys of every head are normalized by themselves, each kind with its own parameters."""

    def made(self, x_BSD: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
        q_BNSH, k_BNSH, v_BNSH = super().made(x_BSD, name)
        return self.norm(q_BNSH, f"{name}.query_layernorm"), self.norm(k_BNSH, f"{name}.key_layernorm"), v_BNSH


def _centred(x_D: Tensor, epsilon: float) -> Tensor:
    return (x_D - x_D.mean(-1, keepdim=True)) / (x_D.var(-1, correction=0, keepdim=True) + epsilon).sqrt()


KINDS: dict[str, tuple[dict[str, object], type[ClosedForm]]] = {
    "layernorm": ({"layernorm_epsilon": 1e-2}, LayerNorm),
    "layernorm, no bias": ({"layernorm_epsilon": 1e-2, "use_bias_in_norms": False}, LayerNorm),
    "non-parametric": ({"norm": "non_parametric_layernorm", "layernorm_epsilon": 1e-2}, NoParameters),
    "rmsnorm": ({"norm": "rmsnorm", "rms_norm_epsilon": 1e-2}, RootMeanSquare),
    "scalenorm": ({"norm": "scalenorm", "scalenorm_epsilon": 3.0}, Length),
}
"""Name -> keys and definition.  The epsilons are so large that they matter."""


def _with_heads(kind: type[ClosedForm]) -> type[ClosedForm]:
    return type(f"{kind.__name__}OfHeads", (NormedHeads, kind), {})


OPTIONS = {name: Option(keys=keys, reference=kind.logits) for name, (keys, kind) in KINDS.items()} | {
    f"{name}, of heads": Option(
        keys={**KINDS[name][0], "use_qk_layernorm": True, "num_kv_heads": kv_heads}, reference=_with_heads(KINDS[name][1]).logits
    )
    for name, kv_heads in {"layernorm, no bias": 2, "non-parametric": 4, "rmsnorm": 1, "scalenorm": 4}.items()
}
"""A bias of keys has no gradient without positions: LayerNorm with its bias on heads is among the models (Persimmon)."""
