"""What a run's record says of its surroundings."""

from __future__ import annotations

import shutil
import subprocess
import sys

from arctic_hydra import __version__, provenance, run_directory
from arctic_hydra.launch import job


def test_an_interrupt_of_the_report_leaves_the_run_finished(tmp_path, monkeypatch, capsys):
    """It comes where the page is made, after the record was written."""
    directory = run_directory.RunDirectory(tmp_path)
    directory.update_record(status=run_directory.RUNNING, identity={})
    run_directory.write_json(directory.result_file, {"status": run_directory.FINISHED})

    def interrupted(directory):
        raise KeyboardInterrupt

    monkeypatch.setattr(job.run_page, "write", interrupted)
    (tmp_path / "run.json").write_text('{"config": {"log": {"report": true}}}')
    assert job.conclude(directory, 0).exit_code == 0
    assert directory.record()["status"] == run_directory.FINISHED
    assert "has no report; the same command with task=report writes it" in capsys.readouterr().err


def git(folder, *words):
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_program_and_the_working_directory_have_a_revision_each(tmp_path, monkeypatch, repository):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    git(theirs, "init", "-q")
    (theirs / "option.yaml").write_text("seed: 1\n")
    git(theirs, "add", ".")
    git(theirs, "commit", "-qm", "mine")
    (theirs / "option.yaml").write_text("seed: 2\n")
    monkeypatch.chdir(theirs)
    found = provenance.environment()
    around = found["working_directory"]
    assert around["git"]["revision"] == git(theirs, "rev-parse", "HEAD") and around["path"] == str(theirs)
    assert around["git"]["dirty"] and "+seed: 2" in around["git"]["diff"]
    assert found["version"] == __version__
    assert found["git"] == provenance.git_state(repository), "the program's own, wherever it is called from"

    # Installed below that checkout, as in its .venv: nothing of the program is in the revision around it.
    shutil.copytree(repository / "arctic_hydra", theirs / "venv" / "arctic_hydra")
    code = "import json; from arctic_hydra import provenance; print(json.dumps(provenance.environment()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=theirs / "venv", capture_output=True, text=True, check=True)
    assert '"git": null, "working_directory": {' in done.stdout
