"""The save protocol, without an engine."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from hypothesis import strategies as st

from arctic_hydra.checkpoint import files
from arctic_hydra.checkpoint import store as store_module
from arctic_hydra.checkpoint.store import MANIFEST, CheckpointStore
from arctic_hydra.errors import CheckpointError
from tests.mutations import as_json, attempt, changed, file_like, fuzz

FILES = {"model.pt": b"m" * 5000, "optimizer.pt": os.urandom(3000), "rank-00000.pt": b"r"}


def save(store: CheckpointStore, step: int) -> Path:
    stage = store.begin(step)
    for name, content in FILES.items():
        stage.write(name, lambda file, content=content: file.write(content))
    store.agree(stage)
    return store.publish(stage, {"identity": {"config_hash": "c0"}})


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", rank=0, keep_last=2)


def test_nothing_is_deleted_through_a_link(store: CheckpointStore, tmp_path: Path) -> None:
    (tmp_path / "victim" / ".tmp-mine").mkdir(parents=True)
    store.root.symlink_to("victim")
    with pytest.raises(CheckpointError, match="checkpoints is a symbolic link to victim"):
        store.begin(1)
    assert names(tmp_path / "victim") == [".tmp-mine"]


def truncate_to_nothing(path: Path) -> None:
    path.write_bytes(b"")


def lose_the_last_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


def test_a_saved_checkpoint_is_found(store: CheckpointStore) -> None:
    assert store.newest() is None
    path = save(store, 100)
    found = store.newest()
    assert found is not None
    assert (found.path, found.step, path.name) == (path, 100, "step-00000100")
    assert found.manifest["files"]["model.pt"]["bytes"] == 5000
    assert names(path) == sorted([*FILES, MANIFEST])
    assert path.stat().st_mode & 0o777 == store.root.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", [truncate_to_nothing, lose_the_last_byte, flip_one_bit, remove])
@pytest.mark.parametrize("victim", [*FILES, MANIFEST])
def test_damage_to_any_file_falls_back_to_the_previous_checkpoint(store, damage, victim, caplog) -> None:
    save(store, 1)
    newest = save(store, 2)
    damage(newest / victim)
    with caplog.at_level(logging.WARNING, logger="arctic_hydra.checkpoint"):
        found = store.newest()
    assert found is not None and found.step == 1
    [record] = caplog.records
    assert f"rejected checkpoint {newest}: " in record.getMessage()
    assert victim in record.getMessage()


def test_every_flipped_bit_of_a_manifest_is_detected(store: CheckpointStore) -> None:
    save(store, 1)
    manifest = save(store, 2) / MANIFEST
    good = manifest.read_bytes()
    for position in range(0, len(good), 7):
        damaged = bytearray(good)
        damaged[position] ^= 1 << (position % 7)
        manifest.write_bytes(damaged)
        found = store.newest()
        assert found is not None
        # JSON with the same meaning (other white space, an escape) is not damage.
        assert found.step == 1 or json.loads(damaged) == json.loads(good), position


def test_no_valid_checkpoint_is_an_error_instead_of_step_0(store: CheckpointStore) -> None:
    remove(save(store, 1) / "model.pt")
    flip_one_bit(save(store, 2) / "model.pt")
    expected = r"none is usable, so the run does not silently start from step 0.*02: model.pt is damaged.*01: model.pt is missing"
    with pytest.raises(CheckpointError, match=expected) as caught:
        store.newest()
    assert "fresh=true" in str(caught.value)


def test_a_newer_format_is_rejected_by_its_number(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arctic_hydra.checkpoint.store.FORMAT", 2)
    save(store, 1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format: got 2, expected 1; another program or version wrote it"):
        store.newest()


def test_the_newest_is_by_number_not_by_name_or_latest(store: CheckpointStore) -> None:
    save(store, 99_999_999)
    save(store, 100_000_000)
    (store.root / "latest").write_text("../../elsewhere")
    (store.root / "step-notes").mkdir()
    found = store.newest()
    assert found is not None and found.step == 100_000_000


@pytest.mark.parametrize(("keep_last", "left"), [(None, [1, 2, 3, 4]), (1, [4]), (2, [3, 4]), (3, [2, 3, 4])])
def test_prune_keeps_the_newest(tmp_path, keep_last, left) -> None:
    store = CheckpointStore(tmp_path, rank=0, keep_last=keep_last)
    for step in range(1, 5):
        save(store, step)
    assert names(tmp_path) == ["latest", *(f"step-{step:08d}" for step in left)]


def test_prune_keeps_the_best_checkpoints(tmp_path) -> None:
    store = CheckpointStore(tmp_path, rank=0, keep_last=1, keep_best=2)
    for step, value in enumerate((3.0, 1.0, None, 2.0, math.nan, -math.inf, 5.0), start=1):
        stage = store.begin(step)
        stage.write("model.pt", lambda file: file.write(b"m"))
        store.agree(stage)
        store.publish(stage, {"metric": None if value is None else {"rank_by": value}})
    assert [path.name[-1] for path in store.steps()] == ["7", "4", "2"]
    assert store.best().step == 2
    flip_one_bit(store.root / "step-00000002" / "model.pt")
    with pytest.raises(
        CheckpointError, match=r"step-00000002 cannot be used: model.pt is damaged.*Steps below .*: 7, 4, 2"
    ):
        store.best()


def test_a_damaged_checkpoint_is_not_among_the_best(tmp_path) -> None:
    store = CheckpointStore(tmp_path, rank=0, keep_last=1, keep_best=1)
    for step, loss in ((1, 1.0), (2, 2.0), (3, 3.0)):
        stage = store.begin(step)
        stage.write("model.pt", lambda file: file.write(b"weights"))
        store.agree(stage)
        path = store.publish(stage, {"identity": {}, "metric": {"rank_by": loss}})
        if step == 1:
            lose_the_last_byte(path / "model.pt")
    assert "step-00000002" in names(tmp_path)


def test_prune_does_not_count_damaged_ones(store: CheckpointStore) -> None:
    save(store, 1)
    flip_one_bit(save(store, 2) / "model.pt")
    found = store.newest()
    assert found is not None and found.step == 1
    save(store, 3)
    assert names(store.root)[1:] == ["step-00000001", "step-00000002", "step-00000003"]
    save(store, 4)
    assert names(store.root)[1:] == ["step-00000003", "step-00000004"]


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(store: CheckpointStore) -> None:
    save(store, 1)
    flip_one_bit(save(store, 2) / "model.pt")
    assert store.newest().step == 1  # type: ignore[union-attr]
    save(store, 2)
    assert store.newest().step == 2  # type: ignore[union-attr]
    assert names(store.root) == ["latest", "step-00000001", "step-00000002"]


def test_leftovers_of_a_killed_save_are_removed(store: CheckpointStore) -> None:
    store.root.mkdir()
    for leftover in (".tmp-step-00000007", ".del-step-00000003"):
        (store.root / leftover).mkdir()
        (store.root / leftover / "x").touch()
    assert store.newest() is None
    save(store, 8)
    assert names(store.root) == ["latest", "step-00000008"]


def test_leftovers_that_cannot_be_removed_do_not_prevent_a_save(store: CheckpointStore, monkeypatch) -> None:
    """As on NFS while another process reads a checkpoint that was pruned."""
    (store.root / ".del-step-00000001").mkdir(parents=True)
    remove = files.remove_own_tree

    def busy(path: Path) -> None:
        if path.name == ".del-step-00000001":
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        remove(path)

    monkeypatch.setattr(files, "remove_own_tree", busy)
    assert [save(store, step).name for step in (1, 2, 3, 1)][-1] == "step-00000001"
    assert names(store.root) == [".del-step-00000001", "latest", "step-00000002", "step-00000003"]


def test_a_failed_write_publishes_nothing_and_keeps_the_cause(store: CheckpointStore) -> None:
    save(store, 1)
    stage = store.begin(2)
    stage.write("good.pt", lambda file: file.write(b"x"))

    def fail(file: files.HashingWriter) -> None:
        try:
            file._raw.close()
            file.write(b"x")
        except ValueError:
            file.error = OSError(28, "No space left on device")
            raise RuntimeError("unexpected pos 64 vs 0") from None  # what torch makes of it

    stage.write("bad.pt", fail)
    stage.write("never.pt", lambda file: file.write(b"x"))
    expected = (
        r"step 2 .*nothing was published.*rank 0: OSError: \[Errno 28\] No space left on device.*start the run again"
    )
    with pytest.raises(CheckpointError, match=expected):
        store.agree(stage)
    assert names(store.root) == ["latest", "step-00000001"]


def test_too_little_space_is_reported_before_the_first_write(store: CheckpointStore, monkeypatch) -> None:
    save(store, 1)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100))
    with pytest.raises(CheckpointError, match=r"rank 0: OSError: .* GiB free below .*checkpoints, .* GiB needed"):
        store.begin(2)
    assert names(store.root) == ["latest", "step-00000001"]


def test_a_file_that_bypassed_the_store_is_rejected(store: CheckpointStore) -> None:
    stage = store.begin(1)
    (stage.path / "zero_to_fp32.py").touch()
    store.agree(stage)
    with pytest.raises(CheckpointError, match=r"did not pass through the store: zero_to_fp32\.py"):
        store.publish(stage, {})


def test_a_failure_after_publishing_only_warns(store: CheckpointStore, caplog: pytest.LogCaptureFixture) -> None:
    (store.root / "latest").mkdir(parents=True)
    assert save(store, 1).is_dir()
    assert "step-00000001 is complete, but updating `latest` or pruning" in caplog.text


def rewrite(manifest: Path, **changes: object) -> None:
    """Change facts in a manifest and its own digest, as an attacker would."""
    content = json.loads(manifest.read_text())
    del content["self_sha256"]
    content |= changes
    manifest.write_text(json.dumps({**content, "self_sha256": store_module._digest(content)}))


FORGED = [
    (
        {"files": {"../../secret": {"bytes": 6, "sha256": "x"}}},
        'got "../../secret", expected a name inside the directory',
    ),
    (
        {"files": {"/etc/passwd": {"bytes": 6, "sha256": "x"}}},
        'got "/etc/passwd", expected a name inside the directory',
    ),
    ({"files": ["model.pt"]}, 'files: got ["model.pt"], expected an object'),
    (
        {"files": {"model.pt": {"bytes": "5000", "sha256": "x"}}},
        'files.model.pt.bytes: got "5000", expected a whole number',
    ),
    ({"step": "3"}, 'step: got "3", expected a whole number, 0 or more'),
    ({"step": None}, "step: got null"),
    ({"metric": {"rank_by": "x"}}, 'metric.rank_by: got "x", expected a number'),
    ({"log_offsets": {"metrics.jsonl": -1}}, "log_offsets.metrics.jsonl: got -1"),
    ({"identity": 3}, "identity: got 3, expected an object"),
]


@pytest.mark.parametrize(("changes", "message"), FORGED)
def test_a_forged_manifest_names_no_file_elsewhere_and_falls_back(changes, message, store, caplog) -> None:
    save(store, 1)
    newest = save(store, 2)
    (store.root.parent / "secret").write_text("secret")
    rewrite(newest / MANIFEST, **changes)
    found = store.newest()
    assert found is not None and found.step == 1
    assert message in caplog.text
    with pytest.raises(CheckpointError, match="step-00000002 cannot be used: "):
        CheckpointStore(store.root, 0, of_others=True).verified(newest)


def link_manifest(path: Path) -> None:
    (path / MANIFEST).rename(path.parent / "moved")
    (path / MANIFEST).symlink_to("../moved")


def link_file(path: Path) -> None:
    (path / "model.pt").rename(path.parent / "moved")
    (path / "model.pt").symlink_to("../moved")


def link_folder(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def file_is_a_directory(path: Path) -> None:
    (path / "model.pt").unlink()
    (path / "model.pt").mkdir()


def give_away(path: Path) -> None:
    os.chown(path, 12345, -1)


def open_to_all(path: Path) -> None:
    for folder in (path.parent.parent, path.parent):
        folder.chmod(0o755)
    path.chmod(0o777)


ATTACKS = [
    (link_manifest, "manifest.json: is a symbolic link to ../moved, expected a file"),
    (link_file, "model.pt is a symbolic link, expected a file in the checkpoint itself"),
    (link_folder, "it is a symbolic link to moved"),
    (file_is_a_directory, "model.pt is a directory, expected a file"),
    (give_away, "it belongs to another user (uid 12345)"),
    (open_to_all, "it is not private: every user may write to it (mode 0777)"),
]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize(("attack", "message"), ATTACKS)
def test_a_checkpoint_that_others_could_have_written_is_not_resumed_from(attack, message, store, caplog) -> None:
    save(store, 1)
    newest = save(store, 2)
    attack(newest)
    found = store.newest()
    assert found is not None and found.step == 1 and message in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_checkpoint_that_the_user_named_may_be_that_of_another_user(store) -> None:
    path = save(store, 1)
    for item in (path, *path.iterdir(), store.root):
        os.chown(item, 12345, -1)
    with pytest.raises(CheckpointError, match=r"belongs to another user \(uid 12345\)"):
        store.newest()
    named = CheckpointStore(store.root, 0, of_others=True)
    assert named.verified(path).step == 1 and named.newest() is not None
    with pytest.raises(CheckpointError, match="nothing was published.*belongs to another user"):
        named.begin(2)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints that are there once, since each example damages the manifest only."""
    root = tmp_path_factory.mktemp("random") / "checkpoints"
    path = save(CheckpointStore(root, rank=0), 100) / MANIFEST
    path.with_name("manifest.before").write_bytes(path.read_bytes())
    return path


def one_random_manifest(data: st.DataObject, saved: Path) -> None:
    """Its hash is right in half of the cases, so that the content is looked at."""
    store = CheckpointStore(saved.parents[1], rank=0, keep_last=1, keep_best=1)
    before = json.loads(saved.with_name("manifest.before").read_text())
    content = data.draw(file_like(before))
    if data.draw(st.booleans()):
        body = data.draw(changed({key: value for key, value in before.items() if key != "self_sha256"}))
        content = as_json({**body, "self_sha256": store_module._digest(body)})
    saved.write_bytes(content)
    for look in (store.newest, store.best, lambda: store.at(100)):
        found = attempt(look, CheckpointError, store.root)
        assert found is None or found.step == json.loads(saved.read_text())["step"]


test_a_random_manifest, test_many_random_manifests = fuzz(one_random_manifest)
