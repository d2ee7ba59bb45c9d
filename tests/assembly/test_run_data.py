"""What the data of a run determines."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

from arctic_hydra.assembly import run_data
from arctic_hydra.distributed import World


def test_the_first_rank_records_the_horizon(tmp_path: Path) -> None:
    run = SimpleNamespace(trainer=SimpleNamespace(training_horizon=7))
    for world in (World(rank=1, size=2), World(rank=0, size=2)):
        assert not (tmp_path / "record.json").exists()
        run_data.record_horizon(run, tmp_path, SimpleNamespace(world=world))  # type: ignore[arg-type]
    assert json.loads((tmp_path / "record.json").read_text()) == {"format": 1, "horizon": 7}
