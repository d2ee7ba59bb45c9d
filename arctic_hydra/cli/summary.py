"""The summary that a run prints at its end: the result, the files, and useful next commands."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from arctic_hydra import run_directory
from arctic_hydra.report import run_page
from arctic_hydra.run_directory import PROGRAM, relative


def print_result(directory: run_directory.RunDirectory, result: dict[str, Any]) -> None:
    """Print how the run ended, where its files are, and useful next commands."""
    path = relative(directory.path)
    if result["status"] == run_directory.STOPPED:
        print(f"stopped at step {result['step']} of {result['horizon']}: {result['stop_reason']}")
        saved = any((directory.path / "checkpoints").glob("step-*"))
        print("the same command resumes" if saved else "nothing was saved, so the same command starts over")
        return
    if "export" in result:
        print(f"exported {relative(Path(result['checkpoint']))} to {relative(Path(result['export']))}")
        return
    if "checkpoint" in result:
        print(f"evaluated {relative(Path(result['checkpoint']))}; all metrics: {path / 'result.json'}")
        return
    print(
        f"finished {result['step']} steps; loss {format_number(result['first_loss'])} -> {format_number(result['last_loss'])}"
    )
    if result.get("stop_reason"):
        print(f"ended before step {result['horizon']}: {result['stop_reason']}")
    first, last = result["first_evaluation"], result["last_evaluation"]
    if first and last:
        losses = f"{format_number(first['eval/loss'])} -> {format_number(last['eval/loss'])}"
        accuracy = f", accuracy {last['eval/accuracy']:.1%}" if "eval/accuracy" in last else ""
        print(f"evaluation loss {losses}{accuracy}")
    print(f"run          {path}")
    found = [folder.parent.name for folder in sorted(directory.path.glob("*/tokenizer_config.json"))]
    export = next((name for name in found if "-step-" not in name), None)  # the final export, whatever its name
    for label, name in (
        ("export", export),
        ("checkpoints", "checkpoints"),
        ("metrics", "metrics.jsonl"),
        ("report", run_page.PAGE),
    ):
        if name is not None and (directory.path / name).exists():
            print(f"{label:<12} {path / name}")
    if export is not None:
        is_adapter = (directory.path / export / "adapter_config.json").exists()
        # transformers loads adapters too, but does not resize the embeddings for added tokens.
        library, family = (
            ("peft", "AutoPeftModelForCausalLM") if is_adapter else ("transformers", "AutoModelForCausalLM")
        )
        print(f"next: load it with {library}:")
        print(f"  {family}.from_pretrained({str(path / export)!r})")
    print("next: train longer, or on your own data:")
    limits = ("fresh=", "trainer.epochs=", "trainer.train_iters=", "trainer.min_iterations=", "trainer.exit_iteration=")
    overrides = [item for item in directory.record()["overrides"] if not item.startswith(limits)]
    longer = f"trainer.epochs={3 * max(1, round(result['progress']['epoch']))}"
    if any(item.startswith("trainer.train_iters=") for item in directory.record()["overrides"]):
        longer = f"trainer.train_iters={3 * result['step']}"  # a stream has no epochs
    print(f"  {shlex.join([*PROGRAM.split(), *overrides, longer])}")
    print(f"  {PROGRAM} data=json data.sources.json.path=<your.jsonl>")


def format_number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"
