"""The end of a sweep."""

from __future__ import annotations

from arctic_hydra.sweep import finish
from tests.sweep.sweeps import sweep_of


def test_a_page_that_cannot_be_written_does_not_prevent_table_and_csv(tmp_path, capsys):
    sweep = sweep_of(tmp_path, ["seed=1"], ["seed=2"])
    (tmp_path / "sweep.html").mkdir()
    assert [row.state for row in finish.summarize(sweep, [])] == ["waiting", "waiting"]
    output = capsys.readouterr()
    assert "waiting" in output.out and "results: " in output.out and (tmp_path / "sweep.csv").is_file()
    assert "warning: arctic_hydra.sweep.page could not write its file" in output.err and "Traceback" not in output.err


def test_jobs_whose_run_file_cannot_be_built_are_left_out_of_the_trackers(tmp_path):
    sweep = sweep_of(tmp_path, ["seed=1"], ["seed=2"])
    for job, content in zip(sweep.jobs, ("{", '{"config": {"trainer": {"_target_": "no.such"}}}'), strict=True):
        job.directory.path.mkdir()
        job.directory.run_file.write_text(content)
    assert finish.jobs_of(sweep) == []
