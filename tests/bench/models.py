"""The model, chats and settings of the comparisons with TRL's SFTTrainer: equal weights and rows on both sides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from arctic_hydra.assets import ASSETS

CHATS = ASSETS / "chat" / "train_sft.jsonl"
MAX_LENGTH = 2048


def write_model(folder: Path, **sizes: Any) -> Path:
    """Write the model of `model=tiny`, with changes, with the bundled tokenizer; return its directory."""
    import torch

    from arctic_hydra.model.tiny import TinyModelFactory
    from arctic_hydra.tokenizer.bundled import BundledTokenizerFactory
    from tests.trainer.loop import attached

    torch.manual_seed(0)
    tokenizer = BundledTokenizerFactory().create_tokenizer()
    factory = attached(TinyModelFactory(attn_implementation="sdpa", **sizes))
    config = factory.create_config()
    config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    factory.create_model(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


def write_rows(folder: Path, count: int) -> Path:
    """Write the first `count` bundled chats."""
    rows = [json.loads(line) for line in CHATS.read_text(encoding="utf-8").splitlines()[:count]]
    path = folder / f"rows-{count}.jsonl"
    # TRL takes rows for conversations only if they have no other columns.
    path.write_text("".join(json.dumps({"messages": row["messages"]}) + "\n" for row in rows), encoding="utf-8")
    return path


def write_settings(folder: Path, model: Path, rows: Path, *, batch: int, grouped: bool, evaluate: bool) -> Path:
    """Write the settings of `peers/trl_train.py`."""
    settings = {"model": str(model), "rows": str(rows), "work": str(folder / "trl"), "max_length": MAX_LENGTH}
    path = folder / f"trl-{batch}-{grouped}-{evaluate}.json"
    path.write_text(json.dumps({**settings, "batch": batch, "grouped": grouped, "evaluate": evaluate}))
    return path


def overrides(model: Path, rows: Path, *, evaluate: bool) -> list[str]:
    """Return our command line for the same model and rows."""
    kept = ["+source@data.eval_sources.json=json", f"data.eval_sources.json.path={rows}"] if evaluate else []
    return [
        *("model=hf", f"model.name_or_path={model}", "model.dtype=fp32", "model.disable_activation_checkpoint=true"),
        *("data=json", f"data.sources.json.path={rows}", f"data.max_length={MAX_LENGTH}", "data.overlong=keep_start"),
        *(*kept, "optimizer.lr=1e-3", "trainer.epochs=1", "tracking=[]", "checkpoint=[]", "log.report=false"),
    ]
