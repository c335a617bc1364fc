"""The whole network: against Hugging Face's GPTNeoX, against a closed form in NumPy, and against itself in its other modes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")

from model.data.batch import Batch
from model.gpt import GPT
from model.parallel.parameters import global_parameters
from tests.model.networks import VARIANTS, VOCAB, small_batch, small_config


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("attention", ["global", "flash"])
def test_logits_equal_hugging_face_s_gpt_neox(attention: str, parallel: bool, tied: bool) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install transformers")
    config = small_config(gpt_j_residual=parallel, no_weight_tying=not tied, attention_config=[[[attention], "all"]])
    ours = _with_random_biases(GPT(config, VOCAB))
    theirs = transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=24,
            rotary_pct=0.5,
            use_parallel_residual=parallel,
            tie_word_embeddings=tied,
            attn_implementation="eager",
        )
    ).eval()
    head = "lm_head" if hasattr(theirs, "lm_head") else "embed_out"  # transformers 5 renamed it
    theirs.load_state_dict(_hugging_face_names(ours, head), strict=not tied)
    tokens = small_batch().tokens_BS
    with torch.no_grad():
        expected = theirs(tokens).logits[..., :VOCAB]
        found = ours.logits(tokens)
    assert expected.std() > 1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("rule", ["sequential", "parallel", "tied"])
def test_logits_and_loss_equal_a_closed_form(rule: str, tanh: bool) -> None:
    config = small_config(
        gpt_j_residual=rule != "sequential",
        gpt_j_tied=rule == "tied",
        bias_gelu_fusion=tanh,
        use_bias_in_attn_linear=False,
        pos_emb="none",
        layernorm_epsilon=1e-3,
        intermediate_size=48,
    )
    network, batch = _with_random_biases(GPT(config, VOCAB)).double(), small_batch()
    expected = _closed_form(network, batch.tokens_BS.numpy(), rule, tanh)
    with torch.no_grad():
        np.testing.assert_allclose(network.logits(batch.tokens_BS).numpy(), expected[..., :VOCAB], atol=1e-9)
        shares = np.exp(expected) / np.exp(expected).sum(-1, keepdims=True)  # the padding has its share in training
        losses = -np.log(np.take_along_axis(shares, batch.labels_BS.numpy()[..., None], -1))[..., 0]
        mask = batch.loss_mask_BS.numpy()
        assert network(batch).item() == pytest.approx((losses * mask).sum() / mask.sum(), abs=1e-5)


def _closed_form(network: GPT, tokens: np.ndarray, rule: str, tanh: bool) -> np.ndarray:
    """The network's definition, written once more in NumPy; no positions."""
    w = {p.global_name: p.detach().numpy() for p in global_parameters(network)}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-3) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def attention(x: np.ndarray, name: str) -> np.ndarray:
        q, k, v = np.moveaxis((x @ w[f"{name}.query_key_value.weight"].T).reshape(*x.shape[:2], 4, 3, 8), 3, 0)
        scores = np.einsum("bqnh,bknh->bnqk", q, k) / math.sqrt(8)
        scores = np.exp(np.where(np.tri(x.shape[1], dtype=bool), scores, -np.inf))
        mixed = np.einsum("bnqk,bknh->bqnh", scores / scores.sum(-1, keepdims=True), v)
        return mixed.reshape(x.shape) @ w[f"{name}.dense.weight"].T

    def gelu(x: np.ndarray) -> np.ndarray:
        if tanh:
            return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    def mlp(x: np.ndarray, name: str) -> np.ndarray:
        inner = gelu(x @ w[f"{name}.linear1.weight"].T + w[f"{name}.linear1.bias"])
        return inner @ w[f"{name}.linear2.weight"].T + w[f"{name}.linear2.bias"]

    x = w["embedding.word_embeddings.weight"][tokens]
    for layer in ("layers.0", "layers.1"):
        first, second = f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm"
        attended = attention(norm(x, first), f"{layer}.attention")
        if rule == "sequential":
            x = x + attended
            x = x + mlp(norm(x, second), f"{layer}.mlp")
        else:
            x = x + attended + mlp(norm(x, first if rule == "tied" else second), f"{layer}.mlp")
    return norm(x, "final_norm") @ w["head.final_linear.weight"].T


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("chunks", [[24], [7, 1, 1, 15], [1] * 24])
def test_a_cache_changes_no_logits(name: str, chunks: list[int]) -> None:
    network, tokens = GPT(small_config(**VARIANTS[name]), VOCAB).eval(), small_batch().tokens_BS
    with torch.no_grad():
        cache = network.new_cache()
        found = [network.logits(part, cache) for part in tokens.split(chunks, dim=1)]
        torch.testing.assert_close(torch.cat(found, dim=1), network.logits(tokens), atol=1e-5, rtol=1e-5)
        last = network.logits(tokens, last_only=True)
    torch.testing.assert_close(last, torch.cat(found, dim=1)[:, -1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_recomputation_changes_neither_loss_nor_gradients(layers: int, dropout: float) -> None:
    keys = {"num_layers": 3, "hidden_dropout": dropout, "attention_dropout": dropout}
    expected, gradients = _loss_and_gradients(small_config(**keys))
    found, recomputed = _loss_and_gradients(small_config(**keys, checkpoint_activations=True, checkpoint_num_layers=layers))
    assert found == expected
    assert gradients.keys() == recomputed.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(recomputed[name], gradient, atol=0, rtol=0, msg=name)


@pytest.mark.parametrize(("layers", "calls"), [(1, 3 + 3), (2, 3 + 3), (0, 3)])
def test_recomputation_runs_the_blocks_again(layers: int, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"checkpoint_activations": True, "checkpoint_num_layers": layers} if layers else {}
    network, seen = GPT(small_config(num_layers=3, **keys), VOCAB), []
    for layer in network.layers[1:4]:
        layer.mlp.linear1.register_forward_hook(lambda *_: seen.append(1))
    network(small_batch()).backward()
    assert len(seen) == calls


@pytest.mark.parametrize("attention", ["global", "flash"])
def test_a_document_does_not_see_the_one_before_it(attention: str) -> None:
    network = GPT(small_config(pos_emb="none", attention_config=[[[attention], "all"]]), VOCAB)
    documents = (torch.arange(24) >= 10).int().expand(3, -1)
    packed = small_batch(doc_ids=documents)
    alone = _cut(small_batch(), slice(10, None))
    mask = packed.loss_mask_BS.clone()
    mask[:, :10] = 0
    packed = Batch(tokens_BS=packed.tokens_BS, labels_BS=packed.labels_BS, loss_mask_BS=mask, doc_ids_BS=documents)
    assert network(packed).item() == pytest.approx(network(alone).item(), abs=1e-5)


def test_masked_labels_do_not_count() -> None:
    network, batch = GPT(small_config(), VOCAB), small_batch()
    other = torch.where(batch.loss_mask_BS > 0, batch.labels_BS, 0)
    changed = Batch(tokens_BS=batch.tokens_BS, labels_BS=other, loss_mask_BS=batch.loss_mask_BS, doc_ids_BS=None)
    assert network(batch).item() == network(changed).item()
    nothing = Batch(tokens_BS=batch.tokens_BS, labels_BS=other, loss_mask_BS=torch.zeros(3, 24), doc_ids_BS=None)
    assert network(nothing).item() == 0.0


@pytest.mark.parametrize("key", ["hidden_dropout", "attention_dropout"])
@pytest.mark.parametrize("parallel", [False, True])
def test_dropout_acts_in_training_only(key: str, parallel: bool) -> None:
    network = GPT(small_config(**{key: 0.5}, gpt_j_residual=parallel), VOCAB)
    with torch.no_grad():
        plain = GPT(small_config(gpt_j_residual=parallel), VOCAB)(small_batch()).item()
        assert network(small_batch()).item() != pytest.approx(plain, abs=1e-3)
        assert network.eval()(small_batch()).item() == plain


def test_first_values_follow_the_seed_and_the_methods() -> None:
    config = small_config(hidden_size=128, init_method="small_init", output_layer_init_method="wang_init", seed=7)
    weights = {p.global_name: p.detach() for p in global_parameters(GPT(config, VOCAB))}
    again = {p.global_name: p.detach() for p in global_parameters(GPT(config, VOCAB))}
    other = {p.global_name: p.detach() for p in global_parameters(GPT(config.with_keys(seed=8), VOCAB))}
    for name, value in weights.items():
        assert torch.equal(value, again[name])
        if name.endswith("bias") or "norm" in name:
            assert torch.all(value == (0 if name.endswith("bias") else 1))
            continue
        assert not torch.equal(value, other[name])
        writes_residual = "dense" in name or "linear2" in name
        std = 2 / (2 * math.sqrt(128)) if writes_residual else math.sqrt(2 / (5 * 128))
        assert float(value.std()) == pytest.approx(std, rel=0.05), name
    assert not torch.equal(weights["layers.0.mlp.linear1.weight"], weights["layers.1.mlp.linear1.weight"])


def test_weights_by_name_make_the_same_network_again() -> None:
    first = GPT(small_config(seed=3), VOCAB)
    weights = {p.global_name: p.detach() for p in global_parameters(first)}
    second = GPT(small_config(seed=4), VOCAB, weights=weights)
    assert first(small_batch()).item() == second(small_batch()).item()
    with pytest.raises(ValueError, match=r"this architecture has no head.final_linear.weight: .* \(1 names differ\)"):
        GPT(small_config(no_weight_tying=False), VOCAB, weights=weights)
    with pytest.raises(ValueError, match=r"linear1.weight is \[128, 32\] in the weights, \[64, 32\] here"):
        GPT(small_config(intermediate_size=64), VOCAB, weights=weights)


def test_reduced_precision_keeps_the_loss_in_fp32_and_near() -> None:
    exact = GPT(small_config(init_method_std=0.05), VOCAB)
    loss = GPT(small_config(init_method_std=0.05), VOCAB).bfloat16()(small_batch())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact(small_batch()).item(), rel=5e-3)


def _loss_and_gradients(config: Any) -> tuple[float, dict[str, Any]]:
    network = GPT(config, VOCAB)
    torch.manual_seed(11)
    loss = network(small_batch())
    loss.backward()
    return float(loss.detach()), {p.global_name: p.grad for p in global_parameters(network)}


def _cut(batch: Batch, tokens: slice) -> Batch:
    return Batch(
        tokens_BS=batch.tokens_BS[:, tokens],
        labels_BS=batch.labels_BS[:, tokens],
        loss_mask_BS=batch.loss_mask_BS[:, tokens],
        doc_ids_BS=None,
    )


def _with_random_biases(network: GPT) -> GPT:
    """Biases and gains begin at 0 and 1, where a wrong use of them would not show."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for p in global_parameters(network):
            if p.dim() == 1:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return network


def _hugging_face_names(network: GPT, head: str) -> dict[str, Any]:
    """Hugging Face's names for GPT-NeoX's weights; the values are the same."""
    renamed = {
        "embedding.word_embeddings": "gpt_neox.embed_in",
        "final_norm": "gpt_neox.final_layer_norm",
        "head.final_linear": head,
        "layers.": "gpt_neox.layers.",
        "mlp.linear1": "mlp.dense_h_to_4h",
        "mlp.linear2": "mlp.dense_4h_to_h",
    }
    state = {}
    for p in global_parameters(network):
        name = p.global_name
        for ours, theirs in renamed.items():
            name = name.replace(ours, theirs)
        state[name] = p.detach()
    return state
