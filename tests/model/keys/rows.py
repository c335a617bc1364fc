"""For every live key two values and the observable that must differ (DESIGN.md, rule 6); for every key that is passed to
DeepSpeed a value to read back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.model.keys import observables as see


@dataclass(frozen=True)
class Row:
    """Two values of one key.  ``None`` leaves the key out."""

    key: str
    """Dotted for a key inside a section."""
    one: Any
    other: Any
    see: see.Observable
    given: dict[str, Any] = field(default_factory=dict)
    """The other keys."""


SHAPE: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "seq_length": 16,
    "max_position_embeddings": 16,
    "pos_emb": "rotary",
    "tokenizer_type": "CharLevelTokenizer",
    "train_iters": 6,
    "train_batch_size": 4,
    "eval_interval": 2,
    "eval_iters": 2,
}
HOSTS = {"hostfile": "hosts"}
"""Two hosts of a file."""
DATA = SHAPE | {"data_path": "FILES/a", "split": "8,1,1"}
LISTS = SHAPE | {"train_data_paths": ["FILES/a"], "valid_data_paths": ["FILES/a"], "test_data_paths": ["FILES/a"]}
TWO_FILES = SHAPE | {f"{split}_data_paths": ["FILES/a", "FILES/b"] for split in ("train", "valid", "test")}
TRAINED = DATA | {
    "train_iters": 4,
    "lr_decay_iters": 8,
    "optimizer": {"type": "Adam", "params": {"lr": 0.01}},
    "log_interval": 1,
    "precision": "fp32",
    "warmup": 0.0,
}
SAVED = TRAINED | {"save": "checkpoints", "checkpoint_factor": 2}
LOADED = TRAINED | {"load": "FILES/trained/checkpoints", "train_iters": 6}
HALF = SHAPE | {"fp16": {"enabled": True}}
SAMPLED = DATA | {"temperature": 1.0, "maximum_tokens": 6, "eval_iters": 0}
GPT2 = SHAPE | {
    "tokenizer_type": "GPT2BPETokenizer",
    "vocab_file": "FILES/large/vocab.json",
    "merge_file": "FILES/large/merges.txt",
}
BRAIN = SHAPE | {"precision": "bfloat16"}
SCHEDULED = SHAPE | {"scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 9}}}
PROFILED = {
    "enabled": True,
    "profile_step": 2,
    "module_depth": 3,
    "top_modules": 4,
    "detailed": False,
    "recompute_fwd_factor": 0.5,
}
LOGGED = SHAPE | {"comms_logger": {"enabled": True}}
STAGE_3 = SHAPE | {"zero_optimization": {"stage": 3}}
NOWHERE = {"device": "none"}
OFFLOADED = SHAPE | {"zero_optimization": {"stage": 3, "offload_optimizer": NOWHERE, "offload_param": NOWHERE}}
ON_CPU = {"device": "cpu", "pin_memory": True}
GATED = {"activation": "swiglu"}
PARALLEL = {"gpt_j_residual": True}
FOUR = {"num_layers": 4, "checkpoint_activations": True}
LOCAL = {"attention_config": ["local", "local"], "sparsity_config": {"block": 2}}
FIXED = {
    "attention_config": ["sparse_fixed", "sparse_fixed"],
    "sparsity_config": {"block": 2, "num_local_blocks": 4, "different_layout_per_head": True},
}
VARIABLE = {
    "attention_config": ["sparse_variable", "sparse_variable"],
    "sparsity_config": {"block": 2, "global_block_end_indices": [5]},
}
BIGBIRD = {"attention_config": ["bigbird", "bigbird"], "sparsity_config": {"block": 2, "num_random_blocks": 2}}


def stretched(rope_type: str = "yarn", **scaling: Any) -> dict[str, Any]:
    """Rotary positions of which some turn often and some hardly, and keys of rope_scaling."""
    keys = {"rope_type": rope_type, "factor": 4.0} | scaling
    return {"rotary_pct": 1.0, "rotary_emb_base": 100, "neox_hpc": {"rope_scaling": keys}}


LLAMA_3 = stretched("llama3", original_max_position_embeddings=8, low_freq_factor=0.2, high_freq_factor=1.5)
YARN = stretched("yarn", original_max_position_embeddings=8, beta_fast=0.5, beta_slow=0.05)
STORED = SHAPE | {"checkpoint_activations": True}

MUP: dict[str, Any] = {"use_mup": True}

ON_NODE = {
    "optimizer": {"type": "cpu_adam"},
    "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
    "deepspeed_extra_args": {"log_level": "error"},
}

LIVE = (
    # the cut over GPUs, and the batch
    Row("model_parallel_size", 1, 2, see.plan),
    Row("pipe_parallel_size", 1, 2, see.plan),
    Row("pipe_partition_method", "type:transformer|mlp", "uniform", see.stages, {"num_layers": 4}),
    Row("num_nodes", 1, 2, see.plan),
    Row("num_gpus", 4, 3, see.plan_problems),
    Row("hostfile", "one", "two", see.nodes_of_a_hostfile),
    Row("include", None, "n2", see.launched, HOSTS),
    Row("exclude", None, "n2", see.launched, HOSTS),
    Row("master_addr", None, "n2", see.launched, HOSTS),
    Row("master_port", None, 12802, see.launched, HOSTS),
    Row("launcher", "pdsh", "openmpi", see.launched, HOSTS),
    Row("no_ssh_check", False, True, see.launched, HOSTS),
    Row("force_multi", False, True, see.launched),
    Row("deepspeed_slurm", False, True, see.launched),
    Row("global_num_gpus", 4, 8, see.plan_problems, {"num_nodes": 1}),
    Row("account", "stars", "moons", see.script),
    Row("comment", None, "first try", see.script),
    Row("deepspeed_mpi", False, True, see.place),
    Row("train_batch_size", 16, 32, see.plan, {"num_nodes": 1}),
    Row("train_micro_batch_size_per_gpu", 1, 2, see.plan),
    Row("gradient_accumulation_steps", 1, 3, see.plan),
    # shape
    Row("num_layers", 2, 3, see.shapes),
    Row("hidden_size", 32, 64, see.shapes),
    Row("intermediate_size", None, 96, see.shapes),
    Row("expansion_factor", None, 3.0, see.shapes),
    Row("mlp_multiple_of", 1, 16, see.shapes, GATED),
    Row("activation", "swiglu", "gelu", see.shapes),
    Row("norm", "layernorm", "rmsnorm", see.shapes),
    Row("use_bias_in_norms", True, False, see.shapes),
    Row("use_qk_layernorm", False, True, see.shapes),
    Row("use_flashattn_swiglu", False, True, see.implementations_on_a_gpu, GATED),
    Row("no_weight_tying", False, True, see.shapes),
    Row("make_vocab_size_divisible_by", 32, 128, see.shapes),
    Row("use_bias_in_attn_linear", True, False, see.shapes),
    Row("use_bias_in_mlp", True, False, see.shapes),
    Row("gpt_j_tied", False, True, see.shapes, PARALLEL),
    Row("max_position_embeddings", 24, 48, see.longest_input),
    # the function
    Row("num_attention_heads", 2, 4, see.first_loss),
    Row("layernorm_epsilon", 1e-5, 1e-2, see.first_loss),
    Row("rms_norm_epsilon", 1e-8, 1e-2, see.first_loss, {"norm": "rmsnorm"}),
    Row("scalenorm_epsilon", 1e-8, 10.0, see.first_loss, {"norm": "scalenorm"}),
    Row("pos_emb", "rotary", "none", see.first_loss),
    Row("opt_pos_emb_offset", 0, 2, see.first_loss, {"pos_emb": "learned", "max_position_embeddings": 32}),
    Row("rpe_num_buckets", 8, 16, see.shapes, {"pos_emb": "rpe"}),
    Row("rpe_max_distance", 8, 32, see.first_loss, {"pos_emb": "rpe", "rpe_num_buckets": 8}),
    Row("sliding_window_width", 3, 7, see.first_loss),
    Row("sparsity_config", {"block": 2}, {"block": 4}, see.first_loss, LOCAL),
    Row("sparsity_config.block", 2, 4, see.first_loss, LOCAL),
    Row("sparsity_config.num_local_blocks", 2, 4, see.first_loss, LOCAL),
    Row("sparsity_config.num_sliding_window_blocks", 2, 4, see.first_loss, LOCAL),
    Row("sparsity_config.different_layout_per_head", False, True, see.first_loss, BIGBIRD),
    Row("sparsity_config.num_random_blocks", 0, 3, see.first_loss, BIGBIRD),
    Row("sparsity_config.num_global_blocks", 1, 2, see.first_loss, FIXED),
    Row("sparsity_config.num_different_global_patterns", 1, 2, see.first_loss, FIXED),
    Row("sparsity_config.local_window_blocks", [1, 2], [3], see.first_loss, VARIABLE),
    Row("sparsity_config.global_block_indices", [0], [3], see.first_loss, VARIABLE),
    Row("sparsity_config.global_block_end_indices", [1], [4], see.first_loss, VARIABLE),
    Row("neox_hpc.rope_scaling", {"rope_type": "linear", "factor": 2}, {"rope_type": "linear", "factor": 4}, see.first_loss),
    Row("neox_hpc.rope_scaling.rope_type", "llama3", "yarn", see.first_loss, stretched(original_max_position_embeddings=8)),
    Row("neox_hpc.rope_scaling.factor", 2, 4, see.first_loss, stretched("linear")),
    Row("neox_hpc.rope_scaling.original_max_position_embeddings", 8, 64, see.first_loss, stretched("yarn")),
    Row("neox_hpc.rope_scaling.low_freq_factor", 0.1, 0.3, see.first_loss, LLAMA_3),
    Row("neox_hpc.rope_scaling.high_freq_factor", 1.0, 2.0, see.first_loss, LLAMA_3),
    Row("neox_hpc.rope_scaling.beta_fast", 0.3, 1.0, see.first_loss, YARN),
    Row("neox_hpc.rope_scaling.beta_slow", 0.05, 0.02, see.first_loss, YARN),
    Row("neox_hpc.rope_scaling.attention_factor", 0.5, 1.5, see.first_loss, YARN),
    Row("rotary_pct", 0.5, 1.0, see.first_loss),
    Row("rotary_save_freqs_buffer", False, True, see.kept_frequencies, SAVED),
    Row("rotary_emb_base", 100, 10000, see.first_loss),
    Row("gpt_j_residual", False, True, see.first_loss),
    Row("hidden_dropout", 0.0, 0.2, see.first_loss),
    Row("attention_dropout", 0.0, 0.2, see.first_loss),
    Row("init_method", "normal", "small_init", see.first_loss),
    Row("output_layer_init_method", "normal", "wang_init", see.first_loss),
    Row("init_method_std", 0.02, 0.2, see.first_loss),
    Row("use_cpu_initialization", False, True, see.drawn_on),
    Row("seed", 1, 2, see.first_loss),
    Row("z_loss", 0.0, 0.1, see.first_loss),
    Row("num_kv_heads", None, 2, see.shapes),
    Row("output_layer_parallelism", "column", "row", see.shapes_on_two_tensor_ranks),
    Row("sequence_parallel", False, True, see.stream, {"model_parallel_size": 4}),
    Row("apply_query_key_layer_scaling", False, True, see.bf16_logits, {"num_layers": 4}),
    Row("attention_softmax_in_fp32", False, True, see.bf16_logits),
    Row("attention_config", ["global", "global"], [[["flash"], "all"]], see.implementations),
    Row("scaled_upper_triang_masked_softmax_fusion", False, True, see.implementations),
    Row("bias_gelu_fusion", False, True, see.implementations),
    Row("checkpoint_activations", False, True, see.recomputed),
    Row("checkpoint_num_layers", 1, 2, see.recomputed, FOUR),
    Row("neox_hpc.collective_timeout_minutes", 10.0, 20.0, see.backend),
    Row("neox_hpc", {"recompute_granularity": "full"}, {"recompute_granularity": "selective"}, see.recomputed, FOUR),
    Row("neox_hpc.compile", False, True, see.compiled_blocks),
    Row("neox_hpc.launcher_args", [], ["--mpi=none"], see.script),
    Row("neox_hpc.recompute_granularity", "full", "selective", see.recomputed, FOUR),
    Row("deepspeed_activation_checkpointing", False, True, see.recomputation, STORED),
    Row("partition_activations", False, True, see.recomputation, STORED),
    Row("contiguous_checkpointing", False, True, see.recomputation, STORED | {"partition_activations": True}),
    Row("checkpoint_in_cpu", False, True, see.recomputation, STORED | {"partition_activations": True}),
    Row("synchronize_each_layer", False, True, see.recomputation, STORED),
    Row("profile_backward", False, True, see.recomputation, STORED),
    # the optimizer and its rate
    Row("lr_decay_style", "linear", "cosine", see.rate_curve),
    Row("lr_decay_iters", 10, 20, see.rate_curve),
    Row("lr_decay_fraction", 0.5, 1.0, see.rate_curve),
    Row("min_lr", 0.0, 1e-4, see.rate_curve),
    Row("warmup", 0.1, 0.5, see.rate_curve),
    Row("optimizer", {"params": {"lr": 1e-3}}, {"params": {"lr": 1e-2}}, see.rate_curve),
    Row("optimizer.params", {"lr": 1e-3}, {"lr": 1e-2}, see.rate_curve),
    Row("optimizer.params.lr", 1e-3, 1e-2, see.rate_curve),
    Row("optimizer.params.betas", [0.9, 0.95], [0.5, 0.95], see.optimizer_steps),
    Row("optimizer.params.eps", 1e-8, 1e-3, see.optimizer_steps),
    Row("optimizer.params.adam_w_mode", True, False, see.optimizer_steps),
    Row("optimizer.params.momentum", 0.5, 0.9, see.optimizer_steps, {"optimizer": {"type": "sgd"}}),
    Row("optimizer.params.beta", 0.0, 0.9, see.optimizer_steps, {"optimizer": {"type": "sm3"}, "weight_decay": 0.0}),
    Row("optimizer.params.freeze_step", 1, 2, see.optimizer_steps, {"optimizer": {"type": "onebitadam"}}),
    Row("use_bnb_optimizer", False, True, see.optimizer_class),
    Row("deepspeed_extra_args.zero_force_ds_cpu_optimizer", None, False, see.optimizer_class, ON_NODE),
    Row("neox_hpc.cpu_adam_op", None, "FILES/absent.so", see.cpu_adam_refusal, ON_NODE),
    Row("optimizer.type", "adam", "lion", see.optimizer_steps),
    Row("override_lr_scheduler", False, True, see.continued, LOADED | {"min_lr": 0.001}),
    Row("use_checkpoint_lr_scheduler", False, True, see.continued, LOADED | {"min_lr": 0.001}),
    Row("weight_decay", 0.0, 0.5, see.optimizer_steps),
    Row("gradient_clipping", 0.01, 1.0, see.metrics, TRAINED | {"optimizer": {"params": {"lr": 0.01, "eps": 0.1}}}),
    # muP
    Row("use_mup", False, True, see.maximal_update),
    Row("base_shapes_file", "FILES/base.json", "FILES/other.json", see.maximal_update, MUP),
    Row("mup_init_scale", 1.0, 2.0, see.maximal_update, MUP),
    Row("mup_embedding_mult", 1.0, 2.0, see.maximal_update, MUP),
    Row("mup_rp_embedding_mult", 1.0, 2.0, see.maximal_update, MUP | {"pos_emb": "sinusoidal"}),
    Row("mup_attn_temp", 1.0, 2.0, see.maximal_update, MUP),
    Row("mup_output_temp", 1.0, 2.0, see.maximal_update, MUP),
    Row("mup_width_scale", 2, 3, see.widths_checked, {"use_mup": True, "coord_check": True}),
    Row("save_base_shapes", False, True, see.left_behind, TRAINED | MUP | {"base_shapes_file": "FILES/kept.json"}),
    Row("coord_check", False, True, see.left_behind, TRAINED | MUP | {"base_shapes_file": "FILES/base.json"}),
    # precision and ZeRO
    Row("precision", "fp32", "bfloat16", see.engine, SHAPE),
    Row("fp16", None, {"enabled": True}, see.engine, SHAPE),
    Row("fp16.enabled", False, True, see.engine, SHAPE),
    Row("bf16", None, {"enabled": True}, see.engine, SHAPE),
    Row("bf16.enabled", False, True, see.engine, SHAPE),
    Row("zero_optimization", {"stage": 0}, {"stage": 1}, see.engine, SHAPE),
    Row("zero_optimization.stage", 2, 3, see.engine, SHAPE),
    Row("fp16_lm_cross_entropy", False, True, see.fp16_loss),
    Row("fp32_allreduce", False, True, see.metrics_of_four, TRAINED | {"model_parallel_size": 4, "precision": "bfloat16"}),
    Row("deepspeed_extra_args", {"log_level": "error"}, {"memory_breakdown": True}, see.engine, SHAPE),
    Row("distributed_backend", "nccl", "gloo", see.backend),
    # text and data
    Row("tokenizer_type", "HFTokenizer", "CharLevelTokenizer", see.tokens, SHAPE | {"vocab_file": "FILES/large.json"}),
    Row("vocab_file", "FILES/small.json", "FILES/large.json", see.tokens, SHAPE | {"tokenizer_type": "HFTokenizer"}),
    Row("merge_file", "FILES/large/merges.txt", "FILES/fewer.txt", see.tokens, GPT2),
    Row("data_path", "FILES/a", "FILES/b", see.served, DATA),
    Row("train_data_paths", ["FILES/a"], ["FILES/b"], see.served, LISTS),
    Row("valid_data_paths", ["FILES/a"], ["FILES/b"], see.served, LISTS),
    Row("test_data_paths", ["FILES/a"], ["FILES/b"], see.served, LISTS),
    Row("train_data_weights", [1.0, 0.0], [0.0, 1.0], see.served, TWO_FILES),
    Row("valid_data_weights", [1.0, 0.0], [0.0, 1.0], see.served, TWO_FILES),
    Row("test_data_weights", [1.0, 0.0], [0.0, 1.0], see.served, TWO_FILES),
    Row("split", "8,1,1", "5,3,2", see.served, DATA),
    Row("seq_length", 8, 16, see.served, DATA),
    Row("eod_mask_loss", False, True, see.served, DATA),
    # the run
    Row("train_iters", 2, 3, see.metrics, TRAINED),
    Row("eval_interval", 2, 4, see.metrics, TRAINED),
    Row("eval_iters", 0, 1, see.metrics, TRAINED),
    Row("exit_interval", None, 2, see.metrics, TRAINED),
    Row("peak_theoretical_tflops", None, 1.0, see.metrics, TRAINED),
    Row("log_interval", 1, 2, see.printed, TRAINED),
    Row("save", None, "checkpoints", see.checkpoints, SAVED),
    Row("checkpoint_factor", 1, 4, see.checkpoints, SAVED),
    Row("checkpoint_scale", "linear", "log", see.checkpoints, SAVED),
    Row("extra_save_iters", None, [3], see.checkpoints, SAVED),
    Row("keep_last_n_checkpoints", None, 1, see.checkpoints, SAVED),
    Row("load", None, "FILES/trained/checkpoints", see.metrics, LOADED),
    Row("finetune", False, True, see.metrics, LOADED),
    Row("no_load_optim", False, True, see.metrics, LOADED),
    # sampling
    Row("text_gen_type", "unconditional", "input-file", see.samples, SAMPLED | {"sample_input_file": "FILES/prompts.txt"}),
    Row("sample_input_file", "FILES/prompts.txt", "FILES/other.txt", see.samples, SAMPLED),
    Row("temperature", 0.0, 1.0, see.samples, SAMPLED),
    Row("top_k", 0, 1, see.samples, SAMPLED),
    Row("top_p", 0.0, 0.01, see.samples, SAMPLED),
    Row("maximum_tokens", 3, 6, see.samples, SAMPLED),
    Row("num_samples", 1, 2, see.samples, SAMPLED),
    Row("recompute", False, True, see.samples, SAMPLED),
    Row("sample_output_file", "one.jsonl", "other.jsonl", see.generated, SAMPLED),
)

PASSED: dict[str, tuple[Any, dict[str, Any]]] = {
    "steps_per_print": (7, SHAPE),
    "wall_clock_breakdown": (True, SHAPE),
    "fp16.loss_scale": (128.0, HALF),
    "fp16.initial_scale_power": (9, HALF),
    "fp16.loss_scale_window": (77, HALF),
    "fp16.hysteresis": (5, HALF),
    "fp16.min_loss_scale": (4, HALF),
    "fp16.consecutive_hysteresis": (True, HALF),
    "dump_state": (True, SHAPE),
    "prescale_gradients": (True, SHAPE),
    "gradient_predivide_factor": (2.0, SHAPE),
    "communication_data_type": ("bf16", SHAPE),
    "data_types": ({"grad_accum_dtype": "bf16"}, BRAIN),
    "data_types.grad_accum_dtype": ("bf16", BRAIN),
    "scheduler": ({"type": "WarmupLR", "params": {"warmup_num_steps": 3}}, SHAPE),
    "scheduler.type": ("WarmupCosineLR", SCHEDULED),
    "scheduler.params": ({"total_num_steps": 8}, SCHEDULED),
    "deepspeed_extra_args.log_level": ("error", SHAPE),
    "deepspeed_extra_args.memory_breakdown": (True, SHAPE),
    "deepspeed_extra_args.disable_python_gc": (True, SHAPE),
    "deepspeed_extra_args.timers": ({"throughput": {"enabled": False, "synchronized": False}}, SHAPE),
    "flops_profiler": (PROFILED, SHAPE),
    "flops_profiler.enabled": (True, SHAPE),
    "flops_profiler.profile_step": (2, SHAPE),
    "flops_profiler.module_depth": (2, SHAPE),
    "flops_profiler.top_modules": (3, SHAPE),
    "flops_profiler.detailed": (False, SHAPE),
    "flops_profiler.recompute_fwd_factor": (0.5, SHAPE),
    "comms_logger": ({"enabled": True, "prof_all": False, "prof_ops": ["all_reduce"], "verbose": True, "debug": True}, SHAPE),
    "comms_logger.enabled": (True, SHAPE),
    "comms_logger.prof_all": (False, LOGGED),
    "comms_logger.prof_ops": (["all_reduce"], LOGGED),
    "comms_logger.verbose": (True, LOGGED),
    "comms_logger.debug": (True, LOGGED),
    "zero_optimization.allgather_partitions": (False, SHAPE),
    "zero_optimization.allgather_bucket_size": (12345, SHAPE),
    "zero_optimization.overlap_comm": (True, SHAPE),
    "zero_optimization.reduce_scatter": (False, SHAPE),
    "zero_optimization.reduce_bucket_size": (54321, SHAPE),
    "zero_optimization.contiguous_gradients": (True, SHAPE),
    "zero_optimization.round_robin_gradients": (True, SHAPE),
    "zero_optimization.ignore_unused_parameters": (False, SHAPE),
    "zero_optimization.sub_group_size": (5000, STAGE_3),
    "zero_optimization.stage3_prefetch_bucket_size": (5001, STAGE_3),
    "zero_optimization.stage3_param_persistence_threshold": (5002, STAGE_3),
    "zero_optimization.stage3_max_live_parameters": (5003, STAGE_3),
    "zero_optimization.stage3_max_reuse_distance": (5004, STAGE_3),
    "zero_optimization.zero_hpz_partition_size": (2, STAGE_3),
    "zero_optimization.zero_quantized_weights": (True, STAGE_3),
    "zero_optimization.zero_quantized_gradients": (True, STAGE_3),
    "zero_optimization.offload_optimizer": (ON_CPU, STAGE_3),
    "zero_optimization.offload_optimizer.device": ("cpu", OFFLOADED),
    "zero_optimization.offload_optimizer.pin_memory": (False, OFFLOADED),
    "zero_optimization.offload_param": (ON_CPU, STAGE_3),
    "zero_optimization.offload_param.device": ("cpu", OFFLOADED),
    "zero_optimization.offload_param.pin_memory": (False, OFFLOADED),
}
"""Key -> a value that is not its default, and the keys around it."""
