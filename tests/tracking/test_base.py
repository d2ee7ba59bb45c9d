"""The config group `tracking`: `tracking=none`, `tracking=[]` and the list form; and what every tracker inherits."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

import arctic_hydra.tracking  # noqa: F401
from arctic_hydra.tracking.none import NoTracker

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
