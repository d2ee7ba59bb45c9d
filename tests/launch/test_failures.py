"""Which failure is reported as the cause."""

from __future__ import annotations

import pytest

from arctic_hydra.launch import failures
from arctic_hydra.run_directory import RunDirectory, write_error


@pytest.mark.parametrize(
    ("kind", "message", "first"),
    [
        ("ValueError", "shapes differ", "ValueError"),
        ("RuntimeError", "Timed out waiting 5000ms for recv operation to complete", "RankStalled"),
        ("DistBackendError", "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3)", "RankStalled"),
        ("ReadTimeout", "HTTPSConnectionPool(host='hub'): Read timed out.", "ReadTimeout"),
        ("ConfigError", "trainer.collective_timeout_seconds: got 0", "ConfigError"),
    ],
)
def test_a_rank_that_had_to_be_killed_is_the_cause_only_where_others_waited_for_it(kind, message, first, tmp_path):
    directory = RunDirectory(tmp_path)
    write_error(tmp_path, 0, kind, message, exit_code=1)
    failures.report_silent_failures(directory, {0: 1, 1: -9}, {1: "File x, line 1 in step"})
    assert directory.errors()[0]["kind"] == first
