"""The `hf` checkpoint engine: exports in the format of transformers."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_hydra import distributed
from arctic_hydra.checkpoint.base import TrainingState, TriggeredCheckpoint
from arctic_hydra.checkpoint.export_config import generation_configs, mask_configs
from arctic_hydra.checkpoint.files import publish_folder, remove_folder, sync_tree
from arctic_hydra.checkpoint.initial_weights import ADAPTER_CONFIG, UNCHECKED, Weights, has_adapter, load_into
from arctic_hydra.checkpoint.store import step_name
from arctic_hydra.component import component
from arctic_hydra.determinism import kept_random_state
from arctic_hydra.errors import CheckpointError, ConfigError, FieldError
from arctic_hydra.files.ownership import folder_problem, remedy
from arctic_hydra.run_directory import is_own_name

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("arctic_hydra.checkpoint")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SIZE = re.compile(r"\d+[KMGT]i?B")


@component(group="checkpoint", name="hf")
class HuggingFaceCheckpoint(TriggeredCheckpoint):
    """Exports for AutoModelForCausalLM and AutoTokenizer: safetensors, configs, and the tokenizer with its chat template.

    The final export is `export`, intermediate ones are `export-step-00000100`; each appears only when it is complete.
    Weights keep the dtype of training. An adapter is saved separately or merged (`merge`). The configs contain every stop
    token that was trained, and the padding token. A run cannot resume from an export.
    """

    save_end_of_training: bool = True
    """Save after the last step."""
    save_name: str = "export"
    """Directory of the final export, and prefix of intermediate exports."""
    max_shard_size: str | None = None
    """Maximum size of a safetensors file, such as 5GB; transformers' default when unset."""
    merge: bool | None = None
    """With `peft`: true exports the merged model, false the adapter; unset exports the adapter if its base model can be
    loaded, else the merged model."""
    verify: bool = True
    """Load the first export of a start and the final one again, and compare them with the trained model: outputs, tied weights,
    tokenizer and template, stop tokens, generation. A difference ends the run with exit code 1; the export stays."""

    can_resume: ClassVar[bool] = False

    def validate(self) -> None:
        problems = [("save_name", problem)] if (problem := export_name_problem(self.save_name)) else []
        if self.max_shard_size is not None and not _SIZE.fullmatch(self.max_shard_size):
            problems.append(("max_shard_size", f"got {self.max_shard_size!r}, expected a size such as 500MB or 5GB"))
        if problems:
            raise FieldError(problems)

    @property
    def checkpoint_dir(self) -> Path:
        """The directory that the next `save()` publishes."""
        suffix = "" if self.training_finished else f"-{step_name(self.state.progress.global_step)}"
        return self.root / f"{self.save_name}{suffix}"

    @property
    def latest_checkpoint_exists(self) -> bool:
        """Whether there is any export."""
        names = [path.name for path in self.root.iterdir()] if self.root.is_dir() else []
        return any(name == self.save_name or name.startswith(f"{self.save_name}-step-") for name in names)

    def needed_bytes(self, parameters: int, trainable: int, bytes_per_parameter: int) -> int:
        """Return the size of the final export; intermediate exports are not counted."""
        whole = self._merges or not has_adapter(self.state.engine.module)
        copies = 2 if self.state.engine.zero_optimization_stage() == 3 else 1  # weights are gathered into files first
        return (parameters if whole else trainable) * bytes_per_parameter * copies

    def bind(self, state: TrainingState) -> None:
        """Take the state to save from; called once, before `save`.

        Raises ConfigError if the adapter cannot be merged, or if the final export would replace something else.
        """
        super().bind(state)
        if problem := export_target_problem(self.root / self.save_name):
            raise ConfigError(f"checkpoint.hf.save_name: {problem}")
        if self._merges:
            check_mergeable(state.engine.module)

    @property
    def _merges(self) -> bool:
        """Whether this run has an adapter and exports the merged model."""
        known = self.state.base is not None or self.state.create_initial_model is None
        return has_adapter(self.state.engine.module) and (not known if self.merge is None else self.merge)

    def save(self) -> Path:
        """Export the model and tokenizer and return the directory; collective.

        An existing export with that name is replaced atomically. Raises the same CheckpointError on every rank if the
        export cannot be written; an existing one is then kept.
        """
        from arctic_hydra.checkpoint.full_weights import gather_weights

        target, is_main = self.checkpoint_dir, self.state.world.is_main
        model, gathered = self.state.engine.module, target.with_name(f".tmp-weights-{target.name}")
        whole = self._merges and not self.state.omits_frozen_weights
        error: str | None = None
        try:
            weights = gather_weights(model, keep=is_main, beside=gathered, whole=whole)
            if is_main:
                if self._merges:
                    model = self._merged_copy(weights)
                    weights = model.state_dict()
                write_export(model, weights, self.state.tokenizer, target, self, self.state.stop_tokens())
        except Exception as problem:
            logger.debug("export to %s failed", target, exc_info=True)
            error = f"{type(problem).__name__}: {problem}"
        finally:
            if is_main:
                shutil.rmtree(gathered, ignore_errors=True)
        if error := next(filter(None, distributed.gather_objects(error)), None):
            raise CheckpointError(
                f"the export to {target} failed and nothing was published there: {error}. "
                "A resumable checkpoint of this step, if one is configured, can be exported again with task=export"
            )
        self.mark_saved()
        return target

    def _merged_copy(self, weights: dict[str, torch.Tensor]) -> Any:
        """Return a merged copy of the model with these weights, on the CPU; the model in training is not changed."""
        assert self.state.create_initial_model is not None, "a run with an adapter can create its model again"
        with kept_random_state():
            model = self.state.create_initial_model()
        trained = {name for name, value in self.state.engine.module.named_parameters() if value.requires_grad}
        chosen = {
            name: value for name, value in weights.items() if not self.state.omits_frozen_weights or name in trained
        }
        load_into(model, chosen, Weights(self.state.run_dir, self.state.progress.global_step, UNCHECKED))
        return model.merge_and_unload()

    def load(self) -> Path | None:
        """Raise CheckpointError: an export contains weights only."""
        raise CheckpointError(
            "checkpoint.hf: an export contains weights only, so a run cannot resume from it; "
            "resume with checkpoint=[deepspeed,hf], or start a new run from these weights with init_from=<export>"
        )


def export_name_problem(name: str) -> str | None:
    """Return why `name` is not a valid name for an export, or None."""
    if not _NAME.fullmatch(name):
        return f"got {name!r}, expected a plain directory name"
    if is_own_name(name):
        return f"got {name!r}, which the run directory itself uses; expected another name, such as export"
    return None


def export_target_problem(target: Path) -> str | None:
    """Return why an export must not replace the directory `target`, or None: it must be an export itself, or empty."""
    if problem := folder_problem(target):
        return f"{target} {problem}; {remedy(problem)}, or choose another name"
    names = {path.name for path in target.iterdir()} if target.is_dir() else set()
    is_export = names & {"config.json", ADAPTER_CONFIG} or any(name.endswith(".safetensors") for name in names)
    if names and not is_export:
        return f"{target} contains files that are not an export; move them away, or choose another name"
    return None


def without_adapter(model: Any) -> Any:
    """Return the model that peft has wrapped, or `model` itself if it has no adapter; peft passes all arguments on to it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def lacks_base(adapter_config: Mapping[str, Any]) -> bool:
    """Whether `adapter_config.json` names no base model that peft could load; false for an empty config, of a full model."""
    return bool(adapter_config) and adapter_config.get("base_model_name_or_path") is None


def check_mergeable(model: Any) -> None:
    """Raise ConfigError if the adapter of `model` cannot be merged into its weights."""
    if not hasattr(model.base_model, "merge_and_unload"):
        kind = model.peft_config["default"].peft_type.value
        raise ConfigError(f"checkpoint.hf.merge: peft cannot merge a {kind} adapter; pass checkpoint.hf.merge=false")


def write_export(
    model: Any,
    weights: dict[str, torch.Tensor],
    tokenizer: Any,
    target: Path,
    options: HuggingFaceCheckpoint,
    stop_tokens: Sequence[int] = (),
) -> None:
    """Write model and tokenizer to the directory `target`, which appears only when it is complete.

    `weights` are the full weights on the CPU; `stop_tokens` are the ids of the stop tokens that were trained.
    """
    from transformers import GenerationConfig

    if problem := export_target_problem(target):
        raise CheckpointError(problem)
    stage = target.with_name(f".tmp-{target.name}")
    remove_folder(stage)
    stage.mkdir(parents=True)
    try:
        sharding = {} if options.max_shard_size is None else {"max_shard_size": options.max_shard_size}
        base = without_adapter(model)
        with generation_configs(base, tokenizer, stop_tokens) as tokens:
            if hasattr(model, "save_pretrained"):
                model.save_pretrained(stage, state_dict=weights, **sharding)
            else:
                _save_plain(model, weights, stage, sharding)
        if base is not model:  # peft does not save this file with an adapter
            GenerationConfig(**tokens).save_pretrained(stage)
        tokenizer.save_pretrained(stage)
        mask_configs(stage)
        sync_tree(stage)
    except BaseException:
        remove_folder(stage)
        raise
    publish_folder(stage, target)


def _save_plain(model: Any, weights: dict[str, torch.Tensor], stage: Path, sharding: dict[str, str]) -> None:
    """Write the weights and the config of a model that is not of transformers, by its own names and values."""
    from huggingface_hub import save_torch_state_dict

    save_torch_state_dict(weights, stage, metadata={"format": "pt"}, **sharding)  # type: ignore[arg-type]
    config = model.config
    values = config.to_dict() if hasattr(config, "to_dict") else vars(config)
    values = {name: value for name, value in values.items() if not callable(value)}
    (stage / "config.json").write_text(json.dumps(values, indent=2, default=str) + "\n", encoding="utf-8")
