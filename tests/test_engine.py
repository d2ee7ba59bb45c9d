"""DeepSpeed as this package starts it."""

from __future__ import annotations

import subprocess
import sys


def test_a_start_imports_neither_mlflow_nor_datasets_unless_they_are_used():
    """Each takes a second or half of one, of each rank: DeepSpeed's autotuner imports mlflow, our bars datasets."""
    code = (
        "import sys; from arctic_hydra import engine, log; engine.import_deepspeed(); log.quiet_progress_bars(); "
        "print(sorted({'mlflow', 'datasets'} & sys.modules.keys())); import datasets, mlflow; "
        "print(datasets.are_progress_bars_disabled(), mlflow.__version__ > '3')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["[]", "True True"]
