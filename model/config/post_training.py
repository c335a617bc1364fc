"""Keys of fine-tuning on labels, preferences and rewards."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from model.config.keys import Section, live, planned, retired

Paths = tuple[str, ...] | None
Ports = int | Annotated[tuple[int, ...], Field(strict=False)]


class PostTraining(Section):
    """SFT, DPO, reward models, KTO, REINFORCE."""

    train_impl: Literal["normal", "dpo", "rm", "kto", "reinforce"] = planned("normal", doc="The training objective.")
    dataset_impl: Literal["gpt2", "pairwise", "online"] = planned("gpt2", doc="Kind of samples.")
    train_label_data_paths: Paths = planned(None, strict=False, doc="Label files beside train_data_paths.")
    valid_label_data_paths: Paths = planned(None, strict=False, doc="Label files beside valid_data_paths.")
    test_label_data_paths: Paths = planned(None, strict=False, doc="Label files beside test_data_paths.")
    train_reward_data_paths: Paths = planned(None, strict=False, doc="Reward files beside train_data_paths.")
    valid_reward_data_paths: Paths = planned(None, strict=False, doc="Reward files beside valid_data_paths.")
    test_reward_data_paths: Paths = planned(None, strict=False, doc="Reward files beside test_data_paths.")
    pos_train_data_paths: Paths = planned(None, strict=False, doc="Preferred answers, training.")
    neg_train_data_paths: Paths = planned(None, strict=False, doc="Rejected answers, training.")
    pos_train_label_data_paths: Paths = planned(None, strict=False, doc="Labels of preferred answers, training.")
    neg_train_label_data_paths: Paths = planned(None, strict=False, doc="Labels of rejected answers, training.")
    pos_valid_data_paths: Paths = planned(None, strict=False, doc="Preferred answers, validation.")
    neg_valid_data_paths: Paths = planned(None, strict=False, doc="Rejected answers, validation.")
    pos_valid_label_data_paths: Paths = planned(None, strict=False, doc="Labels of preferred answers, validation.")
    neg_valid_label_data_paths: Paths = planned(None, strict=False, doc="Labels of rejected answers, validation.")
    pos_test_data_paths: Paths = planned(None, strict=False, doc="Preferred answers, test.")
    neg_test_data_paths: Paths = planned(None, strict=False, doc="Rejected answers, test.")
    pos_test_label_data_paths: Paths = planned(None, strict=False, doc="Labels of preferred answers, test.")
    neg_test_label_data_paths: Paths = planned(None, strict=False, doc="Labels of rejected answers, test.")
    dpo_fp32: bool = planned(True, doc="DPO's log-probabilities in fp32.")
    dpo_reference_free: bool = planned(False, doc="DPO without a reference model.")
    dpo_beta: float = planned(0.1, gt=0, doc="DPO's inverse temperature.")
    kto_fp32: bool = planned(True, doc="KTO's log-probabilities in fp32.")
    kto_desirable_weight: float = planned(1.0, ge=0, doc="KTO's weight of desirable answers.")
    kto_undesirable_weight: float = planned(1.0, ge=0, doc="KTO's weight of undesirable answers.")
    kto_beta: float = planned(0.1, gt=0, doc="KTO's inverse temperature.")
    z_loss: float = live(0.0, ge=0, doc="Weight of log(sum of exp(logits))^2 in the loss (PaLM, arXiv:2204.02311).")
    fp32_reinforce: bool = planned(True, doc="REINFORCE's log-probabilities in fp32.")
    kl_impl: Literal["abs", "mse", "kl", "full"] = planned("mse", doc="Estimator of the divergence from the reference.")
    kl_div_beta: float = planned(0.1, ge=0, doc="Weight of that divergence.")
    reinforce_leave_one_out: bool = planned(False, doc="Baseline of REINFORCE: the other samples of the same prompt.")
    serve_model_weights: bool = planned(False, doc="Serve weights to an inference server while training.")
    weight_server_port: Ports = retired(6000, doc="Port of that server.", why="never read by GPT-NeoX")
    online_dataserver_ips: str | Annotated[tuple[str, ...], Field(strict=False)] = planned(
        "localhost", doc="Hosts that send online samples."
    )
    online_dataserver_ports: Ports = planned(10000, doc="Their ports.")
