"""The agent of one machine."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from types import SimpleNamespace

import pytest

from arctic_hydra.launch import __main__ as agent
from arctic_hydra.run_directory import RunDirectory
from tests.command import SMALLEST, run, start
from tests.launch.delayed_start import delay, wait_for_starts
from tests.launch.machines import ARGUMENTS, HOSTS


def test_an_agent_of_a_hostfile_shares_the_cores_and_records_that_it_raised(tmp_path, monkeypatch):
    """It starts in the environment of a remote shell; the other machines wait for the file."""
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "OPENBLAS_NUM_THREADS")
    seen = {}

    def fail(options, directory):
        seen.update(os.environ)
        raise RuntimeError("planted")

    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8))
    monkeypatch.setattr(agent, "SignalRelay", lambda *arguments: SimpleNamespace(read_commands=lambda commands: None))
    monkeypatch.setattr(agent, "_run_agent", fail)
    monkeypatch.setattr(sys, "argv", ["launch", f"{tmp_path}/run.json", "2", "--node-rank", "1", "--remote"])
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"OMP_NUM_THREADS": "3"}\n'))
    with pytest.raises(RuntimeError, match="planted"):
        agent.main()
    assert [seen[name] for name in names] == ["3", "PASSIVE", "1"]
    assert RunDirectory(tmp_path).node_file(1).read_text() == "1\n"


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize(
    ("how", "text"),
    [("raise", "rank 1 failed first"), pytest.param("kill", "rank 1 was killed by SIGKILL", marks=pytest.mark.long)],
)
def test_the_first_failing_rank_of_another_machine_is_shown(how, text, my_lab, shell, tmp_path):
    (tmp_path / "hosts").write_text(HOSTS)
    sabotage = f"callback=[saboteur] callback.saboteur.how={how} trainer.collective_timeout_seconds=20"
    variables = {"ARCTIC_HYDRA_SSH": str(shell), "PYTHONPATH": str(my_lab)}
    done = run(f"{ARGUMENTS} {sabotage} hostfile=hosts", tmp_path, code=1, **variables)
    assert text in done.stderr
    assert ("ZeroDivisionError: sabotage" in done.stderr) == (how == "raise")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "more", "reasons"),
    [
        ("arctic_hydra.launch", "ranks=2", [None]),
        (
            "arctic_hydra.worker",
            "-m hydra/launcher=local hydra.launcher.slots=2 seed=1,2",
            ["received SIGINT", "received SIGINT"],
        ),
    ],
    ids=["agent", "sweep"],
)
def test_an_interrupt_while_interpreters_start_stops_the_runs(module, more, reasons, tmp_path):
    """An agent that has no ranks yet ends at once; a rank stops at its first step."""
    (site := tmp_path / "site").mkdir()
    arguments = f"{SMALLEST} trainer.train_iters=5000 trainer.eval_at_start=false tracking=[] checkpoint=[] {more}"
    process = start(arguments, tmp_path, PYTHONPATH=delay(site, module))
    wait_for_starts(site, len(reasons), process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 75, output
    found = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/default/*/record.json")]
    assert [item["status"] for item in found] == ["stopped"] * len(reasons)
    assert [item.get("result", {}).get("stop_reason") for item in found] == reasons
