"""Metrics and trackers are opened by the first rank only, and before training."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from arctic_hydra.assembly.run_tools import Outputs, finish_trackers, open_outputs
from arctic_hydra.distributed import World
from arctic_hydra.errors import StateFileError


def test_only_the_first_rank_opens_files_and_it_reads_the_old_ones_first(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("damaged\n")
    other, first = (SimpleNamespace(world=World(rank=rank, size=2)) for rank in (1, 0))
    assert open_outputs(None, tmp_path, other, None) == Outputs()
    with pytest.raises(StateFileError, match="metrics.jsonl:1: not a line of metrics"):
        open_outputs(None, tmp_path, first, None)


def test_a_tracker_that_fails_does_not_keep_the_others_from_finishing():
    class Broken:
        option_name = "broken"

        def finish(self, status):
            raise OSError("gone")

    finished = []
    trackers = [Broken(), SimpleNamespace(finish=finished.append)]
    finish_trackers(SimpleNamespace(tools=SimpleNamespace(trackers=trackers)), "finished")
    assert finished == ["finished"]
