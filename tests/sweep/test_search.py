"""A search: values asked for and told, jobs pruned and failed, and the study continued."""

from __future__ import annotations

import html
import json
import re
import shlex

import optuna
import pytest

from tests.command import SMALLEST, run
from tests.sweep.test_local import POOL, QUICK, chats, sweep_dir, table

optuna.logging.set_verbosity(optuna.logging.WARNING)


def trials(folder):
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(sweep_dir(folder) / "study.log"))
    )
    [name] = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage).trials


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
    told = trials(tmp_path)
    assert [item.state for item in told[:4]] == [item.state for item in first]
    assert len(told) == 6 and len({json.dumps(item.params) for item in told}) == 6
    rows = table(tmp_path)
    words = {"finished": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
    assert [words[row["status"]] for row in rows] == [item.state.name for item in told]
    assert [float(row["optimizer.lr"]) for row in rows] == [item.params["optimizer.lr"] for item in told]
    for row, item in zip(rows, told, strict=True):
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
