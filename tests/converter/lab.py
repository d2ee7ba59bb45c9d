"""Whole runs in forked ranks: composed, built and trained as by the command, with torch imported once."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_hydra import config, distributed, runner, tasks
from arctic_hydra.assembly import startup
from arctic_hydra.assets import ASSETS
from arctic_hydra.cli.composition import compose
from arctic_hydra.cli.overrides import normalize
from arctic_hydra.errors import ArcticHydraError, ConfigError
from arctic_hydra.stopping import StopRequest
from tests.ranks import run_ranks
from tests.warm import prepare

SHORT = (
    "model=hf data.max_length=128 data.num_proc=1 data.sources.chat.sample_count=60 ~data.eval_sources.chat tracking=[] "
    "optimizer.lr=1e-2 optimizer.eps=1e-3 scheduler=constant scheduler.warmup_ratio=0 trainer.train_iters=2 "
    "log.print_ranks=[] log.file_ranks=[]"
)
"""Two optimizer steps on bundled chats; the large eps keeps Adam from amplifying rounding errors."""


def save_model(folder: Path, *, tied: bool = False, vocabulary: int = 4096, **values: Any) -> Path:
    """Write a Llama of random weights, hidden 32, with the bundled tokenizer; return the folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape = {**sizes, "num_key_value_heads": 2, "max_position_embeddings": 128, **values}
    LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=tied, **shape)).save_pretrained(folder)
    for path in (ASSETS / "tokenizer").iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    return folder


def compose_run(arguments: str, model: Path | None = None) -> tuple[config.Run, dict[str, Any]]:
    """Return the checked run of a command line, and its plain config."""
    wanted = f"{SHORT} {arguments}".split(" ")
    wanted += [f"model.name_or_path={model}", "model.dtype=fp32"] if model else []
    if "data.eval_sources" in arguments:
        wanted.remove("~data.eval_sources.chat")
    overrides = [normalize(item) for item in wanted if item]
    tree = compose.compose_config(overrides, "config").job
    return config.build(tree), tree


def perform(arguments: str, run_dir: Path, model: Path | None = None) -> dict[str, Any]:
    """Perform a command's task in this rank; return the outcome."""
    run, tree = compose_run(arguments, model)
    run_dir.mkdir(parents=True, exist_ok=True)
    if distributed.World.from_env().is_main:
        (run_dir / "run.json").write_text(json.dumps({"config": tree}))
    distributed.barrier()
    return tasks.run_task(run, run_dir, StopRequest(run_dir / "STOP"))


def train(arguments: str, run_dir: Path, model: Path | None = None, ids: list[int] | None = None) -> dict[str, Any]:
    """Train in this rank; return losses, gradient norms, trained weights (whole, in fp32), logits of `ids`, verdicts on exports."""
    run, tree = compose_run(arguments, model)
    run_dir.mkdir(parents=True, exist_ok=True)
    if distributed.World.from_env().is_main:
        (run_dir / "run.json").write_text(json.dumps({"config": tree}))
    distributed.barrier()
    with startup.report_exceptions(run, run_dir):
        trainer, resumed, _ = runner.build(run, run_dir, StopRequest(run_dir / "STOP"))
    rows: list[dict[str, Any]] = []
    trainer._record = rows.append  # type: ignore[method-assign]
    trainer.train()
    module = trainer.tools.engine.module
    weights = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            with distributed.gathered(parameter):
                weights[name] = parameter.detach().float().cpu().clone()
    optimizer = trainer.tools.engine.optimizer
    held = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    return {
        "losses": [row["loss"] for row in rows if "loss" in row],
        "norms": [row["grad_norm"] for row in rows if "loss" in row],
        "weights": weights,
        "held": held,
        "recomputes": module.is_gradient_checkpointing,
        "resumed": resumed,
        "verdicts": trainer.export_verdicts,
        "logits": _logits(trainer, ids) if ids else None,
    }


def _logits(trainer: Any, ids: list[int]) -> torch.Tensor:
    trainer.tools.engine.eval()
    with torch.no_grad():
        document = {"input_ids": torch.tensor([ids]), "position_ids": torch.arange(len(ids))[None], "use_cache": False}
        bounds = torch.tensor([0, len(ids)], dtype=torch.int32)
        ends = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": len(ids), "max_length_k": len(ids)}
        return trainer.tools.engine(**document, **ends).logits[0].float()


def train_each(cases: dict[str, str], folder: Path, model: Path | None) -> dict[str, Any]:
    """Train several runs, one after the other, in this rank."""
    return {name: train(arguments, folder / name, model) for name, arguments in cases.items()}


def errors_of(cases: list[str], folder: Path, model: Path | None) -> dict[str, str]:
    """Return what each run fails with, or "trained"."""
    found = {}
    for number, arguments in enumerate(cases):
        try:
            train(arguments, folder / str(number), model)
            found[arguments] = "trained"
        except ArcticHydraError as error:
            found[arguments] = str(error)
    return found


def environment_problems(arguments: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the problems of a run on a machine without GPU, bitsandbytes and torchao."""
    found = importlib.util.find_spec
    absent = ("bitsandbytes", "torchao")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else found(name))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return str(ConfigError(compose_run(arguments, model)[0].environment_problems()))


def in_ranks(size: int, function: Any, *arguments: Any) -> Any:
    """Return what rank 0 of `size` returns."""
    return run_ranks(size, function, *arguments)[0]


def warm() -> None:
    """Do what each forked rank would do again: import libraries, have Hydra find its plugins and parse its grammar."""
    prepare()
    compose_run("")
