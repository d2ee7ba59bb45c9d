"""`task=check`: checks whether the run can start, and estimates the memory that each rank needs.

A child process, which may import torch, checks tokenizer and model: `python -m arctic_hydra.tasks.check` with the config
as JSON on its standard input. It writes no files and loads no weights.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arctic_hydra import config, log, python_flags
from arctic_hydra.checkpoint import initial_weights
from arctic_hydra.config import Run
from arctic_hydra.errors import EXIT_BAD_CONFIG, ArcticHydraError, ConfigError, ModelError
from arctic_hydra.files import code_file
from arctic_hydra.files.extensions import load_extensions

Findings = tuple[list[str], list[ArcticHydraError]]
"""The lines of the memory estimate, and errors that would stop the run before its first step; one of them is empty."""
_ASSUMES = "         (assumes that every token is supervised; the run repeats the estimate with the actual share)"


def check_in_subprocess(tree: dict[str, Any]) -> Findings:
    """Check a resolved config in a child process and return its findings."""
    command = [
        sys.executable,
        *python_flags(),
        "-W",
        "ignore",
        "-m",
        "arctic_hydra.tasks.check",
        *code_file.arguments(),
    ]
    done = subprocess.run(command, input=json.dumps(tree), capture_output=True, text=True, check=False)
    if done.returncode < 0:
        memory = ", most likely for memory" if done.returncode == -signal.SIGKILL else ""
        how = f"was killed by signal {-done.returncode}{memory}"
        return [], [ModelError(f"task=check: tokenizer and model were not checked: the process that does so {how}")]
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["the estimator process exited without an error message"])[-1]
        return [f"memory   not estimated: {reason}"], []
    answer = json.loads(done.stdout.splitlines()[-1])  # libraries may have printed before
    return answer["lines"], [_error(*found) for found in answer["errors"]]


def _error(exit_code: int, texts: list[str]) -> ArcticHydraError:
    return ConfigError(texts) if exit_code == EXIT_BAD_CONFIG else ModelError(texts[0])


def find(run: Run) -> Findings:
    """Return the findings for a run; errors of this package would also stop the run, others only prevent the estimate."""
    from arctic_hydra.assembly import run_model
    from arctic_hydra.report.memory_lines import failure_line, predict

    found: list[ArcticHydraError] = []
    tokenizer = model_config = None
    with _noted(found):
        tokenizer = run.trainer.create_tokenizer(run.tokenizer)
    with _noted(found):
        model_config = run.trainer.create_config(run.model)
        run_model.check_length(run, model_config)
        if tokenizer is not None:
            run_model.check_vocabulary(run, model_config, tokenizer)
    with _noted(found):
        run.model.check_model()
    with _noted(found):
        if run.init_from:
            initial_weights.check_readable(Path(run.init_from))
    if found:
        return [], found
    try:
        return [*predict(run, 1.0, tokenizer).lines, _ASSUMES], []
    except ArcticHydraError as error:
        return [], [error]
    except Exception as error:
        return [failure_line(error)], []


@contextmanager
def _noted(found: list[ArcticHydraError]) -> Iterator[None]:
    """Append an error within this context to `found`; one of another class, with its place, is of user code or of a library."""
    try:
        yield
    except ArcticHydraError as error:
        found.append(error)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}, in {frame.name}"
        found.append(
            ModelError(f"{where}: {type(error).__name__}: {error}; a run would end with this error before training")
        )


def _main() -> None:
    log.quiet_libraries()
    log.quiet_progress_bars()
    load_extensions()
    code_file.take(sys.argv[1:])
    lines, errors = find(config.build(json.load(sys.stdin)))
    answer = {
        "lines": lines,
        "errors": [[error.exit_code, error.problems] for error in errors],
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    _main()
