"""Finds and loads what `task=chat` talks to: the model of a run, a checkpoint, an export, or a model of the hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_hydra import config
from arctic_hydra.checkpoint.export_config import token_list
from arctic_hydra.checkpoint.hf import HuggingFaceCheckpoint, lacks_base
from arctic_hydra.component import CAUSAL_LM
from arctic_hydra.converter.base import ModelConverter
from arctic_hydra.distributed import World
from arctic_hydra.errors import CheckpointError, ConfigError, ModelError
from arctic_hydra.files.start_paths import hint_of_pattern, start_problem
from arctic_hydra.generation.answers import prepare_for_generation, stop_tokens
from arctic_hydra.hub import hub_reachable, looks_like_path
from arctic_hydra.human_numbers import shorten
from arctic_hydra.instantiate import trusted_keys
from arctic_hydra.model.hf import check_stored_config
from arctic_hydra.model.names import SPEC_MODEL_TYPE
from arctic_hydra.model.spec import load_export
from arctic_hydra.run_directory import RunDirectory, relative
from arctic_hydra.tokenizer.loading import load_tokenizer
from arctic_hydra.trainer.causal import CausalTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_KEY = "from_checkpoint"
_TRUST = "trust_remote_code"


@dataclass(frozen=True)
class ChatModel:
    """A model ready to generate on the device of this process."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    stop_tokens: list[int]
    where: str
    """Path or hub id that it was loaded from."""
    continues_text: bool
    """Whether it was trained on texts that no chat template renders, or has none, so that it continues what it is given."""
    converters: Sequence[ModelConverter] = ()
    """What was applied to a model of training, and may round; an export does not."""


def load(run: config.Run, directory: RunDirectory) -> ChatModel:
    """Return the model that `from_checkpoint` names, or that of `run` in `directory`.

    What belongs to another run is loaded with the config of that run. Raises ArcticHydraError.
    """
    which = run.from_checkpoint
    if which is None or which == "best" or which.isdecimal():
        directory.check_trained(
            config.Task.chat.name, f", or pass {_KEY}=<path of a run, a checkpoint or an export, or a hub id>"
        )
        return _of_run(run, directory)
    path = Path(which)
    if not path.is_dir():
        if path.exists() or looks_like_path(which):
            raise ConfigError(
                f"{_KEY}: got {which}, which is not a directory; expected the path of a run, a checkpoint or an export, or a hub id"
                f"{hint_of_pattern(which)}"
            )
        return _of_export(which, run, None)
    if problem := start_problem(which):
        raise ConfigError(f"{_KEY}: {problem}")
    owner = _owner(path, run)
    if any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        return _of_export(which, run, owner)
    owner = owner or run
    owner.from_checkpoint = None if (path / "run.json").is_file() else which
    return _of_run(owner, RunDirectory(path))


def _run_folder(path: Path) -> Path | None:
    """Return the directory of the run that a run, a checkpoint or an export is in; None if it is in none."""
    return next((folder for folder in (path, *path.absolute().parents[:2]) if (folder / "run.json").is_file()), None)


def _owner(path: Path, run: config.Run) -> config.Run | None:
    """Return the run in whose directory a run, a checkpoint or an export is; None if it is in none.

    Raises ConfigError if its config lets code of a repository run where `run`, the config of the command, does not.
    """
    if (folder := _run_folder(path)) and (tree := RunDirectory(folder).config()):
        asked = {f"{group}.{_TRUST}" for group in ("model", "tokenizer") if getattr(getattr(run, group), _TRUST, False)}
        if trusted := [key for key in trusted_keys(tree) if key not in asked]:
            raise ConfigError(
                f"{trusted[0]}: got true from {folder / 'run.json'}, but it lets code of another repository run; repeat "
                f"the overrides of that training, {trusted[0]}=true among them, on the command line"
            )
        return config.build({**tree, "task": config.Task.chat.name})
    return None


def _of_run(run: config.Run, directory: RunDirectory) -> ChatModel:
    """Return the model of the run's export, or of the checkpoint that `from_checkpoint` selects."""
    if run.trainer.auto_class != CAUSAL_LM:
        raise ConfigError(
            f"task: got chat, but trainer={run.trainer.option_name} trains a model that gives scores instead of text; expected a run "
            "that trains a language model"
        )
    exporter = run.checkpoint.get("hf")
    if run.from_checkpoint is None and isinstance(exporter, HuggingFaceCheckpoint):
        export = exporter.directory_of(directory.path) / exporter.save_name
        if export.is_dir() and not lacks_base(_read_json(export / "adapter_config.json")):
            return _of_export(str(export), run, run)
    return _of_checkpoint(run, directory)


def _of_checkpoint(run: config.Run, directory: RunDirectory) -> ChatModel:
    from arctic_hydra.tasks import export

    if problems := [f"model.{problem}" for problem in run.model.check_files()]:
        raise ConfigError(problems)
    restored = export.restore(run, directory.of_task(run.task.name).path)
    found = _ready(restored.model, restored.tokenizer, restored.stop_tokens, str(restored.weights.path), run)
    return replace(found, converters=run.converters)


def _of_export(name: str, run: config.Run, owner: config.Run | None) -> ChatModel:
    """Return the model of a directory in the layout of transformers or peft, or of a hub id."""
    options = {
        "trust_remote_code": (owner or run).model.trusts_remote_code,
        "local_files_only": Path(name).is_dir() or not hub_reachable(),
    }
    try:
        tokenizer = load_tokenizer(name, None, trust_remote_code=options["trust_remote_code"])
    except ModelError as error:
        raise ModelError(str(error).replace("tokenizer.name_or_path:", f"{_KEY}:")) from error
    try:
        model = _read_model(Path(name), name, options)
    except ModelError:
        raise
    except Exception as error:  # transformers, peft and safetensors raise many types for a failed load
        reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        raise ModelError(
            f"{_KEY}: the model in {name} cannot be loaded ({reason}); expected a run, a checkpoint, an export or a hub id"
        ) from error
    return _ready(model, tokenizer, _configured_stops(Path(name), model), name, owner)


def _read_model(path: Path, name: str, options: dict[str, Any]) -> Any:
    """Return the model of an export in its own dtype, an adapter on its base. Raises ModelError if it is not a language model."""
    held = _read_json(path / "config.json")
    if held.get("model_type") == SPEC_MODEL_TYPE:
        return load_export(path)
    adapter = _read_json(path / "adapter_config.json")
    kind = next(iter(held.get("architectures") or []), adapter.get("task_type") or "")
    if kind.endswith("ForSequenceClassification") or kind == "SEQ_CLS":
        raise ModelError(f"{_KEY}: {name} holds a model that gives scores instead of text; expected a language model")
    if not adapter:
        from transformers import AutoModelForCausalLM

        check_stored_config(_KEY, name, local_files_only=options["local_files_only"])
        model, found = AutoModelForCausalLM.from_pretrained(name, dtype="auto", output_loading_info=True, **options)
        if missing := sorted(found["missing_keys"]):
            raise ModelError(
                f"{_KEY}: {name} lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}"
            )
        return model
    if lacks_base(adapter):
        raise ModelError(
            f"{_KEY}: {name} is an adapter whose base model is in no file; export the merged model with checkpoint.hf.merge=true, or "
            "name the run or a checkpoint of it, whose config creates the base"
        )
    if adapter.get("megatron_config") or adapter.get("shadow_model", "mirror") != "mirror":
        raise ModelError(
            f"{_KEY}: {path / 'adapter_config.json'} makes peft import a module or load a further model by its name "
            "(megatron_config, shadow_model); expected an adapter of layers only"
        )
    from peft import AutoPeftModelForCausalLM

    options["local_files_only"] = not hub_reachable()  # the base may be on the hub
    check_stored_config(_KEY, str(adapter["base_model_name_or_path"]), local_files_only=options["local_files_only"])
    return AutoPeftModelForCausalLM.from_pretrained(name, dtype="auto", **options)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{_KEY}: {path} cannot be read ({error})") from error
    return found if isinstance(found, dict) else {}


def _configured_stops(path: Path, model: Any) -> list[int]:
    """Return the stop tokens in the generation config of an export, where those of training are.

    That of an adapter's export is not loaded with the adapter: the model has the one of its base. Raises CheckpointError if one of
    them has anything but numbers as special tokens, which transformers would find when it generates.
    """
    of_model = model.generation_config.to_dict()
    held = _read_json(path / "generation_config.json") or of_model
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        for value in (held.get(name), of_model.get(name)):
            if not all(type(token) is int and abs(token) < 1 << 31 for token in token_list(value)):
                raise CheckpointError(
                    f"{_KEY}: the generation config of {path} has {name}={shorten(value)}, expected the number of a token; correct it"
                )
    return token_list(held.get("eos_token_id"))


def _ready(model: Any, tokenizer: Any, trained: Any, where: str, owner: config.Run | None) -> ChatModel:
    """Return the model on the device, with the attention and the stop tokens of generation."""
    stops = stop_tokens(model, tokenizer, list(trained))
    prepare_for_generation(model)
    text = not tokenizer.chat_template or (
        owner is not None and (isinstance(owner.trainer, CausalTrainer) or _saw_plain_prompts(Path(where)))
    )
    shown = str(relative(Path(where))) if Path(where).is_dir() else where
    return ChatModel(model.to(World().device), tokenizer, stops, shown, text)


def _saw_plain_prompts(path: Path) -> bool:
    """Whether all rows that the run of an export or a checkpoint was trained on were without a chat template."""
    record = RunDirectory(folder).record() if (folder := _run_folder(path)) else {}
    sources = record.get("statistics", {}).get("train", {}).get("sources", {}).values()
    counts = [
        (part.get("without_template", 0), part["rows"] - sum(part["dropped"].values()))
        for part in (source["prepared"] for source in sources)
    ]
    return bool(counts) and all(plain and plain >= kept for plain, kept in counts)
