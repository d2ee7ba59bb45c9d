"""Imports at the start of a run."""

from __future__ import annotations

import subprocess
import sys


def test_a_start_imports_neither_mlflow_nor_datasets_unless_they_are_used():
    """DeepSpeed's autotuner would import mlflow, and disabling progress bars datasets: up to a second for each rank."""
    code = (
        "import sys; from arctic_hydra import engine, log; engine.import_deepspeed(); log.quiet_progress_bars(); "
        "print(sorted({'mlflow', 'datasets'} & sys.modules.keys())); import datasets, mlflow; "
        "print(datasets.are_progress_bars_disabled(), mlflow.__version__ > '3')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["[]", "True True"]


def test_prepared_data_is_written_and_opened_without_pandas():
    """pyarrow's conversions would import it: a quarter of a second for each rank and worker process."""
    code = (
        "import sys, numpy as np; from pathlib import Path; from tempfile import mkdtemp; "
        "from arctic_hydra.data.cache.token_store import Chunk, TokenStore, write_store; "
        "from arctic_hydra.data.encode.bpe_cache import WordTokenizer; "
        "from arctic_hydra.tokenizer.bundled import BundledTokenizerFactory; "
        "words = WordTokenizer.of(BundledTokenizerFactory().create_tokenizer().backend_tokenizer); "
        "[(ids, _)] = words.encode(['two words'], [[]]); folder = Path(mkdtemp()); "
        "chunk = Chunk(ids, np.ones(len(ids), np.uint8), np.array([len(ids)]), np.array([0])); "
        "write_store(folder, [chunk], dict); "
        "print(TokenStore(folder, 'key').ids(0).tolist() == ids.tolist(), 'pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True False"
