"""`tracking=none`, `tracking=[]` and the list form compose to what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

import arctic_hydra.tracking  # noqa: F401
from arctic_hydra.component import create, to_plain

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


def test_mlflow_takes_its_uri_from_its_own_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    with initialize_config_dir(str(CONF / "tracking"), version_base="1.3"):
        cfg = compose("mlflow")
    assert to_plain(cfg)["tracking"]["mlflow"]["uri"] == "http://127.0.0.1:5000"


def test_no_tracker_does_nothing(tmp_path: Path) -> None:
    from arctic_hydra.tracking.none import NoTracker

    tracker = NoTracker()
    tracker.start(tmp_path, "r", {})
    tracker.log(1, {"loss": 1.0})
    tracker.finish("finished")
    assert list(tmp_path.iterdir()) == []


def test_the_option_builds(tmp_path: Path) -> None:
    with initialize_config_dir(str(CONF / "tracking"), version_base="1.3"):
        cfg = compose("mlflow", ["tracking.mlflow.experiment=mine"])
    assert create(cfg.tracking.mlflow).experiment == "mine"
