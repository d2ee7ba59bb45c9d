"""Models from the Hugging Face hub or a local directory in its layout."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_hydra.component import component
from arctic_hydra.distributed import World
from arctic_hydra.errors import ModelError
from arctic_hydra.files.start_paths import newest_run_in
from arctic_hydra.hub import hub_reachable, looks_like_path
from arctic_hydra.human_numbers import shorten
from arctic_hydra.model.base import ModelFactory, unbuildable_problems
from arctic_hydra.model.names import QUANTIZATION
from arctic_hydra.model.score_head import SCORE_WEIGHT, check_score_head, initialize_score_head
from arctic_hydra.redaction import umask_of_user

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


_READ_WITH_DEFAULT = re.compile(r'getattr\(\s*[\w.]*config,\s*"(\w+)"')
_TAKEN_BY_CONSTRUCTOR = re.compile(r'kwargs\.(?:pop|get)\(\s*"(\w+)"')


@component(group="model", name="hf")
class HFModelFactory(ModelFactory):
    """A causal language model loaded with `from_pretrained`."""

    name_or_path: str
    """Hub id such as `Qwen/Qwen3-0.6B`, or a local directory."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    trust_remote_code: bool = False
    """Run model code that comes with the weights; recorded in the run record."""
    hf_config_kwargs: dict[str, Any] = field(default_factory=dict)
    """Values that override the model's own config, such as {attention_dropout: 0.1}."""
    allow_missing_weights: bool = False
    """Accept a checkpoint that lacks weights of the architecture, and initialize those randomly."""

    stored: ClassVar[bool] = True

    def check_files(self) -> Iterator[str]:
        """Yield a problem if a local model directory is missing or contains no model."""
        yield from check_model_directory(self.name_or_path)
        yield from _pointer_problems(Path(self.name_or_path).expanduser())

    @property
    def stored_position_limit(self) -> int | None:
        """Maximum number of positions of a model in a local directory, as `hf_config_kwargs` overrides it; None if unknown."""
        try:
            stored = json.loads((Path(self.name_or_path).expanduser() / "config.json").read_text())
        except (OSError, ValueError, RecursionError):  # on the hub, or damaged, which `create_config` reports
            return None
        values = stored | self.hf_config_kwargs if isinstance(stored, dict) else {}
        text = values.get("text_config")
        limit = (text if isinstance(text, dict) else values).get("max_position_embeddings")
        return limit if isinstance(limit, int) else None

    def create_config(self) -> PretrainedConfig:
        """Return the model's config with `hf_config_kwargs` applied; raises ModelError when it cannot be read."""
        config = read_config(self.name_or_path, self.revision, self.trust_remote_code)
        check_config_values(config, self.hf_config_kwargs, "model.hf_config_kwargs")
        with explain_config_errors("model.hf_config_kwargs"):
            for name, value in self.hf_config_kwargs.items():
                setattr(config, name, value)
        return config

    def create_model(self, config: PretrainedConfig) -> PreTrainedModel:
        """Load the weights; raises ModelError when they cannot be read or some of the architecture's are missing."""
        quantization = vars(config).pop(QUANTIZATION, None)
        kind = next(iter(config.architectures or []), "")
        if kind.endswith("ForSequenceClassification") and not self.is_classifier:
            # Its body may load: with tied embeddings nothing is missing. But it was trained to score, not to predict tokens.
            raise ModelError(
                f"model.name_or_path: {self.name_or_path!r} is a {kind}, which scores texts; expected a language model, or pass "
                "trainer=reward"
            )
        arguments: dict[str, Any] = {}
        if quantization is not None:  # weights in few bits are made on the device of this rank
            arguments = {"quantization_config": quantization, "device_map": {"": World.from_env().device}}
        self.check_dtype()
        self.register_attention()
        try:
            with self.explain_attention_errors(config), umask_of_user():
                model, info = self.auto_class.from_pretrained(
                    os.path.expanduser(self.name_or_path),
                    config=config,
                    dtype=self.torch_dtype,
                    attn_implementation=self.attn_implementation,
                    trust_remote_code=self.trust_remote_code,
                    output_loading_info=True,
                    **arguments,
                    **hub_arguments(self.name_or_path, self.revision),
                )
        except ModelError:
            raise
        except Exception as error:
            # safetensors raises its own SafetensorError, transformers OSError, ValueError, RuntimeError or ImportError.
            raise load_error(self.name_or_path, error, self.hf_config_kwargs) from error
        generation = model.generation_config.to_dict() if model.can_generate() else {}  # a classifier has none
        for name, problem in unbuildable_problems(generation):
            raise ModelError(
                f"model.name_or_path: {self.name_or_path}: generation_config.json: {name}: {problem}; correct it"
            )
        missing = sorted(info["missing_keys"])
        if self.is_classifier:
            check_score_head(model)
            if SCORE_WEIGHT in missing:  # the weights are those of a causal model
                missing.remove(SCORE_WEIGHT)
                initialize_score_head(model)
        if missing and not self.allow_missing_weights:
            raise ModelError(
                f"model.name_or_path: {self.name_or_path!r} lacks {len(missing)} weights of {type(model).__name__}, such as "
                f"{', '.join(missing[:3])}; fix the checkpoint, or pass model.allow_missing_weights=true to initialize them randomly"
            )
        if quantization is not None:
            keep_4bit_differentiable(model)
        return self.finish(model)


def keep_4bit_differentiable(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking 4-bit weights at the first evaluation on the CPU.

    On a CPU with AVX512-BF16 the repacking is permanent, and the new form has no backward pass: from then on, all
    gradients below such a layer are silently zero (bitsandbytes 0.50, `Linear4bit.forward`).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def check_model_directory(name_or_path: str) -> Iterator[str]:
    """Yield a problem if a name can only mean a local directory, but no directory with a model's config exists there."""
    if not looks_like_path(name_or_path):
        return
    folder = Path(name_or_path).expanduser()
    if not folder.is_dir():
        yield f"name_or_path: got {name_or_path!r}, which is not a directory; pass a hub id or a local model directory"
    elif not (folder / "config.json").is_file():
        hint = ""
        if (folder / "adapter_config.json").is_file():
            hint = (
                "; it holds an adapter: merge it first (task=export checkpoint.hf.merge=true), or go on with init_from"
            )
        elif ((export := (newest_run_in(folder) or folder) / "export") / "config.json").is_file():
            hint = f"; did you mean the export in {export}?"
        yield f"name_or_path: got {name_or_path!r}, which contains no config.json; expected a model directory{hint}"


def _pointer_problems(folder: Path) -> Iterator[str]:
    """Yield a problem if a file of weights is only git-lfs's reference to it."""
    for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        if file.is_file() and file.stat().st_size < 1024 and file.read_bytes().startswith(b"version https://git-lfs"):
            yield f"name_or_path: {file} is a git-lfs pointer, not the weights; run `git lfs pull` in {folder}"
            return


def read_config(name_or_path: str, revision: str | None, trust_remote_code: bool) -> PretrainedConfig:
    """Return the config of a hub id or a local directory; raises ModelError when it cannot be read."""
    from transformers import AutoConfig

    place = hub_arguments(name_or_path, revision)
    try:
        with umask_of_user():
            check_stored_config("model.name_or_path", name_or_path, **place)
            return AutoConfig.from_pretrained(
                os.path.expanduser(name_or_path),
                trust_remote_code=trust_remote_code,
                **place,
            )
    except ModelError:
        raise
    except Exception as error:  # the configs of transformers compute with their values, and raise whatever that raises
        raise load_error(name_or_path, error) from error


def check_stored_config(key: str, name_or_path: str, **place: Any) -> None:
    """Raise ModelError for a config from which no model may be built, before transformers builds its own config of it."""
    from transformers import PretrainedConfig

    stored, _ = PretrainedConfig.get_config_dict(os.path.expanduser(name_or_path), **place)
    if not isinstance(stored, dict) or not isinstance(stored.get("architectures") or [], list):
        raise ModelError(
            f"{key}: {name_or_path}: config.json: got {shorten(stored)}, expected an object of values, with a list of architectures"
        )
    for name, problem in unbuildable_problems(stored):
        raise ModelError(f"{key}: {name_or_path}: config.json: {name}: {problem}; use a model whose config is sound")


def check_config_values(
    config: PretrainedConfig, values: dict[str, Any], key: str, *, constructed: bool = False
) -> None:
    """Raise ModelError for a value without effect: the config does not have it, and the model's code does not read it.

    The code reads some values that a config may lack, such as the `head_dim` of Qwen3-MoE. Other values are read only by the
    config's constructor, such as the `global_head_dim` of Gemma 4; they are accepted if the config is `constructed` from
    the values.
    """
    for name in values:
        if not (_has(config, name) or name in _read_by_code(type(config), constructed)):
            raise ModelError(f"{key}.{name}: {type(config).__name__} has no such value; see its documentation")


def _has(config: PretrainedConfig, name: str) -> bool:
    try:
        return hasattr(config, name)
    except RuntimeError:  # the value differs between layers, see `layer_configs`
        return True


def _read_by_code(kind: type[PretrainedConfig], constructed: bool) -> set[str]:
    """Return the values that the architecture's code reads from a config, or its constructor takes, with a default."""
    folder = Path(inspect.getfile(kind)).parent
    found = {
        name for path in folder.glob("modeling_*.py") for name in _READ_WITH_DEFAULT.findall(path.read_text("utf-8"))
    }
    if constructed:
        found |= set(_TAKEN_BY_CONSTRUCTOR.findall(inspect.getsource(kind)))
    return found


def hub_arguments(name_or_path: str, revision: str | None) -> dict[str, Any]:
    """Return revision and `local_files_only`: offline, the hub's client would retry for a minute before using its cache."""
    return {"revision": revision, "local_files_only": looks_like_path(name_or_path) or not hub_reachable()}


@contextmanager
def explain_config_errors(key: str) -> Iterator[None]:
    """Turn an error of transformers about the config values under `key` into a ModelError."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # its checks define their own errors, its code raises any
        raise ModelError(f"{key}: {_in_one_line(error)}; see the documentation of the architecture's config") from error


def _in_one_line(error: Exception) -> str:
    from huggingface_hub.errors import StrictDataclassError

    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    if isinstance(error, StrictDataclassError):  # the cause comes last, its type before it
        return lines[-1]
    return lines[0] if isinstance(error, ImportError | OSError | ValueError) else f"{type(error).__name__}: {lines[0]}"


def load_error(name_or_path: str, error: Exception, changed: dict[str, Any] | None = None) -> ModelError:
    """Return an error that says in one line why a model cannot be loaded; `changed` are values that replace its config's."""
    first = _in_one_line(error)
    hint = "check the name, your access and the network, or pass a local directory"
    if looks_like_path(name_or_path):
        hint = "check the files of this directory, or pass another model"
    if changed:
        hint = f"check model.hf_config_kwargs ({', '.join(changed)}) and the model's files"
    if "trust_remote_code" in str(error):
        hint = "pass model.trust_remote_code=true if you trust that code"
    if "ignore_mismatched_sizes" in first:  # transformers prints the list of them and refers to it
        first, hint = "its weights have other shapes than its config.json says", f"check {hint.removeprefix('check ')}"
    return ModelError(f"model.name_or_path: {name_or_path!r} cannot be loaded: {first} ({hint})")
