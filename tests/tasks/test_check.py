# ruff: noqa: E501 (tables of arguments and messages)
"""`task=check`: what the run would need, and what would end it."""

from __future__ import annotations

import io
import json
import sys

import pytest

from arctic_hydra.checkpoint import initial_weights
from arctic_hydra.errors import EXIT_FAILED, CheckpointError, ConfigError, ModelError
from arctic_hydra.tasks import check
from tests.command import SMALL, run
from tests.composing import built, composed


def test_task_check_and_the_header_print_it(tmp_path):
    checked = run(f"{SMALL} task=check", tmp_path).stdout.splitlines()
    assert checked[1].startswith("memory   peak 0.0")
    assert checked[1].endswith("GiB of tensors per rank (predicted), in the backward pass")
    assert "optimizer 0.00" in checked[2] and "assumes that every token is supervised" in checked[-1]
    trained = run(f"{SMALL} trainer.train_iters=1 tracking=[] checkpoint=[] trainer.eval_at_end=false", tmp_path).stdout
    assert any(line.startswith("memory   peak 0.0") for line in trained.splitlines())


def test_an_estimate_that_failed_assumes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("arctic_hydra.report.memory_lines.predict", lambda *_: 1 / 0)
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(composed())))
    monkeypatch.setattr(sys, "argv", ["check"])
    check._main()
    assert json.loads(capsys.readouterr().out)["lines"] == ["memory   not estimated: division by zero"]


def test_task_check_ends_as_the_run_would(tmp_path):
    done = run("task=check model=hf model.name_or_path=nobody/nothing", tmp_path, code=EXIT_FAILED)
    tokenizer, model = done.stderr.splitlines()
    assert tokenizer.startswith(
        "error: tokenizer.name_or_path: 'nobody/nothing' is not a local path and cannot be loaded"
    )
    assert model.startswith("error: model.name_or_path: 'nobody/nothing' cannot be loaded")
    assert not done.stdout


IMPOSSIBLE = [
    ("ranks=2 trainer.sequence_parallel_size=2 model.num_attention_heads=1 model.num_key_value_heads=1", ConfigError, "got 2, but the model has 1 attention heads"),
    ("peft=lora peft.target_modules=[qq_proj]", ConfigError, "peft.target_modules: 'qq_proj' matches no module; did you mean 'q_proj'"),
    ("model.vocab_size=100", ModelError, "model: has 100 embedding rows, but the tokenizer has 4096 tokens"),
    ("tokenizer.add_tokens=[the]", ConfigError, "tokenizer.add_tokens: 'the' is already in the vocabulary"),
    ("optimizer.no_decay=[embedd]", ConfigError, "optimizer.no_decay: 'embedd' matches no parameter; did you mean"),
    ("deepspeed=zero3 model.tie_word_embeddings=false peft=lora peft.modules_to_save=[lm_head] tokenizer.add_tokens=[uno]", ConfigError, "at ZeRO-3 peft cannot train single rows"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "kind", "text"), IMPOSSIBLE, ids=[item[0] for item in IMPOSSIBLE])
def test_what_would_end_the_run_is_no_failed_estimate(arguments, kind, text):
    lines, [error] = check.find(built(*arguments.split()))
    assert not lines
    assert type(error) is kind
    assert text in str(error)


def test_weights_that_init_from_cannot_take_are_found_without_reading_them(tmp_path):
    for name, file, text in (
        ("pickled", "pytorch_model.bin", "init_from: .*/pickled holds pytorch_model.bin, but pickled weights"),
        (
            "damaged",
            "model.safetensors",
            ".*/damaged/model.safetensors cannot be read: .*; copy it again, or pass init_f",
        ),
        ("empty", "config.json", "init_from: .*/empty holds no weights; expected"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_bytes(b"x" * 100)
        with pytest.raises(CheckpointError, match=text):
            initial_weights.check_readable(tmp_path / name)
    _, [error] = check.find(built(f"init_from={tmp_path}/damaged"))
    assert "damaged/model.safetensors cannot be read" in str(error)


def test_a_check_that_was_killed_has_not_passed(monkeypatch):
    monkeypatch.setattr(check, "python_flags", lambda: ["-c", "import os; os.kill(os.getpid(), 9)"])
    lines, [error] = check.check_in_subprocess({})
    assert not lines and type(error) is ModelError
    assert (
        "tokenizer and model were not checked: the process that does so was killed by signal 9, most likely for memory"
        in str(error)
    )


def test_an_error_of_the_users_code_would_end_the_run_too(monkeypatch):
    def create_config(factory):
        raise KeyError("sizes")

    run = built()
    monkeypatch.setattr(run.trainer, "create_config", create_config)
    lines, [error] = check.find(run)
    assert not lines
    assert str(error).startswith("test_check.py:") and ", in create_config: KeyError: 'sizes'; a run would" in str(
        error
    )
