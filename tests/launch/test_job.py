"""How a job concludes."""

from __future__ import annotations

from arctic_hydra import run_directory
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
