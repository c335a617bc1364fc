"""Keys of the training run: data, tokenizer, steps, evaluation, checkpoints, logging, sampling."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from model.config.keys import Section, absent, live, planned, retired


class Tokenizer(Section):
    """How text becomes tokens."""

    tokenizer_type: Literal[
        "GPT2BPETokenizer", "HFTokenizer", "HFGPT2Tokenizer", "SPMTokenizer", "CharLevelTokenizer", "TiktokenTokenizer"
    ] = live(
        "GPT2BPETokenizer",
        trains=("HFTokenizer", "CharLevelTokenizer", "GPT2BPETokenizer"),
        doc="Kind of tokenizer; HFTokenizer reads a tokenizers JSON file.",
    )
    vocab_file: str | None = live(None, doc="Vocabulary (or the whole tokenizer, for HFTokenizer).")
    merge_file: str | None = live(None, doc="Merges of a GPT-2 BPE.")


class Data(Section):
    """Token files and how they are cut into samples."""

    data_path: str | None = live(None, doc="Prefix of one .bin/.idx pair, cut into train, valid and test by split.")
    train_data_paths: tuple[str, ...] | None = live(None, strict=False, doc="Prefixes of the training token files.")
    valid_data_paths: tuple[str, ...] | None = live(None, strict=False, doc="Prefixes of the validation token files.")
    test_data_paths: tuple[str, ...] | None = live(None, strict=False, doc="Prefixes of the test token files.")
    train_data_weights: tuple[float, ...] | None = live(None, strict=False, doc="Share of each training file; equal when absent.")
    valid_data_weights: tuple[float, ...] | None = live(None, strict=False, doc="Share of each validation file.")
    test_data_weights: tuple[float, ...] | None = live(None, strict=False, doc="Share of each test file.")
    split: str = live("969, 30, 1", doc="Shares of train, valid and test when only data_path is given.")
    data_impl: Literal["infer", "mmap", "cached"] = planned(
        "infer", trains=("infer", "mmap"), doc="Format of the token files; there is one so far."
    )
    pack_impl: Literal["packed", "pack_until_overflow", "unpacked"] = planned("packed", doc="How documents fill a sample.")
    allow_chopped: bool = planned(True, doc="Documents longer than a sample are cut.")
    weight_by_num_documents: bool = planned(False, doc="Shares of the files follow their numbers of documents.")
    weighted_sampler_alpha: float = planned(1.0, doc="How strongly, with weight_by_num_documents.")
    use_shared_fs: bool = planned(True, doc="All nodes see the same files.")
    mmap_warmup: bool = planned(False, doc="Read the token files once at start.")
    short_seq_prob: float = retired(0.1, doc="Share of shorter samples.", why="never read by GPT-NeoX")
    eod_mask_loss: bool = live(False, doc="No loss on the end-of-document token.")
    num_workers: int = planned(2, ge=0, doc="Loader processes.")

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        lists = {
            name: getattr(self, f"{name}_data_paths")
            for name in ("train", "valid", "test")
            if getattr(self, f"{name}_data_paths") is not None
        }
        if self.data_path is not None and lists:
            raise ValueError(f"data_path and {', '.join(f'{name}_data_paths' for name in lists)} are both given: keep one kind")
        if lists and "train" not in lists:
            raise absent("valid_data_paths or test_data_paths without train_data_paths")
        for name, paths in lists.items():
            weights = getattr(self, f"{name}_data_weights")
            if weights is not None and len(weights) != len(paths):
                raise ValueError(f"{name}_data_weights has {len(weights)} entries, {name}_data_paths has {len(paths)}")
            if weights is not None and (min(weights) < 0 or sum(weights) == 0):
                raise ValueError(f"{name}_data_weights {list(weights)}: shares must be positive")
        return self


class Training(Section):
    """Steps, evaluation and recomputation."""

    train_iters: int | None = live(None, ge=1, doc="Optimizer steps.")
    train_epochs: int | None = planned(None, ge=1, doc="Passes over the data, instead of train_iters.")
    iteration: int | None = planned(None, ge=0, doc="Begin from the checkpoint of this step.")
    seed: int = live(1234, ge=0, lt=2**32, doc="Seed of initial weights, data order and dropout.")
    eval_interval: int = live(1000, ge=1, doc="Steps between validations.")
    eval_iters: int = live(100, ge=0, doc="Micro-batch rounds in one validation; 0 turns it off.")
    exit_interval: int | None = live(None, ge=1, doc="Stop after this step, with a checkpoint.")
    distributed_backend: Literal["nccl", "gloo", "mpi"] = live(
        "nccl", trains=("nccl", "gloo"), doc="torch.distributed's backend on GPUs; CPU ranks always use gloo."
    )
    checkpoint_activations: bool = live(False, doc="Recompute activations in the backward pass.")
    checkpoint_num_layers: int = live(1, ge=1, doc="Blocks between two stored activations.")
    deepspeed_activation_checkpointing: bool = live(True, doc="DeepSpeed's activation checkpointing instead of torch's.")
    partition_activations: bool = live(False, doc="Stored activations are shared out over tensor-parallel ranks.")
    contiguous_checkpointing: bool = live(False, doc="Stored activations lie in one buffer.")
    checkpoint_in_cpu: bool = live(False, doc="Stored activations go to the CPU.")
    synchronize_each_layer: bool = live(False, doc="Wait for the GPU after each layer.")
    profile_backward: bool = live(False, doc="Time the backward pass of stored activations.")
    adlr_autoresume: bool = retired(False, doc="A cluster's resume hook.", why="never read by GPT-NeoX")
    adlr_autoresume_interval: int = retired(1000, doc="How often it is asked.", why="never read by GPT-NeoX")


class Checkpoints(Section):
    """What is saved, when, and where a run begins."""

    save: str | None = live(None, doc="Directory of checkpoints; a relative one lies in the run directory.")
    load: str | None = live(None, doc="Directory to begin from; the same text as save: continue this run if it has a checkpoint.")
    checkpoint_factor: int | float | None = live(None, gt=0, doc="Steps between checkpoints (factor, with checkpoint_scale log).")
    checkpoint_scale: Literal["linear", "log"] = live("linear", doc="Checkpoints at multiples or at powers of checkpoint_factor.")
    extra_save_iters: tuple[int, ...] | None = live(None, strict=False, doc="Further steps to save at.")
    keep_last_n_checkpoints: int | None = live(None, ge=1, doc="Older checkpoints are removed.")
    finetune: bool = live(False, doc="Begin at step 0 with the loaded weights and a fresh optimizer.")
    no_load_optim: bool = live(False, doc="Load the weights and the step, not the optimizer's moments.")

    no_save_optim: bool = retired(False, doc="Save weights only.", why="never read by GPT-NeoX")
    no_save_rng: bool = planned(False, doc="Do not save random states.")
    no_load_rng: bool = planned(False, doc="Do not load random states.")
    checkpoint_validation_with_forward_pass: bool = planned(False, doc="Save logits beside the weights and compare them on load.")
    s3_path: str | None = planned(None, doc="Bucket that checkpoints are copied to.")
    s3_chunk_size: int = planned(104857600, ge=1, doc="Bytes of a part of such a copy.")

    @model_validator(mode="after")
    def _when(self) -> Checkpoints:
        if self.save is not None and self.checkpoint_factor is None and not self.extra_save_iters:
            raise absent("save without checkpoint_factor or extra_save_iters: say when to save, e.g. checkpoint_factor: 1000")
        factor = self.checkpoint_factor
        if self.checkpoint_scale == "linear" and factor is not None and factor != int(factor):
            raise ValueError(f"checkpoint_factor {factor} with checkpoint_scale linear must be a whole number")
        if self.checkpoint_scale == "log" and factor is not None and factor <= 1:
            raise ValueError("checkpoint_scale log needs a checkpoint_factor above 1")
        return self


class Logging(Section):
    """What is printed and written while training."""

    log_interval: int = live(100, ge=1, doc="Steps between two printed lines; metrics.jsonl has every step.")
    log_grad_norm: bool = planned(False, doc="Norm of each parameter's gradient (the whole norm is always logged).")
    peak_theoretical_tflops: float | None = live(None, gt=0, doc="Peak of one GPU, for MFU in metrics.jsonl.")


class Generation(Section):
    """Sampling from a trained model."""

    text_gen_type: Literal["unconditional", "input-file", "interactive", "precompute"] | None = live(
        None, trains=("unconditional", "input-file"), doc="Where prompts come from; from sample_input_file when that is given."
    )
    temperature: float = live(0.0, ge=0, doc="Divides the logits; 0 takes the most likely token.")
    top_k: int = live(0, ge=0, doc="Sample among this many most likely tokens; 0: all.")
    top_p: float = live(0.0, ge=0, le=1, doc="Sample among the fewest tokens holding this probability; 0: all.")
    maximum_tokens: int = live(64, ge=1, doc="Tokens to generate per sample.")
    num_samples: int = live(1, ge=1, doc="Samples to generate (per prompt).")
    sample_input_file: str | None = live(None, doc="Prompts, one a line.")
    sample_output_file: str = live("samples.txt", doc="Samples as JSON lines; a relative path lies in the run directory.")
    prompt_end: str = planned("\n", doc="Ends an interactive prompt.")
    return_logits: bool = planned(False, doc="Write the logits beside the text.")
    precompute_model_name: str | None = planned(None, doc="Suffix of precomputed log-probabilities.")
    eval_tasks: tuple[str, ...] | None = planned(None, strict=False, doc="Tasks of the evaluation harness.")
    eval_results_prefix: str = planned("", doc="Start of the evaluation's file names.")
    recompute: bool = live(False, doc="Compute the whole sequence for every token instead of using the key-value cache.")
