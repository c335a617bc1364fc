"""A tiny run over real text, for tests that train."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np

from model.config import RunConfig, RunFile, write_run
from model.data.tokens import TokenFileWriter

KEYS: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "seq_length": 32,
    "max_position_embeddings": 32,
    "pos_emb": "rotary",
    "rotary_pct": 0.25,
    "no_weight_tying": True,
    "gpt_j_residual": True,
    "scaled_upper_triang_masked_softmax_fusion": True,
    "tokenizer_type": "CharLevelTokenizer",
    "train_iters": 20,
    "train_batch_size": 8,
    "eval_interval": 10,
    "eval_iters": 2,
    "log_interval": 5,
    "save": "checkpoints",
    "checkpoint_factor": 100,
    "optimizer": {"type": "Adam", "params": {"lr": 0.01, "betas": [0.9, 0.95], "eps": 1e-4}},
    "gradient_clipping": 0.5,
    "hidden_dropout": 0.1,
}


def write_tokens(directory: Path) -> Path:
    """The source of two modules of the standard library, as bytes, in documents of uneven length; the prefix."""
    text = (inspect.getsource(json.decoder) + inspect.getsource(inspect)).encode()
    prefix = directory / "text"
    with TokenFileWriter(prefix, np.uint16) as writer:
        for document in text.split(b"\n\n\n"):
            writer.add(list(document))
    return prefix


def write_tiny_run(run_dir: Path, **changes: Any) -> Path:
    """run.json of a tiny run in its own directory; ``changes`` are keys."""
    run_dir.mkdir(parents=True, exist_ok=True)
    keys = KEYS | {"data_path": str(run_dir.parent / "text"), "split": "9,1,0"} | changes
    if keys["save"] is not None:
        keys["save"] = str(run_dir / keys["save"])
    if not (run_dir.parent / "text.idx").exists():
        write_tokens(run_dir.parent)
    path = run_dir / "run.json"
    path.write_text(write_run(RunFile(name="tiny", device="cpu", config=RunConfig.from_keys(keys))))
    return path


def curve(run_dir: Path, key: str = "loss") -> list[float]:
    """The values of one metric, in order of steps."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]
