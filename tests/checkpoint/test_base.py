"""When the engines save, the space they need, and the options of the config group as Hydra composes them."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

import arctic_hydra.checkpoint
from arctic_hydra.checkpoint.base import TriggeredCheckpoint, check_identity, check_space
from arctic_hydra.checkpoint.hf import HuggingFaceCheckpoint
from arctic_hydra.checkpoint.store import Checkpoint
from arctic_hydra.cli.composition.schemas import store_schemas
from arctic_hydra.errors import CheckpointError, ConfigError
from arctic_hydra.instantiate import create
from arctic_hydra.progress import Progress

store_schemas()  # as arctic_hydra composes
CONF = Path(arctic_hydra.checkpoint.__file__).parents[2] / "conf" / "checkpoint"


@pytest.fixture
def compose(tmp_path: Path) -> Callable[..., Any]:
    """Return `compose(*overrides)` -> the checkpoint engines by name."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    (tmp_path / "checkpoint").symlink_to(CONF)
    (tmp_path / "root.yaml").write_text("defaults: [{checkpoint: [deepspeed, hf]}, _self_]\n")

    def call(*overrides: str) -> Any:
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            cfg = hydra_compose("root", list(overrides))
        tree: Any = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
        return {name: create(engine, f"checkpoint.{name}") for name, engine in tree.get("checkpoint", {}).items()}

    return call


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], ["deepspeed", "hf"]),
        (["checkpoint=[hf,deepspeed]"], ["hf", "deepspeed"]),
        (["checkpoint=hf"], ["hf"]),
        (["checkpoint=[]"], []),
    ],
)
def test_several_engines_in_the_order_given(compose, overrides, expected) -> None:
    assert list(compose(*overrides)) == expected


def test_defaults(compose) -> None:
    engines = compose()
    assert (engines["deepspeed"].auto_resume, engines["deepspeed"].can_resume) == (True, True)
    assert (engines["hf"].auto_resume, engines["hf"].can_resume) == (False, False)
    assert (engines["deepspeed"].keep_last, engines["hf"].save_end_of_training) == (2, True)


def test_human_numbers(compose) -> None:
    engine = compose("checkpoint.deepspeed.save_every_n_steps=1K", "checkpoint.deepspeed.keep_last=null")["deepspeed"]
    assert (engine.save_every_n_steps, engine.keep_last) == (1000, None)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("checkpoint.deepspeed.keep_last=0", r"checkpoint.deepspeed.keep_last: got 0, expected 1 or more"),
        ("checkpoint.hf.save_name=a/b", r"checkpoint.hf.save_name: got 'a/b', expected a plain directory name"),
        ("checkpoint.hf.max_shard_size=big", r"checkpoint.hf.max_shard_size: got 'big', expected a size such as"),
    ],
)
def test_refused_values_name_the_key(compose, override, expected) -> None:
    with pytest.raises(ConfigError, match=expected):
        compose(override)


def test_importing_the_options_loads_no_torch() -> None:
    code = (
        "import sys, arctic_hydra.checkpoint; sys.exit(bool({'torch', 'deepspeed', 'transformers'} & set(sys.modules)))"
    )
    root = CONF.parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_triggers_save_each_step_once(in_ranks, lab, tmp_path) -> None:
    def run(rank: int) -> list[Any]:
        state = lab.start(tmp_path, rank, zero=0)
        checkpoint = lab.checkpoint(state, save_every_n_steps="2", keep_last=None)
        asked = [checkpoint.do_checkpoint]
        for _ in range(3):
            lab.train(state, 1)
            asked.append(checkpoint.do_checkpoint)
            if asked[-1]:
                checkpoint.save()
                asked.append(checkpoint.do_checkpoint)
        state.stopping = True
        asked.append(checkpoint.do_checkpoint)
        checkpoint.enabled = False
        asked.append(checkpoint.do_checkpoint)
        again = lab.checkpoint(state, save_every_n_steps=2)
        again.load()
        asked.append(again.do_checkpoint)
        return asked

    assert in_ranks(1, run) == [[False, False, True, False, False, True, False, False]]


def test_epochs_trigger_after_every_nth() -> None:
    """ArcticTraining saves after the first, third, ... epoch for n = 2, and once more where an epoch is left early."""
    checkpoint = HuggingFaceCheckpoint(save_every_n_epochs="2", save_end_of_training=False)
    saved = []
    progress = Progress()
    state = SimpleNamespace(progress=progress, epoch_finished=False, training_finished=False, stopping=False)
    state.run_dir = Path("run")
    TriggeredCheckpoint.bind(checkpoint, state)  # type: ignore[arg-type]
    for epoch, step in itertools.product(range(5), range(3)):
        progress.global_step += 1
        state.epoch_finished = step == 2
        progress.epoch, progress.epoch_step = (epoch + 1, 0) if step == 2 else (epoch, step + 1)
        if checkpoint.do_checkpoint:
            saved.append(progress.global_step)
            checkpoint.mark_saved()
            assert not checkpoint.do_checkpoint
    assert saved == [6, 12], "after the second and the fourth epoch of 3 steps"


@pytest.mark.parametrize("output_dir", [None, "disk"])
def test_runs_that_share_an_output_dir_write_to_separate_directories(output_dir) -> None:
    run_dir = Path("outputs/default/0123abcd")
    expected = Path("disk/default/0123abcd") if output_dir else run_dir
    assert HuggingFaceCheckpoint(output_dir=output_dir).directory_of(run_dir) == expected


def test_the_space_of_all_engines_on_a_disk_is_checked_together(tmp_path, monkeypatch) -> None:
    class Engine:
        enabled = True
        root = tmp_path / "not" / "there" / "yet"

        def needed_bytes(self, parameters: int, trainable: int, bytes_per_parameter: int) -> int:
            return parameters * bytes_per_parameter

    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(3 * 2**30))
    check_space([Engine()], 2**30, 0, 2)  # type: ignore[list-item]
    expected = rf"checkpoint: 3 GiB are free at {tmp_path}, but about 4 GiB are needed for 1.07B parameters"
    with pytest.raises(CheckpointError, match=expected):
        check_space([Engine(), Engine()], 2**30, 0, 2)  # type: ignore[list-item]


OWN = {"config_hash": "abc", "data_fingerprint": "d", "zero_stage": 0, "frozen_weights": None}


def check(changes: dict[str, Any], extended: Path | None = None) -> None:
    manifest = {
        "world_size": 1,
        "identity": {**OWN, **changes},
        "progress": Progress().state_dict(),
        "evaluation": {},
        "recent_losses": [],
        "log_offsets": {},
    }
    state: Any = SimpleNamespace(identity=OWN, world=SimpleNamespace(is_main=True))
    check_identity(Checkpoint(Path("run/checkpoints/step-1"), manifest), state, extended)


def test_a_checkpoint_belongs_to_its_own_run_or_to_the_extended_one() -> None:
    check({})
    check({"config_hash": "xyz"}, extended=Path("runs/xyz"))
    with pytest.raises(
        CheckpointError, match="was saved by a different run: config_hash: checkpoint 'xyz', this run 'abc'"
    ):
        check({"config_hash": "xyz"})
    with pytest.raises(
        ConfigError, match="extend: .* does not fit this run: config_hash: checkpoint 'abc', this run 'xyz'"
    ):
        check({}, extended=Path("runs/xyz"))


def test_an_extended_run_has_the_same_data() -> None:
    with pytest.raises(ConfigError, match="extend: .* data_fingerprint: .*pass init_from=.* takes its weights only"):
        check({"config_hash": "xyz", "data_fingerprint": "other"}, extended=Path("runs/xyz"))
