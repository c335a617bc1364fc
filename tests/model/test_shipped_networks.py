"""The networks of the shipped configurations, made small: one of each kind learns from a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from model.config import RunConfig
from model.data.batch import Batch
from model.gpt import GPT
from neox_hpc.settings import check_files, load_config
from neox_hpc.share import share
from neox_hpc.shipped import list_shipped, read_header

SIZES = {"seq_length": 16, "max_position_embeddings": 16, "hidden_size": 32, "num_attention_heads": 4, "num_layers": 2}
KINDS = (
    *("norm", "pos_emb", "activation", "gpt_j_residual", "gpt_j_tied", "no_weight_tying", "use_bias_in_mlp", "use_bias_in_norms"),
    *("use_bias_in_attn_linear", "rotary_pct", "bias_gelu_fusion", "scaled_upper_triang_masked_softmax_fusion"),
    *("init_method", "output_layer_init_method"),
)
"""Keys that make another network, beside sizes and heads."""


def small(name: str) -> dict[str, Any]:
    """The network of a shipped file with two layers, four heads of 8, and as many key-value heads as it has, at most four."""
    keys = load_config([name], cwd=share("configs")).config.keys()
    heads, groups = keys["num_attention_heads"], keys["num_kv_heads"]
    kept = {key: keys[key] for key in KINDS}
    window = {"sliding_window_width": 4} if keys["sliding_window_width"] else {}
    attention = {"attention_config": list(keys["attention_config"] or ["global"] * 2)[:2]}
    return SIZES | kept | window | attention | {"num_kv_heads": None if groups in (None, heads) else 1 if groups == 1 else 2}


def networks() -> dict[str, dict[str, Any]]:
    """Each kind of network under the first name that has it; none of what is not built yet."""
    found: dict[str, dict[str, Any]] = {}
    for name, path in list_shipped().items():
        if check_files([name], cwd=share("configs")).whole and not read_header(path.read_text()).not_built:
            keys = small(name)
            if keys not in found.values():
                found[name] = keys
    return found


NETWORKS = networks()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_of_a_shipped_configuration_learns(name: str) -> None:
    config = RunConfig.from_keys(NETWORKS[name] | {"train_micro_batch_size_per_gpu": 2})
    assert config.untrained() == ()
    torch.manual_seed(0)
    model = GPT(config, 128)
    tokens = torch.randint(0, 128, (2, 17))
    batch = Batch(tokens_BS=tokens[:, :-1], labels_BS=tokens[:, 1:], loss_mask_BS=torch.ones(2, 16), sample_B=torch.arange(2))
    before = model(batch)
    before.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= 0.1 * parameter.grad
    assert model(batch) < before


def test_the_shipped_networks_are_of_many_kinds() -> None:
    assert {"19M.yml", "20B.yml", "llama/7B.yml", "mistral/7B.yml", "falcon/7B.yml", "falcon/40B.yml", "palm/8B.yml"} <= set(
        NETWORKS
    )
