"""Components: dataclasses that are schema, factory and documentation in one, and their instantiation from configs.

A class named in a config is imported only if it is a registered component, or belongs to a package that an installed
extension declares through the entry point group `arctic_hydra`.
"""

from __future__ import annotations

import importlib
from abc import ABC
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import Enum
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, dataclass_transform, get_type_hints

from hydra.core.config_store import ConfigStore
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from arctic_hydra.errors import ConfigError, FieldError, TargetError
from arctic_hydra.human_numbers import NumberRule

if TYPE_CHECKING:
    import torch

    from arctic_hydra.distributed import World

ENTRY_POINT_GROUP = "arctic_hydra"

_REGISTRY: dict[tuple[str, str], type] = {}
_ALLOWED_TARGETS: set[str] = set()
_EXTENSION_PACKAGES: set[str] = set()

# Targets that Hydra instantiates from its own node: launchers, sweepers and standard logging classes.
_HYDRA_PREFIXES = ("hydra._internal.core_plugins.", "hydra_plugins.arctic_hydra.")
_LOGGING_NAMES = {
    "logging.StreamHandler",
    "logging.FileHandler",
    "logging.NullHandler",
    "logging.Formatter",
    "logging.Filter",
    "ext://sys.stdout",
    "ext://sys.stderr",
}

C = TypeVar("C", bound=type)


class RunContext(Protocol):
    """The part of its run that a component may use; the run's trainer implements it."""

    zero_stage: int
    """ZeRO stage of the engine."""

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
        """Call `on_<event>` of every callback."""


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
    outside_identity: ClassVar[frozenset[str]] = frozenset()
    """Fields that do not change the result of a run."""
    component_version: ClassVar[int] = 1
    """Part of the identity of every run that uses the component; increment it when a default or the numerics change."""

    def __post_init__(self) -> None:
        problems: list[tuple[str, str]] = []
        for name, enum in _enum_fields(type(self)).items():
            value = getattr(self, name)
            if isinstance(value, str) and value in enum.__members__:
                setattr(self, name, enum[value])  # configs loaded from JSON hold names
            elif not isinstance(value, enum):
                problems.append((name, f"got {value!r}, expected one of {', '.join(enum.__members__)}"))
        for item in fields(self):
            rule = item.metadata.get("number")
            value = getattr(self, item.name)
            if isinstance(rule, NumberRule) and value is not None and value != "???":
                try:
                    setattr(self, item.name, rule.convert(value))
                except ValueError as error:
                    problems.append((item.name, str(error)))
        if problems:
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
        owner = _extension_of(cls.__module__.partition(".")[0])
        return f"{owner}:{name}" if owner else name

    @contextmanager
    def event(self, name: str, **facts: Any) -> Iterator[None]:
        """Notify the run's callbacks of the start and end of `name`; does nothing before a trainer is attached."""
        if self._run is None:
            yield
            return
        self._run.notify(f"{name}_start", self, facts)
        yield
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

    The class becomes a keyword-only dataclass with a `_target_` field, its schema is stored as
    `schema/<group>/<name>`, and its target is added to the allow-list. Raises ValueError if the option exists.
    """

    def register(cls: C) -> C:
        target = f"{cls.__module__}.{cls.__qualname__}"
        if (group, name) in _REGISTRY:
            taken = _REGISTRY[group, name]
            raise ValueError(
                f"{group}={name} is already {taken.__module__}.{taken.__qualname__}; {target} needs another name"
            )
        cls.__annotations__ = {"_target_": "str", **cls.__dict__.get("__annotations__", {})}
        cls._target_ = target  # type: ignore[attr-defined]
        cls.option_group, cls.option_name = group, name  # type: ignore[attr-defined]
        decorated: Any = dataclass(kw_only=True)(cls)
        _REGISTRY[group, name] = decorated
        _ALLOWED_TARGETS.add(target)
        ConfigStore.instance().store(group=f"schema/{group}", name=name, node=decorated, provider="arctic_hydra")
        return decorated  # type: ignore[no-any-return]

    return register


def default_of(item: Field[Any]) -> Any:
    """Return the default of a dataclass field, or MISSING if it has none."""
    return item.default_factory() if item.default_factory is not MISSING else item.default


def registered(group: str | None = None) -> dict[tuple[str, str], type]:
    """Return the registered components of one group, or of all groups, by (group, name)."""
    return {key: cls for key, cls in _REGISTRY.items() if group in (None, key[0])}


def store_root(cls: type[Component]) -> None:
    """Store the schema of the root config and add its target to the allow-list."""
    cls.option_group, cls.option_name = "schema", "run"
    _ALLOWED_TARGETS.add(f"{cls.__module__}.{cls.__qualname__}")
    ConfigStore.instance().store(group="schema", name="run", node=cls, provider="arctic_hydra")


def extensions() -> list[EntryPoint]:
    """Return the entry points of installed extension packages, sorted by name."""
    return sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name)


@cache
def _extension_of(package: str) -> str:
    """Return the entry point that registers the components of a package; empty for this package and unregistered ones."""
    names = [point.name for point in extensions() if point.module.partition(".")[0] == package]
    return names[0] if names else ""


def load_extensions() -> None:
    """Import each installed extension, which registers its components, and allow its package as a target.

    Raises ConfigError with the name of the distribution if an extension cannot be imported.
    """
    for point in extensions():
        _EXTENSION_PACKAGES.add(point.module.partition(".")[0])
        try:
            importlib.import_module(point.module)
        except Exception as error:
            owner = point.dist.name if point.dist else point.name
            raise ConfigError(
                f"extension {point.name!r} of package {owner!r} cannot be imported: {type(error).__name__}: {error}; "
                f"fix it, or `pip uninstall {owner}`"
            ) from error


def check_targets(tree: Any, where: str = "") -> None:
    """Reject every `_target_`, and every class in a logging config, that is not on the allow-list.

    Works on plain containers, before anything is imported. Raises TargetError with one line per rejected target.
    """
    refused = [
        f"{key}: got {name!r}, which is not allowed to be imported from a config (nothing was imported); expected a "
        f"registered component of arctic_hydra or of an installed extension; choose one with {_remedy(key)}, or declare "
        f"your own package with the entry point group {ENTRY_POINT_GROUP!r} (CONTRIBUTING.md)"
        for key, name in _named_code(tree, where)
        if not _is_allowed(name, in_hydra=key.startswith("hydra."))
    ]
    if refused:
        raise TargetError(refused)


def _remedy(key: str) -> str:
    group = key.split(".")[0]
    options = ", ".join(sorted(name for known, name in _REGISTRY if known == group))
    return f"{group}=<one of {options}>" if options else "its config group"


def _named_code(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        in_logging = key.startswith(("hydra.job_logging", "hydra.hydra_logging"))
        for name, value in node.items():
            child = f"{key}.{name}" if key else str(name)
            if name == "_target_" or (in_logging and name in ("()", "class", "factory")):
                if value not in (None, "???"):
                    yield child, value
            else:
                yield from _named_code(value, child)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _named_code(value, f"{key}[{index}]")
    elif isinstance(node, str) and node.startswith(("ext://", "cfg://")) and key.startswith("hydra."):
        yield key, node


def _is_allowed(name: Any, in_hydra: bool) -> bool:
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.removeprefix("ext://").split(".")):
        return False
    if in_hydra and (name in _LOGGING_NAMES or name.startswith(_HYDRA_PREFIXES)):
        return True
    if name in _ALLOWED_TARGETS:
        return True
    parts = name.split(".")
    return parts[0] in _EXTENSION_PACKAGES and not any(part.startswith("_") for part in parts)


def create(cfg: DictConfig) -> Any:
    """Instantiate a composed config; the package calls Hydra's `instantiate` only here.

    Checks every target first. Raises ConfigError with the full config key of each invalid field.
    """
    check_targets(OmegaConf.to_container(cfg, resolve=False))
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError([f"{key}: required, but not set; pass {key}=<value>" for key in missing])
    try:
        return instantiate(cfg, _convert_="object")
    except InstantiationException as error:
        refused = list(_refused(cfg, ""))  # Hydra stops at the first error; report all of them
        raise (ConfigError(refused) if len(refused) > 1 else _located(error)) from error.__cause__
    except MissingMandatoryValue as error:
        raise ConfigError(str(error)) from error


def _refused(node: DictConfig, key: str) -> Iterator[str]:
    """Instantiate the components below `node` one by one, and yield all of their problems."""
    for name, child in node.items():
        if not isinstance(child, DictConfig):
            continue
        full_key = f"{key}.{name!s}" if key else str(name)
        if "_target_" not in child:
            yield from _refused(child, full_key)
            continue
        try:
            instantiate(child, _convert_="object")
        except InstantiationException as error:
            located = _located(error)
            if isinstance(located, ConfigError):
                # The key in the error is either absolute or relative to `child`.
                yield from (p if p.startswith(f"{full_key}.") else f"{full_key}.{p}" for p in located.problems)


def _located(error: InstantiationException) -> Exception:
    cause = error.__cause__
    key = str(error).rpartition("full_key: ")[2].strip() if "full_key: " in str(error) else ""
    prefix = f"{key}." if key else ""
    if isinstance(cause, FieldError):
        return ConfigError([f"{prefix}{name}: {text}" for name, text in cause.fields])
    if isinstance(cause, ConfigError):
        return cause
    if isinstance(cause, ValueError):  # messages of `validate` start with the field's name, which completes the key
        return ConfigError(f"{prefix}{cause}")
    if isinstance(cause, TypeError) and not key:
        unknown = str(cause).rpartition("argument ")[2].strip("'")
        return ConfigError(f"{unknown}: there is no such key")
    if isinstance(cause, TypeError):  # the target does not accept these fields
        return ConfigError(f"{key}: {cause}; choose the option in its config group instead of changing _target_")
    return error


def to_plain(cfg: Any) -> Any:
    """Return a config as plain, resolved dicts and lists for JSON or YAML; enums become their names."""
    return OmegaConf.to_container(cfg, resolve=True, enum_to_str=True) if OmegaConf.is_config(cfg) else cfg


def from_plain(tree: dict[str, Any]) -> DictConfig:
    """Return a config from plain dicts such as those of `run.json`."""
    return OmegaConf.create(tree)


@cache
def _enum_fields(cls: type) -> dict[str, type[Enum]]:
    hints = get_type_hints(cls)
    return {
        item.name: hint for item in fields(cls) if isinstance(hint := hints[item.name], type) and issubclass(hint, Enum)
    }


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts, by dotted key."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves


def to_yaml(content: Any) -> str:
    """Return plain content as YAML that parses to equal content."""
    return OmegaConf.to_yaml(OmegaConf.create(content))
