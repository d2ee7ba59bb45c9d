"""The `deepspeed` checkpoint engine: complete, resumable checkpoints."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_hydra import distributed
from arctic_hydra.checkpoint.base import TrainingState, TriggeredCheckpoint, check_identity
from arctic_hydra.checkpoint.files import copy_beginning, remove_folder, synced_size
from arctic_hydra.checkpoint.initial_weights import adapter_settings
from arctic_hydra.checkpoint.store import Checkpoint, CheckpointStore, step_name
from arctic_hydra.component import component
from arctic_hydra.determinism import set_random_state
from arctic_hydra.errors import CheckpointError
from arctic_hydra.human_numbers import HumanInt, integer
from arctic_hydra.metrics import check_has

if TYPE_CHECKING:
    import torch

    from arctic_hydra.checkpoint.background import BackgroundSave

logger = logging.getLogger("arctic_hydra.checkpoint")


class OnError(Enum):
    """What happens after a failed save."""

    stop = "stop"
    warn = "warn"


class BestWhen(Enum):
    """Whether lower or higher values of a metric are better."""

    lowest = "lowest"
    highest = "highest"


@component(group="checkpoint", name="deepspeed")
class DeepSpeedCheckpoint(TriggeredCheckpoint):
    """Resumable checkpoints in `checkpoints/step-00000100`, verified on load; resuming with the same world is bit-exact.

    A checkpoint contains DeepSpeed's files (weights, optimizer, loss scaler), one `rank-00000.pt` per rank (RNG states,
    learning-rate schedule) and `manifest.json` (counters, identity of the run, lengths of the log files, sha256 of
    every file). A run that stops early also saves one, independent of the triggers. Frozen weights that were loaded from
    files are omitted; a checksum detects if those files have changed, but not of four-bit weights (`peft=qlora`).
    """

    auto_resume: bool = True
    """Whether a run resumes from checkpoints of this engine in its directory."""
    keep_last: HumanInt | None = integer(2, minimum=1)
    """Number of newest valid checkpoints to keep; null keeps all. With 1, a damaged checkpoint loses the run."""
    keep_best: HumanInt = integer(0, minimum=0)
    """Additionally keep this many of the best checkpoints by `best_metric`; only evaluated steps count."""
    best_metric: str = "eval/loss"
    """Evaluation metric used by `keep_best` and `from_checkpoint=best`."""
    best_when: BestWhen = BestWhen.lowest
    """Whether the lowest or the highest value of `best_metric` is the best."""
    on_error: OnError = OnError.stop
    """What a failed save (such as on a full disk) does: stop the run, or only warn. Earlier checkpoints stay valid."""
    asynchronous: bool = False
    """Save in the background: a step only waits for the copy of its rank's shard to host memory (as large as the files of
    the rank, allocated once). The checkpoint appears after the first step for which all ranks have written their files."""

    can_resume: ClassVar[bool] = True

    @property
    def best_kept(self) -> int:
        """How many of the best checkpoints this engine keeps, by `best_metric`."""
        return self.keep_best

    def bind(self, state: TrainingState) -> None:
        """Take the state to save from and load into; called once, before `load` and `save`."""
        super().bind(state)
        from arctic_hydra.checkpoint.background import HostBuffers

        self._store = CheckpointStore(self.root / "checkpoints", state.world.rank, self.keep_last, self.keep_best)
        self._buffers = HostBuffers()
        self._pending: BackgroundSave | None = None

    def needed_bytes(self, parameters: int, trainable: int, bytes_per_parameter: int) -> int:
        """Return the size of the checkpoints yet to be written: weights, fp32 master weights and two Adam moments each.

        Callbacks add their own state.
        """
        held = trainable if self.state.omits_frozen_weights else parameters
        own = sum(callback.bytes_per_parameter for callback in self.state.callbacks.values())
        each = held * bytes_per_parameter + trainable * (12 + own)
        kept = (self.keep_last or 1) + self.keep_best + 1  # plus the one being written
        return each * max(1, kept - len(self._store.steps()))

    @property
    def checkpoint_dir(self) -> Path:
        """The directory that the next `save()` publishes."""
        return self._store.root / step_name(self.state.progress.global_step)

    @property
    def latest_checkpoint_exists(self) -> bool:
        """Whether there is any checkpoint, valid or not."""
        return bool(self._store.steps())

    # ---- save ----------------------------------------------------------------------------------------------------

    def save(self) -> Path | None:
        """Save the step just completed and return its directory, once published; collective.

        Raises the same CheckpointError on every rank if any rank failed to write; nothing is published then. With
        `on_error=warn` it warns and returns None instead, unless the run is about to stop and needs this checkpoint.
        With `asynchronous` it returns after copying, and `finish_save` publishes the checkpoint or raises the error.
        Must be called after an optimizer step: partially accumulated gradients are not saved.
        """
        self.finish_save()
        try:
            return self._save()
        except CheckpointError as error:
            if self.on_error is OnError.stop or self.state.stopping:
                raise
            self._log_failed_save(self.state.progress.global_step, error)
            return None

    @property
    def save_ready(self) -> bool:
        """Whether the background save of this rank has written its files, so that `finish_save` can publish it."""
        return self._pending is not None and self._pending.done

    def finish_save(self) -> None:
        """Wait for the background save and publish it; collective, without effect if there is none.

        Raises the same CheckpointError on every rank if any rank failed to write; with `on_error=warn` it warns.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        pending.wait()
        try:
            self._store.agree(pending.stage)
            self._store.publish(pending.stage, pending.facts)
            if self.state.world.is_main:
                logger.info("saved %s in the background", step_name(pending.stage.step))
        except CheckpointError as error:
            self._saved = None  # a run that stops at this step must save it again
            if self.on_error is OnError.stop:
                raise
            self._log_failed_save(pending.stage.step, error)

    def _log_failed_save(self, step: int, error: CheckpointError) -> None:
        if self.state.world.is_main:
            logger.error("TRAINING CONTINUES WITHOUT A CHECKPOINT of step %d: %s", step, error)

    def _save(self) -> Path:
        from arctic_hydra.checkpoint.background import BackgroundSave
        from arctic_hydra.checkpoint.rank_state import rank_contents
        from arctic_hydra.checkpoint.writer import SafeCheckpointEngine, save_files, write_tensors

        state = self.state
        stage = self._store.begin(state.progress.global_step)
        facts: dict[str, Any] = {}
        with stage.keep_error():
            facts = self._manifest_facts() if state.world.is_main else {}
        pending = None
        if self.asynchronous and not (state.stopping or state.training_finished):
            pending = BackgroundSave(stage, self._buffers, facts)
        put = pending.hold if pending else partial(write_tensors, stage)
        with stage.keep_error():
            put(self._rank_file(), rank_contents(state))
        try:
            engine = SafeCheckpointEngine(self._store, stage, put, self._omitted_names())
            save_files(state.engine, engine, stage, omit_frozen=state.omits_frozen_weights)
        except Exception:
            self._buffers.release()
            raise
        if pending is None:
            self._store.publish(stage, facts)
        else:
            pending.start()
            self._pending = pending
        self.mark_saved()
        return self.checkpoint_dir

    def _omitted_names(self) -> frozenset[str]:
        """Return the names (several for tied ones) of the frozen parameters that checkpoints omit."""
        if not self.state.omits_frozen_weights:
            return frozenset()
        named = self.state.engine.module.named_parameters(remove_duplicate=False)
        return frozenset(name for name, parameter in named if not parameter.requires_grad)

    def _load_weights(self, src: dict[str, Any], dst: torch.nn.Module) -> None:
        """Load the weights of a checkpoint into the model; only the omitted ones may be missing."""
        result = dst.load_state_dict(src, strict=False)
        missing = set(result.missing_keys) - self._omitted_names()
        if missing or result.unexpected_keys:
            raise RuntimeError(
                f"its weights do not fit this model: missing {sorted(missing)[:5]}, unexpected {result.unexpected_keys[:5]}"
            )

    def _manifest_facts(self) -> dict[str, Any]:
        state = self.state
        return {
            "world_size": state.world.size,
            "identity": state.identity,
            "progress": state.progress.state_dict(),
            "evaluation": dict(state.evaluation),
            "recent_losses": list(state.recent_losses),
            "metric": self._metric(),
            "stop_tokens": state.stop_tokens(),
            **({"adapter": settings} if (settings := adapter_settings(state.engine.module)) else {}),
            **({"ended": state.ended} if state.ended else {}),
            **({"extended_at": state.extended_at} if state.extended_at else {}),
            **({"saved_after_error": state.error} if state.error else {}),
            "log_offsets": {self._log_key(path): synced_size(path) for path in state.logs},
        }

    def _metric(self) -> dict[str, Any] | None:
        """Return the metric of this step if it was evaluated; a lower `rank_by` is better."""
        evaluation = self.state.evaluation
        value = evaluation.get(self.best_metric)
        if value is None or evaluation["step"] != self.state.progress.global_step:
            return None
        sign = 1 if self.best_when is BestWhen.lowest else -1
        return {"name": self.best_metric, "value": value, "rank_by": sign * value}

    def check_evaluation(self, evaluation: dict[str, Any]) -> None:
        """Raise ConfigError if checkpoints are ranked by a metric that the evaluation does not have."""
        if self.keep_best:
            check_has(evaluation, self.best_metric, "checkpoint.deepspeed.best_metric")

    def _log_key(self, path: Path) -> str:
        run_dir = self.state.run_dir
        return str(path.relative_to(run_dir) if path.is_relative_to(run_dir) else path)

    def _rank_file(self) -> str:
        return f"rank-{self.state.world.rank:05d}.pt"

    # ---- load ----------------------------------------------------------------------------------------------------

    def load(self) -> Path | None:
        """Restore the newest valid checkpoint of this run or, if it has none, of `state.extends`; return its directory. Collective.

        Sets weights, optimizer, schedule, counters and this rank's RNG states, and truncates `state.logs` to their
        recorded lengths. Raises the same CheckpointError on every rank if there are checkpoints but none is usable,
        if the newest valid one belongs to another run, or if a rank cannot load it.
        """
        found, extended = self._store.newest(), None
        if found is None and self.state.extends is not None:
            found, extended = self._newest_of(self.state.extends), self.state.extends
        if found is None:
            return None
        check_identity(found, self.state, extended)
        self._raise_if_any_failed(self._error_of(self._check_readable, found), found)
        if found.manifest["world_size"] == self.state.world.size:
            self._raise_if_any_failed(self._error_of(self._restore, found), found)
        else:
            self._restore_resharded(found)
        self.state.progress.load_state_dict(found.manifest["progress"])
        self.state.evaluation = dict(found.manifest["evaluation"])
        self.state.recent_losses = list(found.manifest["recent_losses"])
        self.state.ended = "" if extended else str(found.manifest.get("ended", ""))
        self.state.extended_at = found.step if extended else found.manifest.get("extended_at", 0)
        if extended:
            self._raise_if_any_failed(self._error_of(self._copy_logs, found), found)
        else:
            self._raise_if_any_failed(self._error_of(self._truncate_logs, found), found)
            self.mark_saved()
        return found.path

    def _newest_of(self, run_dir: Path) -> Checkpoint:
        """Return the newest valid checkpoint of the run that this one extends; raises CheckpointError if there is none."""
        store = CheckpointStore(self.directory_of(run_dir) / "checkpoints", self.state.world.rank, of_others=True)
        found = store.newest()
        if found is None:
            raise CheckpointError(
                f"extend: {store.root} contains no checkpoint; extend a run with checkpoint=deepspeed, or pass init_from=<its export>"
            )
        return found

    def _check_readable(self, found: Checkpoint) -> None:
        """Parse each file once, distributed over the ranks, so that an unreadable file stops all ranks before they load."""
        from arctic_hydra.checkpoint.writer import check_readable

        names = [name for name in sorted(found.manifest["files"]) if name.endswith(".pt")]
        check_readable(found.path, names[self.state.world.rank :: self.state.world.size])

    def _restore_resharded(self, found: Checkpoint) -> None:
        """Restore a checkpoint from another number of ranks; `check_identity` has verified that the global batch is equal."""
        target = self._store.root / f".tmp-resharded-{found.path.name}"
        ranks, error = self.state.world.size, None
        if self.state.world.is_main:
            from arctic_hydra.checkpoint.reshard import reshard

            remove_folder(target)
            target.parent.mkdir(parents=True, exist_ok=True)  # a run that extends another one has none yet
            error = self._error_of(lambda known: reshard(known.path, target, ranks), found)
            logger.warning(
                "resharding %s from %d ranks to %d: weights, optimizer, schedule and data position are restored; "
                "RNG states are not, so dropout differs, and cross-rank reductions round in a different order",
                found.path.name, found.manifest["world_size"], ranks,
            )  # fmt: skip
        self._raise_if_any_failed(error, found)
        try:
            self._raise_if_any_failed(
                self._error_of(lambda known: self._restore(Checkpoint(target, known.manifest), known.path), found),
                found,
            )
        finally:
            distributed.barrier()
            if self.state.world.is_main:
                remove_folder(target)

    def _restore(self, found: Checkpoint, original: Path | None = None) -> None:
        """Load the files of a checkpoint; with `original`, they were resharded from it and hold no state of this rank."""
        from arctic_hydra.checkpoint import rank_state
        from arctic_hydra.checkpoint.reshard import redistribute_callbacks
        from arctic_hydra.checkpoint.writer import SafeCheckpointEngine, load_tensors, replace_checkpoint_engine

        engine = self.state.engine
        with replace_checkpoint_engine(engine, SafeCheckpointEngine()):
            loaded, _ = engine.load_checkpoint(
                str(found.path.parent),
                tag=found.path.name,
                load_lr_scheduler_states=False,
                custom_load_fn=self._load_weights,
            )
        if loaded is None:
            raise RuntimeError("DeepSpeed found nothing to load")
        first = load_tensors((original or found.path) / "rank-00000.pt")
        if self.state.stream is not None:
            self.state.stream.load_state_dict(first["stream"])
        if original is not None:
            states = [load_tensors(path) for path in sorted(original.glob("rank-*.pt"))]
            rank_state.set_schedule_state(self.state.scheduler, first["schedule"])
            self.state.since_last_log = rank_state.redistribute_interval(
                [state["interval"] for state in states], self.state.world.size
            )
            world = self.state.world
            held = redistribute_callbacks(original, states, world.rank, world.size)
            rank_state.load_callbacks(self.state.callbacks, held)
            engine.micro_steps = found.step * engine.gradient_accumulation_steps()
            rank_state.reseed(found.step)
            return
        mine = load_tensors(found.path / self._rank_file())
        engine.micro_steps = mine["micro_steps"]
        self.state.since_last_log = mine["interval"]
        rank_state.load_callbacks(self.state.callbacks, mine.get("callbacks", {}))
        rank_state.set_schedule_state(self.state.scheduler, mine["schedule"])
        set_random_state(mine["random"])

    def _copy_logs(self, found: Checkpoint) -> None:
        """Copy the logs of the run that this one extends up to the save, so that they show all steps."""
        if self.state.world.is_main and self.state.extends is not None:
            for path in self.state.logs:
                key = self._log_key(path)
                try:
                    copy_beginning(self.state.extends / key, path, found.manifest["log_offsets"].get(key, 0))
                except FileNotFoundError:
                    logger.warning(
                        "%s is gone: the log of this run begins at step %d", self.state.extends / key, found.step
                    )

    def _truncate_logs(self, found: Checkpoint) -> None:
        if not self.state.world.is_main:
            return
        offsets: dict[str, int] = found.manifest["log_offsets"]
        for path in self.state.logs:
            size, there = offsets.get(self._log_key(path)), path.stat().st_size if path.exists() else 0
            if size is None or there == size:
                continue
            if there < size:
                logger.warning("%s has %d bytes but had %d at the save: lines are missing", path, there, size)
            else:
                os.truncate(path, size)

    def _error_of(self, action: Callable[[Checkpoint], None], found: Checkpoint) -> str | None:
        try:
            action(found)
        except Exception as error:
            logger.debug("loading %s failed", found.path, exc_info=True)
            return f"{type(error).__name__}: {error}"
        return None

    def _raise_if_any_failed(self, error: str | None, found: Checkpoint) -> None:
        failed = [f"rank {rank}: {text}" for rank, text in enumerate(distributed.gather_objects(error)) if text]
        if failed:
            raise CheckpointError(
                f"{found.path} passed its checks but could not be loaded: {'; '.join(failed)}. "
                "Move that directory away to resume from the previous checkpoint, or pass fresh=true to start over"
            )
