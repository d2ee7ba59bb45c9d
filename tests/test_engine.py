"""Imports at the start of a run."""

from __future__ import annotations

import os
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


def test_the_import_of_deepspeed_starts_no_process_and_prints_nothing():
    """It would probe which of its operators can be compiled, by running the compiler."""
    code = (
        "import subprocess; from arctic_hydra import engine\n"
        "started, start = [], subprocess.Popen.__init__\n"
        "subprocess.Popen.__init__ = lambda self, *args, **more: (started.append(args), start(self, *args, **more))[1]\n"
        "ops = engine.import_deepspeed().ops\n"
        "print(started, ops.__compatible_ops__)"
    )
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert (done.stdout, done.stderr) == ("[] {'deepspeed_shm_comm': False}\n", "")


def test_prepared_data_is_written_and_opened_without_pandas():
    """pyarrow's conversions would import it: a quarter of a second for each rank and worker process."""
    code = (
        "import sys, numpy as np; from pathlib import Path; from tempfile import mkdtemp; "
        "from arctic_hydra.data.documents import Chunk; from arctic_hydra.data.cache.token_store import TokenStore, write_store; "
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
