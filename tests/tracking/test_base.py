"""The config group `tracking`: `tracking=none`, `tracking=[]` and the list form; and what every tracker inherits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

import arctic_hydra.tracking  # noqa: F401
from arctic_hydra.cli.composition.schemas import store_schemas
from arctic_hydra.tracking.base import Tracker, call_each
from arctic_hydra.tracking.none import NoTracker

store_schemas()  # as arctic_hydra composes
CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        ([], ["mlflow"]),
        (["tracking=none"], ["none"]),
        (["tracking=mlflow"], ["mlflow"]),
        (["tracking=[]"], []),
        (["tracking=[none,mlflow]"], ["none", "mlflow"]),
    ],
)
def test_the_choice_of_trackers(overrides: list[str], keys: list[str], tmp_path: Path) -> None:
    defaults = f"hydra:\n  searchpath: ['file://{CONF}']\ndefaults:\n  - tracking: [mlflow]\n  - _self_\n"
    (tmp_path / "root.yaml").write_text(defaults)
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        cfg = compose("root", overrides)
    assert list(cfg.get("tracking") or {}) == keys


def test_a_tracker_without_a_store_has_nothing_to_catch_up(tmp_path: Path) -> None:
    NoTracker().catch_up(tmp_path, "r", {}, "finished")
    assert list(tmp_path.iterdir()) == []


class Careless(Tracker):
    """Expects a loss on every line, and evaluations have none."""

    def start(self, run_dir: Path, name: str, config: dict[str, Any]) -> None:
        self.losses: list[float] = []

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.losses.append(metrics["loss"])

    def finish(self, status: str) -> None:
        self.status = status


def test_the_failure_of_a_tracker_is_a_warning_and_ends_neither_the_run_nor_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    careless, others = Careless(), [NoTracker(), Careless()]
    assert call_each([careless, *others], "start", tmp_path, "r", {}) == [careless, *others]
    careless.log(1, {"loss": 2.0})
    assert call_each([careless, *others], "log", 1, {"eval/loss": 2.0}) == [others[0]]
    [warning, _] = caplog.messages
    assert warning.startswith("tracking.Careless failed in log and is left out from now on: KeyError: 'loss' (")
    assert "test_base.py:" in warning
