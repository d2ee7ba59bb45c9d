"""Components: dataclasses that are schema, factory and documentation in one, and their registry.

A config can only name registered components: those of this package, and those that installed extensions register when
they are imported through the entry point group `arctic_hydra` (`files.extensions`). Nothing is looked up by its dotted path.
"""

from __future__ import annotations

import re
from abc import ABC
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Protocol,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from arctic_hydra.errors import DuplicateOption, FieldError
from arctic_hydra.files import code_file
from arctic_hydra.files.extensions import extension_of
from arctic_hydra.human_numbers import NumberRule

if TYPE_CHECKING:
    import torch

    from arctic_hydra.distributed import World

MISSING_VALUE: Any = "???"
"""The value of a required key that is not set, as OmegaConf writes it."""
_REGISTRY: dict[tuple[str, str], type] = {}
BY_TARGET: dict[str, type] = {}
"""The classes that a config may name, by the exact text of `_target_`."""
C = TypeVar("C", bound=type)


CAUSAL_LM, SEQUENCE_CLASSIFIER = "AutoModelForCausalLM", "AutoModelForSequenceClassification"
"""Classes of transformers that create the model; the trainer chooses one."""


class RunContext(Protocol):
    """The part of its run that a component may use; the run's trainer implements it."""

    zero_stage: int
    """ZeRO stage of the engine."""

    @property
    def auto_class(self) -> str:
        """Name of the class of transformers that creates the kind of model that the trainer trains."""

    @property
    def world(self) -> World:
        """This rank among all."""

    @property
    def device(self) -> torch.device:
        """The device of this rank."""

    @property
    def training_horizon(self) -> int:
        """Optimizer steps of the whole run."""

    @property
    def warmup_steps(self) -> int:
        """Optimizer steps of the schedule's warm-up."""

    @property
    def global_step(self) -> int:
        """Optimizer steps completed."""

    def notify(self, event: str, component: Component, facts: dict[str, Any]) -> None:
        """Call `on_<event>` of every callback; a value that one returns replaces one of the facts."""

    def listeners(self, event: str) -> Sequence[Any]:
        """Return the callbacks, of `callback.base.Callback`, that define `on_<event>`."""

    def weights(self, *patterns: str, writes: bool = False) -> AbstractContextManager[dict[str, torch.Tensor]]:
        """Return a context with whole fp32 weights by name, at every ZeRO stage."""


@dataclass(kw_only=True)
class Component(ABC):
    """Base of everything that a config builds; converts numeric fields, and is attached to the trainer before use.

    Subclasses are keyword-only dataclasses whose fields ARE the config. `validate()` checks the fields of this component;
    `Run.check()` performs the checks across components.
    """

    option_group: ClassVar[str] = ""
    """Config group in which the class is registered; empty if it is not registered."""
    option_name: ClassVar[str] = ""
    """Name under which the class is registered in its group."""
    _run: ClassVar[RunContext | None] = None  # of an instance, once it is attached
    excluded_from_id: ClassVar[frozenset[str]] = frozenset()
    """Fields that do not change the result of a run."""
    component_version: ClassVar[int] = 1
    """Part of the identity of every run that uses the component; increment it when a default or the numerics change."""

    def __post_init__(self) -> None:
        if problems := convert_fields(type(self), vars(self)):
            raise FieldError(problems)
        self.validate()

    def validate(self) -> None:
        """Check fields; pure (no disk, no network). Raise ValueError, or FieldError to name several fields."""

    def check_environment(self) -> Iterator[str]:
        """Yield a problem, as `<field>: <text>`, for everything that this machine lacks, such as a path or a device.

        Read-only; called before torch is imported.
        """
        return iter(())

    @classmethod
    def identity_name(cls) -> str:
        """Return the name of the class in run ids and cache keys: `<group>/<name>`, independent of its module.

        For an extension's component, the name of the extension's entry point precedes it. For a class that is not
        registered, it is the qualified name of the class.
        """
        if not vars(cls).get("option_name"):
            return f"{cls.__module__}.{cls.__qualname__}"
        name = f"{cls.option_group}/{cls.option_name}"
        owner = extension_of(cls.__module__.partition(".")[0])
        return f"{owner}:{name}" if owner else name

    @contextmanager
    def event(self, name: str, **facts: Any) -> Iterator[dict[str, Any]]:
        """Notify the run's callbacks of the start and end of `name`; notifies nobody before a trainer is attached.

        Yields `facts`, in which callbacks replace values: read them from there, and add results for the callbacks of the
        end, in the body and after it. An error in the body skips the end.
        """
        if self._run is not None:
            self._run.notify(f"{name}_start", self, facts)
        yield facts
        if self._run is not None:
            self._run.notify(f"{name}_end", self, facts)

    def attach(self, trainer: RunContext) -> None:
        """Attach this component and the components it contains to the trainer; called before any other use."""
        self._run = trainer  # type: ignore[misc]
        for item in fields(self):
            value = getattr(self, item.name)
            for child in value.values() if isinstance(value, dict) else [value]:
                if isinstance(child, Component):
                    child.attach(trainer)

    @property
    def trainer(self) -> RunContext:
        """The trainer of this run."""
        assert self._run is not None, f"{type(self).__name__}.trainer was read before a trainer was attached"
        return self._run

    @property
    def device(self) -> torch.device:
        """The device of this rank."""
        return self.trainer.device

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.trainer.world.size

    @property
    def global_rank(self) -> int:
        """Index of this process among all ranks."""
        return self.trainer.world.rank


@dataclass_transform(kw_only_default=True, field_specifiers=(field,))
def component(*, group: str, name: str) -> Callable[[C], C]:
    """Register a class as option `name` of config group `group`.

    The class becomes a keyword-only dataclass with a `_target_` field, its schema is `schema/<group>/<name>`, and a config can
    name it as `_target_`. In the file of `code=`, `code:` precedes the name. Raises DuplicateOption if the option exists.
    """

    def register(cls: C) -> C:
        target = f"{cls.__module__}.{cls.__qualname__}"
        option = f"{code_file.PREFIX}{name}" if code_file.owns(cls.__module__) else name
        if taken := _REGISTRY.get((group, option)):
            raise DuplicateOption(
                f"{group}={option} is already {taken.__module__}.{taken.__qualname__}; {target} needs another name",
                (group, option),
            )
        cls.__annotations__ = {"_target_": "str", **cls.__dict__.get("__annotations__", {})}
        cls._target_ = target  # type: ignore[attr-defined]
        cls.option_group, cls.option_name = group, option  # type: ignore[attr-defined]
        decorated: Any = dataclass(kw_only=True)(cls)
        if not target.startswith("arctic_hydra."):  # the tests check ours, so that no command has to
            check_schema(decorated)
        _REGISTRY[group, option] = decorated
        BY_TARGET[target] = decorated
        return decorated  # type: ignore[no-any-return]

    return register


def check_schema(cls: Any) -> None:
    """Raise an error if OmegaConf cannot make a schema of a component, or if keys of it could not be set."""
    from omegaconf import OmegaConf

    _refuse_types(cls)
    _refuse_groups(cls)
    OmegaConf.structured(cls)


def _refuse_types(cls: Any) -> None:
    """Raise TypeError for a field of a type that no plain config can hold."""
    for name, hint in ((item.name, hints_of(cls)[item.name]) for item in fields(cls)):
        if not _is_plain(hint):
            text = hint.__name__ if isinstance(hint, type) else str(hint).removeprefix("typing.")
            plain = "str, int, float, bool, an Enum, or a list or dict of them"
            usual = "an Enum with these members" if "Literal[" in text else plain
            raise TypeError(f"{cls.__qualname__}.{name}: a config cannot hold a {text}; declare {usual} instead")


def _is_plain(hint: Any) -> bool:
    """Whether a config can hold values of a type: those of YAML, enums, components and groups of fields."""
    if get_origin(hint) in (Union, UnionType, list, dict):
        return all(_is_plain(part) for part in get_args(hint))
    if isinstance(hint, type) and (issubclass(hint, Enum | Component) or is_settings(hint)):
        return True
    return hint in (Any, str, int, float, bool, NoneType, list, dict)


def _refuse_groups(cls: Any) -> None:
    """Raise TypeError for a field of a form in which a group of fields cannot be set, here or in a nested group."""
    hints = hints_of(cls)
    for item in fields(cls):
        where, hint = f"{cls.__qualname__}.{item.name}", hints[item.name]
        group = next((kind for kind in (hint, *get_args(hint)) if is_settings(kind)), None)
        if group is None:
            continue
        _refuse_types(group)
        _refuse_groups(group)
        name = group.__name__
        if get_origin(hint) in (list, dict):
            raise TypeError(
                f"{where}: a config cannot hold several {name} in one field; declare a field `<name>: {name} = "
                f"field(default_factory={name})` for each, or list[dict[str, Any]] and check it in `validate`"
            )
        if default_of(item) is None:
            raise TypeError(
                f"{where}: the command line cannot set keys of a {name} that is unset; declare `{item.name}: {name} = "
                f"field(default_factory={name})`, with a field of {name} that switches it off, such as `enabled: bool = False`"
            )


def convert_fields(cls: Any, values: dict[str, Any]) -> list[tuple[str, str]]:
    """Convert the values of a dataclass in place: names to enums, human-friendly numbers to numbers, also in nested dataclasses.

    Returns the name and the text of each problem.
    """
    problems: list[tuple[str, str]] = []
    enums = _enum_fields(cls)
    for item in fields(cls):
        name, value = item.name, values.get(item.name)
        rule = item.metadata.get("number")
        if name in enums and name in values:
            try:
                values[name] = _with_members(value, enums[name])
            except ValueError as error:
                problems.append((name, str(error)))
        elif isinstance(rule, NumberRule) and value is not None and value != MISSING_VALUE:
            try:
                values[name] = rule.convert(value)
            except ValueError as error:
                problems.append((name, str(error)))
        elif is_settings(type(value)):
            nested: Any = value
            inside = {inner.name: getattr(nested, inner.name) for inner in fields(nested)}
            problems += [(f"{name}.{inner}", text) for inner, text in convert_fields(type(value), inside)]
            for inner, converted in inside.items():
                object.__setattr__(value, inner, converted)  # also of a frozen class, and with slots
    return problems


def _with_members(value: Any, hint: Any) -> Any:
    """Return a value of a type with the members of enums in place of their names, which plain configs hold.

    Raises ValueError for a name that is none of them.
    """
    origin, parts = get_origin(hint), [part for part in get_args(hint) if part is not NoneType]
    if origin in (Union, UnionType) and value is not None:
        named = (
            part[value] for part in parts if _is_enum(part) and isinstance(value, str) and value in part.__members__
        )
        return _with_members(value, parts[0]) if len(parts) == 1 else next(named, value)
    if origin is list and isinstance(value, list | tuple):
        return [_with_members(each, parts[0]) for each in value]
    if origin is dict and isinstance(value, dict):
        return {_with_members(key, parts[0]): _with_members(each, parts[1]) for key, each in value.items()}
    if not _is_enum(hint) or isinstance(value, hint):
        return value
    if isinstance(value, str) and value in hint.__members__:
        return hint[value]
    raise ValueError(f"got {value!r}, expected one of {', '.join(hint.__members__)}")


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Enum)


def class_name(model: Any) -> str:
    """Return the name of a model's class; that of a registered model is its own class, not its wrapper."""
    return str(getattr(model, "model_name", type(model).__name__))


def choice(default: Any, values: Sequence[Any]) -> Any:
    """Return a dataclass field with few valid values, which help and completion list; the class's `validate` has to check them."""
    return field(default=default, metadata={"choices": tuple(values)})


def is_settings(hint: Any) -> bool:
    """Whether a type is a dataclass that is not a component: a group of fields within one."""
    return isinstance(hint, type) and is_dataclass(hint) and not issubclass(hint, Component)


def default_of(item: Field[Any]) -> Any:
    """Return the default of a dataclass field, or MISSING if it has none."""
    return item.default_factory() if item.default_factory is not MISSING else item.default


def registered(group: str | None = None) -> dict[tuple[str, str], type]:
    """Return the registered components of one group, or of all groups, by (group, name)."""
    return {key: cls for key, cls in _REGISTRY.items() if group in (None, key[0])}


def register_root(cls: type[Component]) -> None:
    """Register the class of the root config."""
    cls.option_group, cls.option_name = "schema", "run"
    BY_TARGET[f"{cls.__module__}.{cls.__qualname__}"] = cls


@cache
def hints_of(cls: type) -> dict[str, Any]:
    """Return the resolved types of the fields of a class."""
    return dict(get_type_hints(cls))


@cache
def _enum_fields(cls: type) -> dict[str, Any]:
    """Return the types of the fields that hold members of enums, alone or in an optional, a list or a dict."""
    return {name: hint for name, hint in hints_of(cls).items() if _holds_enum(hint)}


def _holds_enum(hint: Any) -> bool:
    return _is_enum(hint) or any(map(_holds_enum, get_args(hint)))


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts, by dotted key."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    parts = (flatten(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in tree.items())
    return {key: value for leaves in parts for key, value in leaves.items()}


def to_yaml(content: Any) -> str:
    """Return plain content as YAML that OmegaConf reads and resolves to equal content: `${` in a text is escaped."""
    from omegaconf import OmegaConf  # not at the top: ranks do without it

    return OmegaConf.to_yaml(OmegaConf.create(_escaped(content)))


def _escaped(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _escaped(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_escaped(value) for value in node]
    return escape_interpolations(node) if isinstance(node, str) else node


def escape_interpolations(text: str) -> str:
    """Return a text that OmegaConf resolves to `text`: `${` is escaped."""
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)
