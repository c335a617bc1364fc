"""The table from configuration to implementation."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")

from model import implementations
from model.config import SPARSE
from model.implementations import KEYS, TABLE, Row, choose
from tests.model.networks import small_config

CPU = torch.device("cpu")


def names(**keys: Any) -> dict[str, str]:
    return dict(choose(small_config(**keys), CPU).rows())


def test_without_any_fusion_the_plain_rows_run() -> None:
    assert names() == {
        "attention": "2 x eager",
        "pattern": "2 x causal",
        "positions": "rotary",
        "norm": "layernorm",
        "activation": "gelu",
        "residual": "torch",
        "loss": "fused_with_head",
    }


@pytest.mark.parametrize(
    ("keys", "operation", "name"),
    [
        ({"scaled_upper_triang_masked_softmax_fusion": True}, "attention", "2 x sdpa"),
        ({"attention_config": [[["flash"], "all"]]}, "attention", "2 x sdpa"),
        ({"attention_config": ["global", "flash"]}, "attention", "1 x eager, 1 x sdpa"),
        ({"attention_config": ["flash", "global"], "apply_query_key_layer_scaling": True}, "attention", "1 x sdpa, 1 x eager"),
        ({"bias_gelu_fusion": True}, "activation", "gelu_tanh"),
        ({"pos_emb": "none"}, "positions", "none"),
        *(({"pos_emb": name}, "positions", name) for name in ("learned", "sinusoidal", "alibi", "rpe")),
        ({"sliding_window_width": 4}, "pattern", "2 x window"),
        *(({"attention_config": ["global", name]}, "pattern", f"1 x causal, 1 x {name}") for name in SPARSE),
        ({"norm": "rmsnorm"}, "norm", "rmsnorm"),
        ({"activation": "swiglu"}, "activation", "swiglu"),
    ],
)
def test_a_key_chooses_its_row(keys: dict[str, Any], operation: str, name: str) -> None:
    assert names(**keys) == names() | {operation: name}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"layernorm_fusion": True}, "norm layernorm, layernorm_fusion true.*: no implementation yet; norm can be layernorm, rms"),
        ({"norm": "te_rmsnorm"}, "norm te_rmsnorm, .*: no implementation yet"),
        ({"norm": "rmsnorm", "rmsnorm_fusion": True}, "norm rmsnorm, .*rmsnorm_fusion true: no implementation yet"),
        ({"rope_fusion": True}, "pos_emb rotary, rope_fusion true: no implementation yet; positions can be learned, rotary"),
        ({"bias_dropout_fusion": True}, "bias_dropout_fusion true: no implementation yet"),
        ({"attention_config": ["global", "gmlp"]}, "attention_config gmlp.*attention can be sdpa, eager"),
    ],
)
def test_what_is_asked_for_and_not_there_is_an_error(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose(small_config(**keys), CPU)


def test_what_cannot_run_on_the_device_is_an_error_and_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Row(
        operation="norm", name="triton", asked=lambda a, kind: True, code=None, missing=lambda device: "pip install triton"
    )
    monkeypatch.setattr(implementations, "TABLE", (kernel, *TABLE))
    with pytest.raises(ValueError, match="norm: triton was asked for and cannot run on cpu: pip install triton"):
        choose(small_config(), CPU)


@pytest.mark.parametrize(
    ("device", "reason"),
    [("cpu", "cpu: flash-attn has no kernels for it: remove use_flashattn_swiglu"), ("cuda", "pip install flash-attn")],
)
def test_flash_attns_swiglu_is_asked_for_and_cannot_be_had(device: str, reason: str) -> None:
    if importlib.util.find_spec("flash_attn") and device == "cuda":
        pytest.skip("flash-attn is here: pip uninstall flash-attn")
    with pytest.raises(ValueError, match=f"swiglu_of_flash_attn was asked for and cannot run on .*{reason}"):
        choose(small_config(activation="swiglu", use_flashattn_swiglu=True), torch.device(device))


def test_every_operation_names_keys_that_exist() -> None:
    keys = small_config().keys()
    assert KEYS.keys() == {row.operation for row in TABLE}
    assert all(key in keys for chosen_by in KEYS.values() for key in chosen_by)
