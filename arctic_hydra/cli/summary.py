"""The summary that a run prints at its end: the result, the files, and useful next commands."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill
from typing import Any

from arctic_hydra import run_directory
from arctic_hydra.checkpoint.hf import lacks_base
from arctic_hydra.component import CAUSAL_LM, SEQUENCE_CLASSIFIER
from arctic_hydra.human_numbers import quantity
from arctic_hydra.launch.extended_run import lets_code_run
from arctic_hydra.metrics import evaluation_figures, read_metrics, smoothed_ends
from arctic_hydra.model.names import SPEC_MODEL_TYPE
from arctic_hydra.report import run_page
from arctic_hydra.run_directory import PROGRAM, relative
from arctic_hydra.trainer.verification.verdict import verdict_lines


def print_result(directory: run_directory.RunDirectory, result: dict[str, Any]) -> None:
    """Print how the run ended, where its files are, and useful next commands."""
    path = relative(directory.path)
    if "scores" in result:
        _print_scores(result)
        return
    if result["status"] == run_directory.STOPPED:
        print(f"stopped at step {result['step']} of {result['horizon']}: {result['stop_reason']}")
        saved = directory.has_checkpoints()
        print(_next_start(directory, result) if saved else "nothing was saved, so the same command starts over")
        return
    if "export" in result:
        print(f"exported {relative(Path(result['checkpoint']))} to {relative(Path(result['export']))}")
        _print_verdicts(result, "exports again")
        return
    if "checkpoint" in result:
        _print_exact_match(result.get("exact_match"))
        print(f"evaluated {relative(Path(result['checkpoint']))}; all metrics: {path / 'result.json'}")
        return
    print(f"finished {quantity(result['step'], 'step')}; loss {_training_loss(directory.path, result)}")
    if result.get("stop_reason"):
        print(f"ended before step {result['horizon']}: {result['stop_reason']}")
    first, last = result["first_evaluation"], result["last_evaluation"]
    if first and last:
        ends = [first, last] if first["step"] != last["step"] else [last]
        losses = " -> ".join(format_number(evaluation["eval/loss"]) for evaluation in ends)
        figures = [figure for figure in evaluation_figures(last) if not figure.startswith("perplexity")]
        print(f"evaluation loss {', '.join([losses, *figures])}")
    export = final_export(directory.path)
    for label, name in (
        ("export", export),
        ("checkpoints", "checkpoints"),
        ("metrics", "metrics.jsonl"),
        ("report", run_page.PAGE),
    ):
        if name is not None and (directory.path / name).exists():
            print(f"{label:<12} {path / name}")
    resumes = directory.has_checkpoints()
    if _print_verdicts(result, "exports again" if resumes else "trains again, because there is no checkpoint"):
        return
    if export is not None and (loader := _loader(directory.path / export)):
        _print_uses(path, export, *loader)
    if result.get("stop_reason"):
        return  # a callback has ended this run, and would end a longer one as well
    overrides = directory.record()["overrides"]
    fine_tunes = not any(_OTHER_DATA.match(item.lstrip("+~")) for item in overrides)
    print(f"next: train longer{', or on your own data' * fine_tunes}:")
    print(f"  {shlex.join([*PROGRAM.split(), *_longer(directory, overrides, result)])}")
    if fine_tunes:
        same = [*PROGRAM.split(), *(item for item in overrides if not item.startswith("fresh="))]
        print(f"  {shlex.join(same)} data=json data.sources.json.path=<your.jsonl>")


_OTHER_DATA = re.compile(
    r"(--config-name|-cn|experiment|extend|trainer|data|data/(eval_)?sources|source@.*)(=|$)|data\.(eval_)?sources\."
)
"""Matches an override, without its prefix, of a run that is not on the bundled chats, or not fine-tuned on conversations."""


def final_export(folder: Path) -> str | None:
    """Return the name of the export of a finished run below a folder, whatever it is; None if there is none."""
    found = [path.parent.name for path in sorted(folder.glob("*/tokenizer_config.json"))]
    return next((name for name in found if "-step-" not in name), None)


def _print_uses(path: Path, export: str, library: str, function: str, more: str) -> None:
    print(f"next: load it with {library}:")
    print(f"  {function}({str(path / export)!r}{more})")
    if SEQUENCE_CLASSIFIER.removeprefix("Auto") not in function:
        print("next: talk to it:")
        print(f"  {PROGRAM} task=chat from_checkpoint={shlex.quote(str(path))}")


def _print_exact_match(match: dict[str, Any] | None) -> None:
    if match:
        correct, questions = match["correct"], match["questions"]
        share = f"{correct}/{questions} = {100 * correct / questions:.1f} %"
        print(f"exact match {share}; the answers: {relative(Path(match['answers']))}")
        if cut := match.get("cut"):
            print(
                f"{cut} of {quantity(questions, 'answer')} did not end, so their results may be missing: raise max_new_tokens"
            )


def _print_scores(result: dict[str, Any]) -> None:
    if result["status"] == run_directory.STOPPED:
        print(f"stopped while scores were computed: {result['stop_reason']}")
        print("the complete parts are stored, and the same command computes the others")
        return
    for folder in result["scores"]:
        print(f"scores       {relative(Path(folder))}")


def _longer(directory: run_directory.RunDirectory, overrides: list[str], result: dict[str, Any]) -> list[str]:
    """Return the arguments that train a finished run three times as long: by extending it if it has checkpoints."""
    longer = f"trainer.epochs={3 * max(1, round(result['progress']['epoch']))}"
    if (directory.config() or {}).get("trainer", {}).get("train_iters"):
        longer = f"trainer.train_iters={3 * result['step']}"  # which limits epochs, and a stream has none
    if directory.has_checkpoints():
        return [*(item for item in overrides if lets_code_run(item)), f"extend={relative(directory.path)}", longer]
    limits = (
        "fresh=",
        *(f"trainer.{name}" for name in ("epochs=", "train_iters=", "min_iterations=", "exit_iteration")),
    )
    return [*(item for item in overrides if not item.startswith(limits)), longer]


def _print_verdicts(result: dict[str, Any], same_command: str) -> bool:
    """Print what the verification of the exports found, and what the same command does; return whether an export differs."""
    for name, verdict in result.get("verification", {}).items():
        for line in verdict_lines(name, verdict):
            print(fill(line, get_terminal_size().columns, subsequent_indent="  ") if sys.stdout.isatty() else line)
    if error := result.get("error"):
        print(f"error: {error.partition(':')[0]}; the files stay, and the same command {same_command}", file=sys.stderr)
    return bool(error)


def _training_loss(path: Path, result: dict[str, Any]) -> str:
    """Return the loss at the start and at the end of training, as means of several log lines if there are enough."""
    ends = smoothed_ends(read_metrics(path / "metrics.jsonl"))
    first, last, lines = ends or (result["first_loss"], result["last_loss"], 1)
    over = f" (means of the first and the last {lines} log lines)" if lines > 1 else ""
    return f"{format_number(first)} -> {format_number(last)}{over}"


def _next_start(directory: run_directory.RunDirectory, result: dict[str, Any]) -> str:
    """Return how to resume a stopped run: a command whose `exit_iteration` is reached would stop again at once."""
    if "trainer.exit_iteration=" in result["stop_reason"]:
        return (
            "the same command stops at this step again: pass a larger trainer.exit_iteration, or none, to resume; "
            "trainer.exit_iteration_this_run counts from each start instead"
        )
    return f"{directory.same_command} resumes"


def _loader(export: Path) -> tuple[str, str, str] | None:
    """Return the library that loads an export, its function and further arguments; None for a model that no library knows."""
    path = export / "adapter_config.json"
    adapter = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if lacks_base(adapter):
        return None
    if adapter:  # transformers loads adapters too, but without rows for added tokens
        if adapter.get("task_type") == "SEQ_CLS":
            return "peft", "AutoPeftModelForSequenceClassification.from_pretrained", ", num_labels=1"
        return "peft", "AutoPeftModelForCausalLM.from_pretrained", ""
    config = json.loads((export / "config.json").read_text(encoding="utf-8"))
    kind, names = config.get("model_type"), config.get("architectures") or []
    if kind == SPEC_MODEL_TYPE:
        return "arctic_hydra.model.spec", "load_export", ""
    found = SEQUENCE_CLASSIFIER if any(name.endswith("ForSequenceClassification") for name in names) else CAUSAL_LM
    return ("transformers", f"{found}.from_pretrained", "") if kind else None


def format_number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"
