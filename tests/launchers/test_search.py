"""Searches: the space, jobs that end in every way, and the study continued."""

from __future__ import annotations

import gc
import html
import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra_plugins.arctic_hydra._search import Search, distribution, repair_journal
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from arctic_hydra.__main__ import main
from arctic_hydra.cli import overrides
from arctic_hydra.cli.multirun import Multirun
from arctic_hydra.errors import ConfigError
from arctic_hydra.sweep.directory import Sweep
from tests.command import SMALL, SMALLEST, run
from tests.sweep.sweeps import FINISH, POOL, QUICK, chats, sweep_dir, sweep_of, table, trials


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("choice(cosine,constant)", CategoricalDistribution(["cosine", "constant"])),
        ("1e-4,2", CategoricalDistribution(["0.0001", "2"])),
        ("range(1,8,3)", IntDistribution(1, 7, step=3)),
        ("range(0.5,2.0,0.5)", FloatDistribution(0.5, 1.5, step=0.5)),
        ("interval(0.1,2)", FloatDistribution(0.1, 2.0)),
        ("tag(log,interval(1e-5,1e-2))", FloatDistribution(1e-5, 1e-2, log=True)),
        ("int(interval(1,9))", IntDistribution(1, 9)),
        ("tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
    ],
)
def test_sweep_syntax_is_a_distribution(text, expected):
    [item] = overrides.parse([f"optimizer.lr={text}"])
    assert distribution("optimizer.lr", item, as_text=False) == expected


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("n_trials=0", "n_trials: got 0, expected 1 or more"),
        ("n_trials=99999999999", "n_trials: got 99999999999, expected 1 or more, at most 1,000,000"),
        ("n_jobs=-2", "n_jobs: got -2, expected 1 or more"),
        ("seed=-1", "seed: got -1, expected 0 or more, below 2^64"),
        ("seed=99999999999999999999", "seed: got 99999999999999999999, expected 0 or more, below 2^64"),
        ("sampler=x", "sampler: got 'x', expected one of tpe, random, grid, cmaes"),
        ("pruner=x", "pruner: got 'x', expected one of none, median, percentile, hyperband, successive_halving"),
        ("pruner=hyperband pruner_kwargs={min_resource:-1}", "pruner_kwargs: got {'min_resource': -1} for hyperband"),
        (
            "pruner=median pruner_kwargs={n_startup_trials:[1]}",
            "pruner_kwargs: got {'n_startup_trials': [1]} for median",
        ),
    ],
)
def test_invalid_settings_are_one_line_before_anything_is_written(arguments, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = [f"hydra.sweeper.{item}" for item in arguments.split()]
    assert main(["-m", "hydra/sweeper=optuna", "seed=range(1,9)", "trainer.eval_frequency=1", *settings]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: hydra.sweeper.{text}")
    assert not list(tmp_path.iterdir())


def test_the_space_of_a_search_can_be_a_setting_of_the_command_line():
    multirun = Multirun(
        ["hydra/sweeper=optuna", overrides.normalize("hydra.sweeper.params={seed:'7,8'}")], "config", None
    )
    assert multirun.overrides == ["seed=7,8"]


def test_a_secret_is_not_searched():
    [item] = overrides.parse(["callback.mine.apiKey=choice(a,b)"])
    with pytest.raises(
        ConfigError, match=r"callback\.mine\.apiKey: names a secret, whose values the search would store"
    ):
        distribution("callback.mine.apiKey", item, as_text=True)


def test_a_journal_with_an_incomplete_line_is_repaired(tmp_path):
    journal = tmp_path / "study.log"
    repair_journal(journal)
    journal.write_text('{"a": 1}\n{"b"')
    (tmp_path / "study.log.lock").symlink_to(journal)
    repair_journal(journal)
    assert journal.read_text() == '{"a": 1}\n'
    assert not (tmp_path / "study.log.lock").is_symlink()


@pytest.mark.parametrize("text", [b"\x80\x04\n", b"{}\n[1]\n", b"{}\n{\n{}\n"])
def test_a_file_that_is_not_a_journal_is_one_error_and_stays_as_it_is(text, tmp_path):
    journal = tmp_path / "study.log"
    journal.write_bytes(text)
    with pytest.raises(ConfigError, match=r"study\.log:\d: not a line of a search; restore the file, or delete"):
        repair_journal(journal)
    assert journal.read_bytes() == text
    journal.unlink()
    journal.symlink_to("/etc/passwd")
    with pytest.raises(ConfigError, match="study.log: is a symbolic link, expected a file"):
        repair_journal(journal)


@pytest.mark.slow
def test_a_search_prunes_fails_and_goes_on(tmp_path):
    """Two batches; then more trials of the same search, which leave the first ones as they are."""
    chats(tmp_path / "good.jsonl", 30)
    (tmp_path / "bad.jsonl").write_text("{\n")
    search = (
        f"{POOL} hydra/sweeper=optuna hydra.sweeper.seed=2 hydra.sweeper.pruner=median hydra.sweeper.n_jobs=2 "
        "'hydra.sweeper.pruner_kwargs={n_startup_trials:1}' "
        f"'data.sources.json.path=choice(good.jsonl,bad.jsonl)' {SMALLEST} data=json data.train_eval_split=[0.8,0.2] tracking=[] "
        "trainer.eval_at_start=false trainer.train_iters=40 trainer.epochs=20 trainer.eval_frequency=1 checkpoint=[] "
        "'optimizer.lr=tag(log,interval(1e-7,1e-2))'"
    )
    run(f"{search} hydra.sweeper.n_trials=4", tmp_path, code=None)
    first = trials(tmp_path)
    assert len(first) == 4
    run(f"{search} hydra.sweeper.n_trials=6", tmp_path, code=None)
    reported = trials(tmp_path)
    assert [item.state for item in reported[:4]] == [item.state for item in first]
    assert len(reported) == 6 and len({json.dumps(item.params) for item in reported}) == 6
    rows = table(tmp_path)
    words = {"finished": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
    assert [words[row["status"]] for row in rows] == [item.state.name for item in reported]
    assert [float(row["optimizer.lr"]) for row in rows] == [item.params["optimizer.lr"] for item in reported]
    for row, item in zip(rows, reported, strict=True):
        assert ("bad" in item.params["data.sources.json.path"]) == (row["status"] == "failed")
        if row["status"] == "finished":
            assert float(row["objective"]) == item.value
        if row["status"] == "pruned":
            assert int(row["step"]) < 40
    assert {"finished", "failed", "pruned"} == {row["status"] for row in rows}


def test_a_grid_search_takes_every_combination_once_and_runs_twins_once(tmp_path):
    arguments = (
        "-m hydra/sweeper=optuna hydra.sweeper.sampler=grid seed=1,2 'log.interval=choice(1,2)' objective=eval/accuracy "
        f"hydra.sweeper.n_jobs=4 {QUICK} data.sources.chat.sample_count=20 trainer.train_iters=1 checkpoint=[]"
    )
    done = run(arguments, tmp_path)
    assert done.stdout.count(" starts: ") == 2  # log.interval is no part of what a run is
    assert [item.state.name for item in trials(tmp_path)] == ["COMPLETE"] * 4
    assert "eval/accuracy" in done.stdout and "(higher is better)" in done.stdout
    page = (sweep_dir(tmp_path) / "sweep.html").read_text()
    [shown] = re.findall(r"<pre class='command'>(python -m arctic_hydra -m .*)</pre>", page)
    assert sorted(shlex.split(html.unescape(shown))) == sorted(shlex.split(f"python -m arctic_hydra {arguments}"))
    again = run(arguments, tmp_path)
    assert " starts: " not in again.stdout and again.stdout.count("finished") == 4


RAISE = 'mkdir -p logs; echo \'{"time": 5.0, "rank": 0, "message": "no", "expected": true, "problems": ["no"], "exit_code": 1}\''
RAISE = f"{RAISE} > logs/error-rank0.json; exit 1"
SEARCH = f"-m hydra/sweeper=optuna hydra/launcher=local hydra.launcher.slots=2 {SMALL} tracking=[]".split()


def names(folder: Path) -> list[str]:
    return [trial.state.name for trial in trials(folder)]


def test_trials_that_were_stopped_or_killed_run_again_and_those_that_raised_do_not(shell_jobs, tmp_path, capsys):
    search = [*SEARCH, "hydra.sweeper.sampler=grid", "hydra.sweeper.n_jobs=4", "seed=1,2,3,4"]
    first = shell_jobs("kill -TERM $$", "kill -KILL $$", RAISE, FINISH)
    assert main(search) == 1
    assert names(tmp_path) == ["RUNNING", "RUNNING", "FAIL", "COMPLETE"]
    again = shell_jobs(FINISH)
    assert main(search) == 1  # the one that raised
    assert names(tmp_path) == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
    assert again == first[:2]
    assert " stopped" not in capsys.readouterr().out.rpartition("objective")[2]


@pytest.mark.parametrize("sweeper", ["basic", "optuna"])
def test_a_sweep_releases_its_directory_before_it_returns(sweeper, shell_jobs, tmp_path):
    """Not when the garbage collector comes: a caller in Python may start it again at once."""
    shell_jobs(FINISH)
    command = f"-m hydra/sweeper={sweeper} hydra/launcher=local {SMALL} tracking=[] seed=1,2".split()
    gc.disable()
    try:
        assert main(command) == 0
        assert Sweep.load(sweep_dir(tmp_path)).owner() is None
    finally:
        gc.enable()


def test_trials_that_are_the_same_run_are_pruned_together(shell_jobs, tmp_path):
    """`log.interval` is no part of what a run is; a later trial of a pruned run is pruned like it, and not run."""
    bad = 'echo \'{"step": 1, "eval/loss": 9.0}\' > metrics.jsonl; exec sleep 60'
    started = shell_jobs(FINISH.replace("; echo", "; sleep 0.5; echo"), bad)  # its evaluation is seen while it runs
    pruner = [
        "hydra.sweeper.pruner=median",
        "hydra.sweeper.pruner_kwargs={n_startup_trials:1}",
        "trainer.eval_frequency=1",
    ]
    space = ["seed=1,2", "log.interval=1,2,3", "hydra.sweeper.sampler=grid", "hydra.sweeper.n_jobs=2"]
    assert main([*SEARCH, *pruner, *space]) == 0
    assert names(tmp_path) == ["COMPLETE"] * 3 + ["PRUNED"] * 3
    assert started == ["seed=1", "seed=2"]


@pytest.mark.parametrize("sampler", ["random", "grid"])
def test_a_search_that_was_killed_while_it_chose_values_goes_on(sampler, tmp_path, monkeypatch):
    """Optuna stores a running trial first, and then its values one by one."""
    run = SimpleNamespace(trainer=SimpleNamespace(eval_frequency=1), objective="auto")
    controller = SimpleNamespace(
        sweep=sweep_of(tmp_path, kind="search"), composed=[SimpleNamespace(run=run)], begin=lambda: None
    )
    space = {"seed": "choice(1,2)", "log.interval": "choice(1,2)"}
    settings = dict(sampler=sampler, n_trials=4, n_jobs=2, seed=0, pruner="none", pruner_kwargs={}, params=None)

    def next_batch():
        search = Search(controller, None, [f"{key}={values}" for key, values in space.items()], **settings)
        search._study = search._open()
        return search._next_batch()

    suggest, calls = Trial._suggest, []

    def killed(trial, name, values):
        calls.append(name)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return suggest(trial, name, values)

    monkeypatch.setattr(Trial, "_suggest", killed)
    with pytest.raises(KeyboardInterrupt):
        next_batch()
    monkeypatch.undo()
    first, second = next_batch()
    assert (first.number, second.number) == (0, 1)
    assert first.params.keys() == second.params.keys() == space.keys()
    if sampler == "grid":
        assert (first.params, second.params) == (
            {"seed": "1", "log.interval": "1"},
            {"seed": "1", "log.interval": "2"},
        )


def test_a_file_edited_during_a_search_changes_nothing(shell_jobs, tmp_path):
    option = tmp_path / "mine" / "experiment" / "mine.yaml"
    option.parent.mkdir(parents=True)
    option.write_text("# @package _global_\ntrainer: {max_minutes: 30}\n")
    shell_jobs(f"echo 'there: {{}}' > {option}; {FINISH}")
    space = ["seed=range(1,1000)", "hydra.sweeper.n_jobs=1", "hydra.sweeper.n_trials=3"]
    assert main([*SEARCH, "--config-dir", "mine", "experiment=mine", *space]) == 0
    runs = [json.loads(path.read_text())["config"] for path in tmp_path.glob("outputs/default/*/run.json")]
    assert [run["trainer"]["max_minutes"] for run in runs] == [30] * 3
