"""Evaluation of equal rows: packs, against TRL's SFTTrainer.evaluate and against one padded row at a time.

`python -m tests.bench evaluate`; `nox -s peers` makes the environment of TRL. Each side is a process that holds the model and
the prepared rows; only passes over them are timed. TRL runs in its best setting on a CPU: batches of 8 padded rows of
like length, losses only.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench import models
from tests.bench.harness import Blocks, Comparison, Pauses, Sample, peer

ROWS = 300
SIDES = {
    "one padded row at a time": "data.packing=false trainer.micro_batch_size=1",
    "packs": "data.packing=true trainer.micro_batch_size=1",
}
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}
"""As the command starts its ranks."""


def comparisons(folder: Path, quick: bool) -> Iterator[Comparison]:
    """Yield the one comparison; without TRL, that with padded rows."""
    rows = models.write_rows(folder, 12 if quick else ROWS)
    if quick:
        from tests.ranks import run_ranks

        found = run_ranks(1, answers, folder, rows)[0]
        sides: dict[str, Callable[[], Sample]] = {name: partial(Sample, 1, 1, found[name]) for name in SIDES}
        yield Comparison(f"evaluation of {len(rows.read_text().splitlines())} chats", sides, _check)
        return
    model = models.write_model(folder)
    started = {}
    if python := peer("trl"):
        settings = models.write_settings(folder, model, rows, batch=8, grouped=True, evaluate=True)
        started["TRL"] = Blocks(["-m", "tests.bench.peers.trl_train", str(settings)], {}, python)
    for name in SIDES:
        started[name] = Blocks(["-m", __name__, name, str(model), str(rows)], PASSIVE)
    targets = {"packs": 1 / 1.5} if python else {}
    try:
        about = "5 M parameters, fp32; TRL: batches of 8 rows of like length, prediction_loss_only"
        yield Comparison(f"evaluation of {ROWS} chats", started, _check, targets, about)
    finally:
        for side in started.values():
            side.close()


def _check(answers: dict[str, Any]) -> None:
    base, *others = answers.values()
    assert base[0] > 0, answers
    for tokens, loss in others:
        assert tokens == base[0] and abs(loss - base[1]) < 1e-4 * base[1], answers


def evaluator(name: str, model: Path, rows: Path, run_dir: Path) -> Callable[[], list[float]]:
    """Build one of our sides; return its evaluation, which returns supervised tokens and loss."""
    from arctic_hydra import config, runner
    from arctic_hydra.distributed import World
    from arctic_hydra.stopping import StopRequest
    from tests import composing

    quiet = ["log.print_ranks=[]", "log.file_ranks=[]", "data.num_proc=1", f"data.cache_dir={run_dir / 'cache'}"]
    tree = composing.composed(*models.overrides(model, rows, evaluate=True), *quiet, *SIDES[name].split())
    run_dir.mkdir(exist_ok=True)
    (run_dir / "run.json").write_text(json.dumps({"config": tree}))
    run = config.build(tree)
    run.trainer.set_callbacks([], World.from_env())
    trainer, _, _ = runner.build(run, run_dir, StopRequest(run_dir / "STOP"))
    loader = trainer.tools.eval_loader
    assert loader is not None
    tokens = sum(window.num_supervised for window in loader.windows(0))

    def evaluate() -> list[float]:
        trainer._loop.evaluated_at = -1  # else the same step is evaluated once
        return [tokens, trainer.evaluate()["eval/loss"]]

    return evaluate


def answers(folder: Path, rows: Path) -> dict[str, Any]:
    """Return the answer of each of our sides, of a tiny model."""
    model = models.write_model(folder, hidden_size=32, intermediate_size=64, num_hidden_layers=1)
    return {name: evaluator(name, model, rows, folder / f"run{len(name)}")() for name in SIDES}


def main(name: str, model: str, rows: str) -> None:
    """Serve the passes of one side."""
    with tempfile.TemporaryDirectory() as folder:
        evaluate = evaluator(name, Path(model), Path(rows), Path(folder))
        pauses = Pauses()
        while True:
            pauses.end(evaluate())


if __name__ == "__main__":
    main(*sys.argv[1:])
