"""Base of the adapters: peft's configs and wrapper, with early errors that name the config key."""

from __future__ import annotations

import logging
import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_hydra.component import SEQUENCE_CLASSIFIER, class_name
from arctic_hydra.converter.base import ModelConverter, Phase
from arctic_hydra.converter.peft import catalog
from arctic_hydra.errors import ConfigError, did_you_mean
from arctic_hydra.human_numbers import convert_leaves, shorten
from arctic_hydra.patterns import PATTERN_ERRORS, near_names, time_limit

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_PROMPT = (
    "it prepends virtual tokens to the text, which shifts every supervised position; choose a type that adapts layers"
)
UNSUPPORTED = {
    **dict.fromkeys(
        ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE"), _PROMPT
    ),
    "ADALORA": "it prunes ranks by gradients that the engine has already freed; use LORA",
    "ADAPTION_PROMPT": "it replaces the attention that keeps packed documents apart; use LORA",
    "POLY": "it needs a task id for every example; use LORA",
    "XLORA": "it mixes adapters that are already trained; use LORA",
}


@dataclass(kw_only=True)
class PeftSlot(ModelConverter):
    """Type of a run's field `peft`."""

    phase: ClassVar[Phase] = Phase.adapters
    adapts: ClassVar[bool] = True
    """Whether the model is wrapped and its own weights are frozen."""

    @property
    def trains_in_full(self) -> list[str]:
        """Modules that train in full, in addition to the adapter."""
        return []

    def quantization_config(self, dtype: torch.dtype) -> Any:
        """Return transformers' config for quantizing the frozen weights while loading, or None for no quantization."""
        return None

    def bytes_per_weight(self, weight: torch.Tensor) -> float:
        """Return the bytes per element of a frozen linear layer's weight [out, in] once the model is loaded."""
        return float(weight.itemsize)

    @abstractmethod
    def convert(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model, wrapped in a `peft.PeftModel` if there is an adapter."""


@dataclass(kw_only=True)
class PeftFactory(PeftSlot):
    """Base of the adapters; a subclass defines peft's type and the values of its config."""

    config: dict[str, Any] = field(default_factory=dict)
    """Further values of peft's config for this type, such as {exclude_modules: [lm_head]}."""

    def validate(self) -> None:
        if named := sorted({"auto_mapping", "megatron_config", "megatron_core"} & self.config.keys()):
            raise ValueError(f"config.{named[0]}: makes peft import a module by its name; remove it")
        if self.config.get("shadow_model", "mirror") != "mirror":
            raise ValueError(
                f"config.shadow_model: got {self.config['shadow_model']!r}, expected mirror; peft would load another model "
                "without the checks of model.name_or_path"
            )
        self.config = convert_leaves(self.config)

    @property
    def trains_in_full(self) -> list[str]:
        """Modules that train in full, in addition to the adapter."""
        return list(self.values().get("modules_to_save") or [])

    @property
    @abstractmethod
    def type_name(self) -> str:
        """peft's name for the type: LORA, IA3, ..."""

    @abstractmethod
    def values(self) -> dict[str, Any]:
        """Return the values of peft's config."""

    def check_environment(self) -> Iterator[str]:
        """Yield a problem for each key of `config` that the installed peft does not have."""
        known = catalog.types().get(self.type_name, frozenset())
        for key in self.config.keys() - known:
            hint = did_you_mean(key, known) or f"; it has {', '.join(sorted(known))}"
            yield f"config.{key}: peft's {self.type_name} has no such key{hint}"

    def convert(self, model: torch.nn.Module) -> torch.nn.Module:
        """Freeze the model and return it in a `peft.PeftModel`; adapter weights take the model's dtype.

        The optimizer holds their fp32 copies, as for all weights. Raises ConfigError for values that peft rejects and for
        modules that the model does not have.
        """
        import peft

        values = self.values()
        added = getattr(model, "added_token_ids", [])
        if added:
            values = self._train_tokens(model, values, added)
        names = [name for name, _ in model.named_modules() if name]
        check_modules("peft.target_modules", values.get("target_modules"), names)
        check_modules("peft.modules_to_save", values.get("modules_to_save"), names)
        values = self._keep_tied(model, values)
        if values.get("target_modules") == "all-linear":
            check_linear(model)
        if "save_projection" in catalog.types()[self.type_name]:
            # Its fixed projections come from a seed and are not parameters; a checkpoint holds parameters only.
            values = {"save_projection": False, **values}
        classifies = self._run is not None and self._run.auto_class == SEQUENCE_CLASSIFIER
        task = "SEQ_CLS" if classifies else "CAUSAL_LM"
        if values.get("modules_to_save"):
            values = {
                **values,
                "modules_to_save": [*values["modules_to_save"]],
            }  # peft appends the head of a classifier
        config_class = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(self.type_name)]
        try:
            config = config_class(task_type=task, **values)
            wrapped = peft.get_peft_model(model, config, autocast_adapter_dtype=False)  # type: ignore[arg-type]
        except (AttributeError, ValueError, TypeError, KeyError, NotImplementedError, ImportError) as error:
            first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ConfigError(
                f"peft: {self.type_name} cannot be applied to {class_name(model)}: {first.strip()}"
            ) from error
        return wrapped

    def _train_tokens(self, model: Any, values: dict[str, Any], added: list[int]) -> dict[str, Any]:
        """Return values that also train the rows of added tokens, in each table that does not train in full."""
        if values.get("trainable_token_indices"):
            return values
        names = {module: name for name, module in model.named_modules()}
        tables = [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module]
        saved = values.get("modules_to_save") or []
        left = [module for module in tables if not is_named(saved, names[module])]
        if not left or (ties_embeddings(model) and len(left) < len(tables)):
            return values
        if problem := self._rows_problem(left, names, values, len(added)):
            raise ConfigError(problem)
        chosen = left[:1] if ties_embeddings(model) else left
        return {**values, "trainable_token_indices": {names[module].split(".")[-1]: added for module in chosen}}

    def _rows_problem(self, tables: list[Any], names: dict[Any, str], values: dict[str, Any], added: int) -> str | None:
        """Return why peft cannot train `added` rows of the embedding and head in `tables`, or None."""
        short = [names[module].split(".")[-1] for module in tables]
        saved = [*(values.get("modules_to_save") or []), *short]
        if "trainable_token_indices" not in catalog.types()[self.type_name]:
            return (
                f"tokenizer.add_tokens: {added} tokens were added, but peft's {self.type_name} cannot train their "
                f"rows; use peft=lora, or list {' and '.join(short)} in peft.config.modules_to_save"
            )
        if self.trainer.zero_stage == 3:
            return zero3_rows_problem(added, saved)
        targets, excluded = values.get("target_modules"), values.get("exclude_modules") or []
        for module in tables:
            name = names[module]
            listed = targets not in (None, "all-linear") and is_named(targets, name)
            if listed and not is_named(excluded, name):
                return (
                    f"peft.target_modules: got {name}, but {added} tokens were added, and peft cannot both adapt that layer and "
                    f"train their rows; leave it out (the rows then train), or pass peft.modules_to_save=[{','.join(saved)}]"
                )
            if getattr(module, "bias", None) is not None:
                return (
                    f"tokenizer.add_tokens: {added} tokens were added, but peft drops the bias of {name} when it trains only "
                    f"their rows; pass peft.modules_to_save=[{','.join(saved)}]"
                )
        return None

    def _keep_tied(self, model: Any, values: dict[str, Any]) -> dict[str, Any]:
        """Return values that keep embedding and head tied; peft would otherwise train two copies."""
        if not ties_embeddings(model):
            return values
        tables = [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module]
        names = [name for name, module in model.named_modules() if module in tables]
        targets, saved = values.get("target_modules"), values.get("modules_to_save") or []
        adapted = [] if targets in (None, "all-linear") else [name for name in names if is_named(targets, name)]
        whole = [name for name in names if is_named(saved, name)]
        can_tie = "ensure_weight_tying" in catalog.types()[self.type_name]
        if adapted or (whole and not can_tie):
            raise ConfigError(
                f"peft: {', '.join(adapted or whole)} of this model shares its weight with another module, and {self.type_name} "
                "would untie them; leave it out, or use peft=lora with peft.modules_to_save=[embed_tokens], which trains both as one"
            )
        return {**values, "ensure_weight_tying": True} if whole else values


def zero3_rows_problem(added: int, tables: list[str]) -> str:
    """Return the error for added tokens at ZeRO-3, where peft cannot train single rows of the sharded `tables`."""
    return (
        f"tokenizer: got {added} tokens to add, but at ZeRO-3 peft cannot train single rows of an embedding; pass "
        f"peft.modules_to_save=[{','.join(tables)}] (all rows train; embed_tokens alone if they are tied), or deepspeed=zero2"
    )


def ties_embeddings(model: Any) -> bool:
    """Whether the config of the model says that embedding and head share one weight; a classifier has no such head."""
    return bool(model.config.get_text_config().tie_word_embeddings) and model.get_output_embeddings() is not None


def check_modules(key: str, wanted: Any, names: list[str]) -> None:
    """Raise ConfigError for a module that the model does not have, with similar names, and for a pattern without end."""
    if wanted is None or wanted == "all-linear":
        return
    listed = [wanted] if isinstance(wanted, str) else list(wanted)
    with time_limit(f"{key}: got {shorten(wanted)}", "the names of the modules"):
        try:
            found = {item: sum(is_named(item if wanted is item else [item], name) for name in names) for item in listed}
        except PATTERN_ERRORS as error:
            raise ConfigError(
                f"{key}: got {shorten(wanted)}, which is not a valid regular expression ({error}); expected a pattern of whole "
                "names, or a list of names"
            ) from error
    missing = [item for item in listed if not found[item]]
    if missing and isinstance(wanted, str) and any(is_named([wanted], name) for name in names):
        raise ConfigError(
            f"{key}: got the text {wanted!r}, a pattern of whole names, which matches none; pass {key}=[{wanted}], a list, for "
            "the modules whose names end with it"
        )
    if missing:
        raise ConfigError([f"{key}: {name!r} matches no module{near_names(name, names)}" for name in missing])


def check_linear(model: Any) -> None:
    """Raise ConfigError for a model that has no linear layer besides its head, which `all-linear` leaves out."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if not any(isinstance(module, nn.Linear | Conv1D) for module in model.modules() if module is not head):
        raise ConfigError(
            f"peft.target_modules: got all-linear, but {class_name(model)} has no linear layer besides its head; list layers "
            "that peft can adapt, or pass peft=none"
        )


def is_named(wanted: str | list[str], name: str) -> bool:
    """Match names as peft does: a string is a pattern of whole names, a list entry is the end of a name."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(name == item or name.endswith(f".{item}") for item in wanted)
