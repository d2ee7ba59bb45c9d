"""Runs that extend another one: `extend=<run>`."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from arctic_hydra.errors import ConfigError
from arctic_hydra.launch.extended_run import with_overrides_of_extended_run
from arctic_hydra.run_directory import RunDirectory
from tests.command import SMALLEST, losses, metrics, only_run, run

COMMAND = (
    f"{SMALLEST} tracking=[] data.sources.chat.sample_count=40 data/eval_sources=[] trainer.gradient_accumulation_steps=4 "
    "optimizer.lr=2e-3 scheduler=constant scheduler.warmup_steps=2"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder with a finished run of one epoch, and the run's directory."""
    folder = tmp_path_factory.mktemp("finished")
    done = run(f"{COMMAND} name=first", folder)
    run_dir = only_run(folder, "first")
    assert f"extend=outputs/first/{run_dir.name} trainer.epochs=3" in done.stdout
    return folder, run_dir


def weights(run_dir: Path) -> bytes:
    return (run_dir / "export" / "model.safetensors").read_bytes()


def test_a_stretched_run_is_bit_identical_to_one_of_that_length(finished: tuple[Path, Path]) -> None:
    folder, first = finished
    done = run(f"extend={first} trainer.epochs=2 extend_schedule=stretch name=longer", folder)
    assert f"extends  {first}/checkpoints/step-" in done.stdout
    assert "weights  random, until those of the checkpoint are loaded" in done.stdout
    run(f"{COMMAND} trainer.epochs=2 name=direct", folder)
    longer, direct = only_run(folder, "longer"), only_run(folder, "direct")
    assert losses(longer) == losses(direct)
    assert weights(longer) == weights(direct)
    assert weights(longer) != weights(first)


def test_a_rewarmed_run_stops_and_resumes_bit_for_bit(finished: tuple[Path, Path]) -> None:
    folder, first = finished
    command = f"extend=outputs/first/{first.name} trainer.epochs=2 optimizer.lr=1e-3"
    run(f"{command} name=whole", folder)
    run(f"{command} name=parts trainer.exit_iteration_this_run=3", folder, code=75)
    run(f"{command} name=parts", folder)
    whole, parts = only_run(folder, "whole"), only_run(folder, "parts")
    assert weights(whole) == weights(parts)
    rows = [row for row in metrics(parts) if "loss" in row]
    steps = len(losses(first))
    assert [row["step"] for row in rows] == list(range(1, 2 * steps + 1))
    assert [row["lr"] for row in rows[steps : steps + 3]] == [5e-4, 1e-3, 1e-3]
    assert "finished already" in run(f"{command} name=parts", folder).stdout


def test_its_header_knows_its_own_checkpoints_from_those_of_the_run_that_it_extends(tmp_path: Path) -> None:
    elsewhere = f"{COMMAND} trainer.gradient_accumulation_steps=9 checkpoint.deepspeed.output_dir=large"
    first = run(f"{elsewhere} name=first", tmp_path)
    place = f"outputs/first/{only_run(tmp_path, 'first').name}"
    assert f"extend={place} trainer.epochs=3" in first.stdout
    longer = f"extend={place} trainer.epochs=2 name=longer"
    stopped = run(f"{longer} trainer.exit_iteration_this_run=1", tmp_path, code=75)
    assert f"extends  {tmp_path}/{place.replace('outputs', 'large')}/checkpoints/step-" in stopped.stdout
    assert "the same command resumes" in stopped.stdout
    resumed = run(longer, tmp_path).stdout
    assert "resumed  from step-" in resumed and "extends" not in resumed


def test_it_may_run_on_other_ranks(finished: tuple[Path, Path]) -> None:
    folder, first = finished
    run(f"extend={first} trainer.epochs=2 name=ranks ranks=2 trainer.gradient_accumulation_steps=2", folder)
    assert losses(only_run(folder, "ranks"))[: len(losses(first))] == losses(first)


def test_what_cannot_be_extended_is_refused_in_a_sentence(finished: tuple[Path, Path]) -> None:
    folder, first = finished
    for arguments, sentence in (
        (
            f"extend={first}",
            "is finished with trainer.epochs=1, and this run is not longer; raise one of them, such as",
        ),
        (
            f"extend={first} trainer.train_iters=2",
            "extend: .* has 9 steps, and trainer.train_iters=2 adds none; raise it",
        ),
        (f"extend={first} trainer.epochs=2 seed=7", "differs in seed: 42 there, 7 here; only length, schedule"),
        (
            f"extend={first} trainer.epochs=2 checkpoint=[]",
            "extend: needs an engine that loads the checkpoint of that run",
        ),
        ("extend=elsewhere", "extend: got 'elsewhere', which holds no record.json; expected the directory of a run"),
        ("extend_schedule=constant", "extend_schedule: has no effect without extend=<directory of a run>"),
    ):
        done = run(arguments, folder, code=2)
        assert len(done.stderr.splitlines()) <= 2, done.stderr
        assert re.search(sentence, done.stderr), done.stderr
    other = folder / "empty" / first.name
    shutil.copytree(first, other)
    shutil.rmtree(other / "checkpoints")
    done = run(f"extend={other} trainer.epochs=2 name=first", folder, code=1)
    assert "contains no checkpoint; extend a run with checkpoint=deepspeed, or pass init_from=" in done.stderr
    lock = RunDirectory(first)
    lock.lock()
    try:
        assert "is in use by process" in run(f"extend={first} trainer.epochs=2", folder, code=2).stderr
    finally:
        lock.release()


def extended(tmp_path: Path, stored: list[str], *arguments: str) -> list[str]:
    (tmp_path / "record.json").write_text(json.dumps({"format": 1, "status": "finished", "overrides": stored}))
    return with_overrides_of_extended_run([f"extend={tmp_path}", *arguments])


def test_the_overrides_of_the_run_come_first_and_those_of_the_command_win(tmp_path: Path) -> None:
    stored = [
        "--config-name",
        "mine",
        "--config-dir",
        "conf",
        "model=liger",
        "scheduler=wsd",
        "scheduler.decay_ratio=.3",
    ]
    stored += [
        "data.eval_sources.json.path=x",
        "fresh=true",
        "trainer.exit_iteration=3",
        "hydra/launcher=basic",
        "trainer.epochs=1",
        "+data.sources.x.path=a",
    ]
    assert extended(
        tmp_path, stored, "scheduler=cosine", "data/eval_sources=[]", "trainer.epochs=2", "--config-dir"
    ) == [
        "--config-name",
        "mine",
        "model=liger",
        "+data.sources.x.path=a",
        f"extend={tmp_path}",
        "scheduler=cosine",
        "data/eval_sources=[]",
        "trainer.epochs=2",
        "--config-dir",
    ]


def test_what_lets_code_run_and_secrets_have_to_be_repeated(tmp_path: Path) -> None:
    stored = ["code=mine.py", "model.trust_remote_code=true", "tracking.wandb.key=***", "seed=3"]
    with pytest.raises(
        ConfigError, match=r"had code=mine.py and model.trust_remote_code=true and tracking.wandb.key=\.\.\., which"
    ):
        extended(tmp_path, stored)
    repeated = ["code=other.py", "model.trust_remote_code=true", "tracking.wandb.key=x"]
    assert extended(tmp_path, stored, *repeated) == ["seed=3", f"extend={tmp_path}", *repeated]


@pytest.mark.parametrize(
    "stored",
    [
        ["--config-name", "code=evil.py"],
        ["--config-dir", "conf", "--config-name", "code=evil.py"],
        ["--config-name=code=evil.py"],
        ["-cncode=evil.py"],
        ["--config-n", "code=evil.py"],
        ["--multirun"],
    ],
)
def test_no_flag_of_a_record_lets_code_run(stored: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the command of .* had -.*, which is not taken from a file; repeat it"):
        extended(tmp_path, stored)


def test_one_run_is_extended_at_a_time() -> None:
    with pytest.raises(ConfigError, match="extend: got .*a,b.*, expected the directory of one run"):
        with_overrides_of_extended_run(["extend=a,b", "-m"])
