"""Which failure is reported as the cause."""

from __future__ import annotations

import pytest

from arctic_hydra.launch import failures
from arctic_hydra.run_directory import RunDirectory, write_error


@pytest.mark.parametrize(
    ("message", "first"),
    [("shapes differ", "ValueError"), ("Timed out waiting 5000ms for recv operation to complete", "RankStalled")],
)
def test_a_rank_that_had_to_be_killed_is_the_cause_only_where_others_waited_for_it(message, first, tmp_path):
    directory = RunDirectory(tmp_path)
    write_error(tmp_path, 0, "ValueError", message, exit_code=1)
    failures.report_silent_failures(directory, {0: 1, 1: -9}, {1: "File x, line 1 in step"})
    assert directory.errors()[0]["kind"] == first
