"""From the command line to a composed, checked config; and errors of composition in words that help.

Part of `__main__`, split off by size: the command line's grammar, and what composition can fail with.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from arctic_hydra import config
from arctic_hydra.cli.config_cache import Memory, read_through
from arctic_hydra.component import check_targets, registered, to_plain
from arctic_hydra.distributed import speak_for_machines_with
from arctic_hydra.errors import ConfigError
from arctic_hydra.human_numbers import parse_human_number
from arctic_hydra.run_directory import flatten

LIST_GROUPS = ("checkpoint", "tracking", "callback", "converter")
FREE_FORM_OF_PLUGINS = {"pruner_kwargs"}
"""Fields of our launchers and sweepers that hold a dictionary of the user's own."""
NAMED_SETS = ("data.sources", "data.eval_sources")
_ONE_TASK = (
    "each machine has one task, which starts all of its ranks; pass ranks=<number>, or hydra.launcher.gpus_per_node"
)
_SAID = {f"hydra.launcher.{name}": _ONE_TASK for name in ("tasks", "ntasks", "tasks_per_node", "ntasks_per_node")}
"""Keys that people expect from other launchers, and what to do instead."""
_POWER = re.compile(r"(?<![\w.'\"^])([+-]?\d[\d_]*(?:\.\d+)?\^[+-]?\d+(?:\.\d+)?)(?![\w.'\"^])")
_SPLIT_KEY = re.compile(r"\+{0,2}data\.(eval_)?sources\.[^.]+\.split")
# What is quoted, or escaped as Hydra writes the jobs of a sweep, stays; the other alternative is a slice, a wrong one too.
_QUOTED_OR_SLICE = re.compile(r"""("[^"]*"|'[^']*'|[^\s,()]*\\\[[^,()]*)|[^\s,()"'\[\]]*\[[^\]"']*(?:\][^\s,()"']*)?""")


def conf_dir() -> str:
    """Return the absolute folder of the config groups: inside an installed package, beside it in a source tree."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return str(inside if (inside / "config.yaml").is_file() else package.parent / "conf")


def prepare(argument: str) -> str:
    """Return a command-line argument in a form that Hydra's grammar takes.

    Powers such as `2^20` become plain numbers (in lists, dicts and sweeps too), slices of a source's split such as
    `train[:10%]` are quoted, and a value in a free-form dictionary such as `deepspeed.config={...}` is a forced addition,
    since Hydra neither replaces nor extends a typed dictionary otherwise.
    """
    key, equals, value = argument.partition("=")
    if not equals or key.startswith("-"):
        return argument
    value = _POWER.sub(lambda match: str(parse_human_number(match[1])), value)
    if _SPLIT_KEY.fullmatch(key):
        value = _QUOTED_OR_SLICE.sub(lambda match: match[0] if match[1] else f"'{match[0]}'", value)
    if not key.startswith(("+", "~")) and _free_form() & set(key.split(".")[1:]):
        key = f"++{key}"
    return f"{key}={value}"


@cache
def _free_form() -> set[str]:
    """Return the names of the fields that hold a dictionary of the user's own."""
    return (
        {"additional_parameters"}
        | {  # the one of hydra/launcher=slurm, which is no component
            item.name
            for cls in registered().values()
            for item in fields(cls)
            if str(item.type).startswith("dict[str, Any")
        }
        | FREE_FORM_OF_PLUGINS
    )


@contextmanager
def hydra_with(config_dir: str | None = None, memory: Memory | None = None) -> Iterator[ConfigLoader]:
    """Have Hydra find our options, those of extensions, and those below `config_dir`; yield what loads them.

    With a memory, files that an earlier composition read are not read again. A folder given by the override
    `hydra.searchpath` instead would come too late for a whole config in it.
    """
    GlobalHydra.instance().clear()
    with initialize_config_dir(conf_dir(), version_base="1.3", job_name="arctic_hydra"):
        if config_dir:
            path = GlobalHydra.instance().config_loader().get_search_path()
            # Behind ours and those of extensions, which it cannot shadow by accident, and before the schemas: Hydra wants these last.
            path.prepend("command-line", f"file://{Path(config_dir).absolute()}", anchor="schema")
            GlobalHydra.instance().clear()
            Hydra.create_main_hydra2("arctic_hydra", path)
        loader: Any = GlobalHydra.instance().config_loader()
        if memory is not None:
            read_through(memory, loader)
        yield loader


def compose_config(
    overrides: list[str], config_name: str, config_dir: str | None = None, memory: Memory | None = None
) -> DictConfig:
    """Compose without running anything, and check every target of the result, Hydra's own node included.

    With a memory, files that an earlier composition read are not read again. Raises ConfigError in place of everything
    that Hydra and OmegaConf raise.
    """
    with hydra_with(config_dir, memory):
        try:
            cfg = compose(config_name, overrides=overrides, return_hydra_config=True)
        except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
            in_hydra = any(item.startswith("hydra.") for item in overrides)  # its keys may be what was mistyped
            raise explain(
                error,
                overrides,
                lambda kept: compose(config_name, overrides=kept, return_hydra_config=in_hydra),
            ) from error
    check_targets(OmegaConf.to_container(cfg, resolve=False))
    return cfg


def flags(config_name: str, config_dir: str | None) -> list[str]:
    """Return what says on a command line where configs are found, nothing where these are our own."""
    name = [] if config_name == "config" else ["--config-name", config_name]
    return [*name, *(["--config-dir", config_dir] if config_dir else [])]


def is_hydras(override: str, part: str = "") -> bool:
    """Whether an override is for Hydra itself, or for a part of it such as `sweeper`."""
    return override.lstrip("+~").startswith((f"hydra.{part}", f"hydra/{part}"))


def without_hydra(cfg: DictConfig) -> DictConfig:
    """Return the composed config less Hydra's own node."""
    job = cfg.copy()
    OmegaConf.set_struct(job, False)
    job.pop("hydra", None)
    OmegaConf.set_struct(job, True)
    return job


def place(job: DictConfig, launcher: DictConfig) -> None:
    """Give a config (less Hydra's node) the ranks of the machines that its launcher asks a cluster for.

    A launcher does so where it has `nodes` and `gpus_per_node`: those count then, not what this machine has.
    """
    several = job.nnodes != 1 or job.hostfile is not None
    if "gpus_per_node" not in launcher:
        if several:
            raise ConfigError(
                "nnodes, hostfile: a sweep's jobs run on this machine; pass hydra/launcher=slurm for more"
            )
        return
    if several:
        raise ConfigError("nnodes, hostfile: have no effect in SLURM; pass hydra.launcher.nodes=<machines>")
    job.nnodes = launcher.nodes
    job.ranks = str(launcher.gpus_per_node or 1) if job.ranks == "auto" else job.ranks
    speak_for_machines_with(launcher.gpus_per_node or 0)


def resolved(job: DictConfig) -> dict[str, Any]:
    """Return a composed config as a plain tree with paths absolute; raises ConfigError for what is required and missing."""
    missing = sorted(OmegaConf.missing_keys(job))
    if missing:
        raise ConfigError([f"{key}: required, but not set; pass {key}=<value>" for key in missing])
    tree = to_plain(job)
    check_targets(tree)
    return config.absolute_paths(tree, Path.cwd())  # type: ignore[no-any-return]


def to_yaml(content: Any) -> str:
    """Return plain content as YAML that reads back as it was."""
    return OmegaConf.to_yaml(OmegaConf.create(content))


def explain(error: Exception, overrides: list[str], recompose: Any) -> ConfigError:
    """Return the ConfigError that says where, what was got, what was expected and what to do."""
    text = str(error)
    chain = list(_causes(error))
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"{text.splitlines()[0]}: not a valid override; expected key=value, with quotes around special characters"
        )
    if isinstance(error, MissingConfigException) and "Available options in" in text:
        return _unknown_option(text)
    if match := re.search(r"Cannot find primary config '([^']+)'", text):
        return ConfigError(
            f"--config-name: got {match[1]!r}, but neither arctic_hydra nor --config-dir has such a file; expected the name of a "
            "whole config, without .yaml"
        )
    if match := re.search(r"Could not load '([^']+)'", text):
        return _no_such_option(*match[1].rpartition("/")[::2])
    if "Ambiguous value" in text:
        key = text.partition("'")[2].partition("=")[0]
        value = text.partition("=")[2].partition("'")[0]
        if key.startswith("hydra/"):
            return ConfigError(f"{key}: got {value!r}, expected one option: all jobs of a sweep share it")
        if is_hydras(key):
            text = f"pass '{key}=\"{value}\"' for one text with commas, or {key}=[{value}] for a list"
            return ConfigError(f"{key}: got {value!r}, which Hydra takes for values to sweep over; {text}")
        return ConfigError(
            f"{key}: got {value!r}; pass -m for a sweep over these values, or {key}=[{value}] for a list"
        )
    if match := re.search(r"Config group override deletion|Config group override must be a string or a list", text):
        return _not_a_choice(overrides)
    for cause in chain:
        if match := re.search(r"Could not override '([^']+)'", str(cause)):
            return _unknown_key(match[1], overrides, recompose)
    for cause in chain:
        first = str(cause).splitlines()[0] if str(cause) else ""
        if match := re.search(r"Key '([^']+)' (?:is )?not in '?([^']+)'?", first):
            return _unknown_key(_full_key(cause) or match[1], overrides, recompose)
        if match := re.search(r"Cannot (?:merge DictConfig with ListConfig|assign (\S+) to Dict\[str, (\w+)\])", first):
            return _list_group(overrides)
        if isinstance(cause, OmegaConfBaseException) and first:
            return ConfigError(f"{_override_of(chain, cause)}: {first}")
    return ConfigError(text.splitlines()[0] if text else type(error).__name__)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _full_key(error: BaseException) -> str:
    key = getattr(error, "full_key", None)
    return str(key) if key else ""


def _override_of(chain: list[BaseException], cause: BaseException) -> str:
    for error in chain:
        if match := re.search(r"Error merging override \+*([^=\s]+)", str(error)):
            return match[1]
    return _full_key(cause) or "config"


def _unknown_option(text: str) -> ConfigError:
    wanted = re.search(r"Could not find '([^']+)'", text)
    group, _, option = (wanted[1] if wanted else "?/?").rpartition("/")
    listing = text.partition("Available options in")[2].partition("Config search path")[0]
    options = [line.strip() for line in listing.splitlines() if line.startswith("\t")]
    hint = _did_you_mean(option, options)
    return ConfigError(f"{group}: got {option!r}, expected one of {', '.join(options)}{hint}")


def _no_such_option(group: str, option: str) -> ConfigError:
    options = sorted(path.stem for path in (Path(conf_dir()) / group).glob("*.yaml"))
    text = f"expected one of {', '.join(options)}" if options else "but this group has no options of its own yet"
    return ConfigError(f"{group}: got {option!r}, {text}{_did_you_mean(option, options)}")


def _list_group(overrides: list[str]) -> ConfigError:
    """Name the override that gives a group without options a value."""
    for item in OverridesParser.create().parse_overrides(overrides):
        value = item.value()
        if item.key_or_group in NAMED_SETS and isinstance(value, list):
            group, names = item.key_or_group.replace(".", "/"), ",".join(map(str, value))
            return ConfigError(
                f"{item.key_or_group}: got a list, expected named entries; choose sets with {group}=[{names}]"
            )
        if item.key_or_group in LIST_GROUPS and value != []:
            return _no_such_option(item.key_or_group, str(value[0] if isinstance(value, list) else value))
    return ConfigError(f"{' '.join(overrides)}: a list stands where named entries are due")


def _not_a_choice(overrides: list[str]) -> ConfigError:
    """Name the override that gives a config group something that is no name of an option."""
    folders = {path.name: path for path in Path(conf_dir()).iterdir() if path.is_dir()}
    for item in OverridesParser.create().parse_overrides(overrides):
        if item.key_or_group in folders and not isinstance(item.value(), str | list):
            options = ", ".join(sorted(path.stem for path in folders[item.key_or_group].glob("*.yaml")))
            return ConfigError(
                f"{item.key_or_group}: got {item.value()}, expected one of {options}, or [] where it is a list"
            )
    return ConfigError(f"{' '.join(overrides)}: a config group takes the name of an option")


def _unknown_key(key: str, overrides: list[str], recompose: Any) -> ConfigError:
    """Compose again from the group choices alone, and look for the key's nearest neighbours there."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    choices = [
        item.input_line or ""
        for item in parsed
        if "." not in item.key_or_group and isinstance(item.value(), str | list)
    ]
    choices = [line for line in choices if line.partition("=")[0].lstrip("+~") != key]
    try:
        known = flatten(OmegaConf.to_container(recompose(choices), resolve=False))
    except (HydraException, OmegaConfBaseException):
        known = flatten(OmegaConf.to_container(recompose([]), resolve=False))
    keys = sorted(known)
    parts = key.split(".")
    if parts[0] in LIST_GROUPS and len(parts) > 1:
        chosen = sorted({name.split(".")[1] for name in keys if name.startswith(f"{parts[0]}.")} - {""})
        if parts[1] not in chosen:
            exists = (Path(conf_dir()) / parts[0] / f"{parts[1]}.yaml").is_file()
            remedy = (
                f"; choose it with {parts[0]}=[{','.join([*chosen, parts[1]])}]"
                if exists
                else ", and there is no such option"
            )
            return ConfigError(
                f"{key}: {parts[0]}.{parts[1]} is not among the chosen options ({', '.join(chosen) or 'none'}){remedy}"
            )
    if key in _SAID:
        return ConfigError(f"{key}: there is no such key; {_SAID[key]}")
    parent = ".".join(parts[:-1])
    siblings = [name for name in keys if name.rpartition(".")[0] == parent]
    hint = _did_you_mean(key, siblings) or _did_you_mean(key, _prefixes(keys))
    if not hint:
        names = sorted(
            {
                name.removeprefix(f"{parent}.").split(".")[0]
                for name in keys
                if not parent or name.startswith(f"{parent}.")
            }
        )
        names = [name for name in names if name != "_target_"]
        hint = f"; {parent or 'the root'} has {', '.join(names)}" if names else ""
    return ConfigError(f"{key}: there is no such key{hint}")


def _prefixes(keys: list[str]) -> list[str]:
    return sorted({".".join(parts[: n + 1]) for parts in (key.split(".") for key in keys) for n in range(len(parts))})


def _did_you_mean(word: str, words: list[str]) -> str:
    near = difflib.get_close_matches(word, [name for name in words if not name.endswith("_target_")], n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def sweep_jobs(overrides: list[str]) -> list[list[str]]:
    """Return the overrides of each job of a grid sweep, in Hydra's order."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    try:
        return [job for batch in BasicSweeper.split_arguments(parse(overrides), None) for job in batch]
    except (HydraException, ValueError) as error:
        raise ConfigError(f"{_not_a_grid(overrides) or str(error).splitlines()[0]}: not a valid sweep") from error


def search_samples(overrides: list[str]) -> list[list[str]]:
    """Return overrides that try every bound and every choice of a search once; the first are all the lowest and first."""
    parsed = parse(overrides)
    values = {item.get_key_element(): tried_values(item) for item in parsed}
    base = {key: tried[0] for key, tried in values.items()}
    variants = [{**base, key: value} for key, tried in values.items() for value in tried[1:]]
    return [[f"{key}={value}" for key, value in sample.items()] for sample in (base, *variants)]


def tried_values(item: Override) -> list[str]:
    """Return an override's value as text, of a sweep its choices or its two bounds; raises ConfigError where it has none."""
    if not item.is_sweep_override():
        return [item.get_value_element_as_str()]
    if item.is_discrete_sweep():
        found = list(item.sweep_string_iterator())
        if not found:
            raise ConfigError(
                f"{item.key_or_group}: got {str(item.input_line).partition('=')[2]}, which holds no value"
            )
        return found if not item.is_range_sweep() else [found[0], found[-1]]
    interval = item.value()
    assert isinstance(interval, IntervalSweep), item.input_line
    return [str(interval.start), str(interval.end)]


def parse(overrides: list[str]) -> list[Override]:
    """Return the parsed overrides of a sweep; raises ConfigError where the grammar refuses one."""
    with hydra_with() as loader:
        try:
            return OverridesParser.create(config_loader=loader).parse_overrides(overrides)
        except (HydraException, ValueError) as error:
            raise ConfigError(f"{str(error).splitlines()[0]}: not a valid sweep") from error


def _not_a_grid(overrides: list[str]) -> str:
    found = [
        item.key_or_group for item in parse(overrides) if item.is_sweep_override() and not item.is_discrete_sweep()
    ]
    return (
        f"{found[0]}: got an interval, which has no end of values; pass hydra/sweeper=optuna to search it"
        if found
        else ""
    )
