"""Translates the errors of Hydra and OmegaConf into one sentence each."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from arctic_hydra.cli.composition.config_sources import LIST_GROUPS, NAMED_SETS
from arctic_hydra.cli.composition.search_path import conf_dir
from arctic_hydra.cli.overrides import is_hydra_override
from arctic_hydra.component import flatten, registered
from arctic_hydra.config import Task
from arctic_hydra.data.source.discover import SUFFIXES
from arctic_hydra.errors import ConfigError, did_you_mean
from arctic_hydra.files import code_file
from arctic_hydra.files.extensions import BROKEN_EXTENSIONS
from arctic_hydra.human_numbers import shorten
from arctic_hydra.migrate.hints import hint as hint_of
from arctic_hydra.migrate.key_map import option_advice

RESOLVERS = ("oc.env", "oc.select", "oc.decode", "oc.dict.keys", "oc.dict.values", "now")
"""The resolvers that an interpolation may call: none that constructs objects or reads files."""
_ONE_TASK = (
    "each machine has one task, which starts all of its ranks; pass ranks=<number>, or hydra.launcher.gpus_per_node"
)
_HINTS = {f"hydra.launcher.{name}": _ONE_TASK for name in ("tasks", "ntasks", "tasks_per_node", "ntasks_per_node")} | {
    "code": code_file.REFUSAL,
    "data.path": "for files of your own, pass data=json data.sources.json.path=<file or directory>",
}
"""Keys known from other programs or from the command line, with what to use instead."""
_SAMPLERS = ("grpo", "gspo", "ppo", "rloo", "online_dpo")
"""Trainers of other projects that sample answers."""
_EXPECTED = {"bool": "true or false", "Integer": "a whole number", "Float": "a number"}
"""What to write for a type, by OmegaConf's name of it."""


_GROUP_IS_NULL = ("Unexpected type for root: NoneType", "'NoneType' object has no attribute 'get'")
"""What OmegaConf says of a key of a group that is null."""


def translate_error(error: Exception, overrides: list[str], recompose: Any) -> ConfigError:
    """Return a ConfigError with the full key, the value, what was expected and what to do.

    `recompose(overrides)` composes the config from a subset of the overrides, and `recompose([], name)` another one; None if
    there is nothing to compose.
    """
    text = str(error)
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, ConfigError):
            return cause
    if isinstance(error, OverrideParseException):
        return _not_an_override(str(error.override))
    if isinstance(error, RecursionError):  # those of interpolations are wrapped
        return ConfigError(
            f"{' '.join(overrides)[:80] or 'config'}: nested too deeply; expected config files that do not include each other in a circle"
        )
    if text.startswith(_GROUP_IS_NULL):
        given = " ".join(overrides)
        return ConfigError(f"{given}: sets a key of a group that is null; remove the null, here or in a config file")
    if problem := _unreadable_file(chain) or _wrong_base(chain):
        return ConfigError(problem)
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
        return _sweep_of_one_run(text)
    if match := re.search(r"Config group override deletion|Config group override must be a string or a list", text):
        return _not_a_choice(overrides)
    for cause in chain:
        if match := re.search(r"In '([^']+)': Could not override '([^']+)'", str(cause)):
            return ConfigError(
                f"{match[1]}: its defaults list overrides {match[2]}, but no list before it chooses an option of such a group; a whole "
                "config (--config-name) begins with `defaults: [config, _self_]`, an option is chosen as <group>=<option>"
            )
        if match := re.search(r"Could not override '([^']+)'", str(cause)):
            return _unknown_key(match[1], overrides, recompose)
    for cause in chain:
        first = str(cause).splitlines()[0] if str(cause) else ""
        if match := re.search(r"Key '([^']+)' (?:is )?not in '?([^']+)'?", first):
            return _unknown_key(_full_key(cause) or match[1], overrides, recompose)
        if match := re.search(r"Cannot (?:merge DictConfig with ListConfig|assign (\S+) to Dict\[str, (\w+)\])", first):
            return _list_group(overrides)
        if problem := _interpolation_problem(first):
            return ConfigError(f"{_override_of(chain, cause) or ' '.join(overrides)}: {problem}")
        if match := re.match(r"Value '(.*?)' (?:of type .*converted to|is not a valid) (bool|Integer|Float)\b", first):
            where = _override_of(chain, cause) or " ".join(overrides) or "config"
            return ConfigError(f"{where}: got {match[1]!r}, expected {_EXPECTED[match[2]]}")
        if isinstance(cause, OmegaConfBaseException) and first:
            return ConfigError(f"{_override_of(chain, cause) or ' '.join(overrides) or 'config'}: {first}")
    what = f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
    return ConfigError(f"{' '.join(overrides) or 'config'}: cannot be composed ({what})")


def _not_an_override(text: str) -> ConfigError:
    hint = _meant_word(text) or "expected key=value, with quotes around special characters"
    if keys := re.match(r"([\w.]*)code:(\w+\.[\w.]+)=", text):
        hint = f"the keys of an option code:<name> are written without code:, here {keys[1]}{keys[2]}"
    return ConfigError(f"{text if len(text) <= 200 else shorten(text, 200)}: not a valid override; {hint}")


def _wrong_base(chain: list[BaseException]) -> str:
    """Return the problem of a class that is registered in a group of another kind; empty if it is another problem."""
    found = re.search(r"Invalid type assigned: (\w+) is not a subclass of (\w+)", "\n".join(map(str, chain)))
    for (group, option), cls in registered().items():
        if found and cls.__name__ == found[1]:
            return (
                f"{group}={option}: {found[1]} does not extend {found[2].removesuffix('Slot')}, the base class of the group {group}; "
                "extend it, or correct the group in @component (docs/extending/code.md lists both)"
            )
    return ""


def _sweep_of_one_run(text: str) -> ConfigError:
    """Return the error for several values of a key where there is one run."""
    key = text.partition("'")[2].partition("=")[0]
    value = text.partition("=")[2].partition("'")[0]
    if key.startswith("hydra/"):
        return ConfigError(f"{key}: got {value!r}, expected one option: all jobs of a sweep share it")
    if is_hydra_override(key):
        text = f"pass '{key}=\"{value}\"' for one string with commas, or {key}=[{value}] for a list"
        return ConfigError(f"{key}: got {value!r}, which Hydra reads as values of a sweep; {text}")
    return ConfigError(
        f"{key}: got {value!r}; pass -m for a sweep over these values (arctic_hydra.sweep in Python), or {key}=[{value}] for a list"
    )


def no_whole_config(name: Any) -> str:
    """Return the problem of a primary config that is not the config of a run, such as an option of a group."""
    return (
        f"--config-name: got {str(name)!r}, which is not a complete config; expected a file that begins with "
        "`defaults: [config, _self_]`"
    )


def _unreadable_file(chain: list[BaseException]) -> str:
    """Return the problem of a config file that cannot be read; empty if it is another problem."""
    for cause in chain:
        if match := re.search(r"primary config '([^']+)' must be a DictConfig", str(cause)):
            return no_whole_config(match[1])
        mark = getattr(cause, "problem_mark", None)
        if isinstance(cause, yaml.MarkedYAMLError) and mark is not None:
            return f"{mark.name}:{mark.line + 1}: {cause.problem or 'not valid YAML'}; fix this file"
        if isinstance(cause, yaml.YAMLError | UnicodeDecodeError):
            return f"a config file is not valid YAML in UTF-8 ({str(cause).splitlines()[0]}); fix it"
        if isinstance(cause, OSError) and not isinstance(cause, HydraException):
            return f"{cause.filename or 'a config file'}: {cause.strerror or cause}; check --config-dir and hydra.searchpath"
    return ""


def _interpolation_problem(text: str) -> str:
    """Return what is wrong with an interpolation, from the message of OmegaConf; empty for other messages."""
    if match := re.search(r"Unsupported interpolation type (\S+)", text):
        return f"an interpolation calls {match[1]}, expected one of {', '.join(RESOLVERS)}"
    if match := re.search(r"Environment variable '([^']+)' not found", text):
        return f"the environment variable {match[1]} is not set; export it, or write ${{oc.env:{match[1]},<default>}}"
    if (
        "RecursionError" in text
        or "Recursive interpolation" in text
        or "maximum recursion depth" in text
        or "Interpolation to parent node" in text
    ):
        return "its interpolations refer to each other in a circle, or through too many keys"
    if match := re.search(r"Missing mandatory value: (\S+)|to missing node '?([^\s']+)", text):
        return f"its interpolation refers to {match[1] or match[2]}, which is not set"
    if match := re.search(r"Interpolation key '([^']+)' not found", text):
        return f"its interpolation refers to {match[1]}, but there is no such key"
    if match := re.search(r"While dereferencing interpolation '(.+?)': (.+)", text):
        return f"the value of {match[1]} does not fit here: {match[2][:100]}"
    return ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that led to it; a chain can be circular."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _full_key(error: BaseException) -> str:
    key = getattr(error, "full_key", None)
    return str(key) if key else ""


def _override_of(chain: list[BaseException], cause: BaseException) -> str:
    for error in chain:
        if match := re.search(r"Error merging override \+*([^=\s]+)", str(error)):
            return match[1]
    key = _full_key(cause)
    return key if key != "_dummy_" else "an interpolation in the defaults list"


def _unknown_option(text: str) -> ConfigError:
    wanted = re.search(r"Could not find '([^']+)'", text)
    group, _, option = (wanted[1] if wanted else "?/?").rpartition("/")
    if group.split("/")[0] == "data" and option.endswith(SUFFIXES):
        if group in ("data/sources", "data/eval_sources"):
            key = group.replace("/", ".")
            return ConfigError(
                f"{key}: got {option!r}, expected an option; for a file, pass +source@{key}.json=json {key}.json.path={option}"
            )
        path = f"{group}/{option}".removeprefix("data/")
        return ConfigError(
            f"data: got {path!r}, expected an option; for a file, pass data=json data.sources.json.path={path}"
        )
    if group.startswith("model/"):
        name = f"{group}/{option}".removeprefix("model/")
        return ConfigError(f"model: got {name!r}, expected an option; for a hub id or a directory, pass {_MODEL}{name}")
    listing = text.partition("Available options in")[2].partition("Config search path")[0]
    options = [line.strip() for line in listing.splitlines() if line.startswith("\t")]
    known = option_advice(group, option) or _advice_of_other_tools(group, option) or why_no_option(group, option)
    hint = known or _did_you_mean(option, options) or _OWN_OPTIONS
    return ConfigError(f"{group}: got {option!r}, expected one of {', '.join(options)}{hint}")


def _advice_of_other_tools(group: str, option: str) -> str:
    """Return the end of the error about an option that users of other tools try; empty for others."""
    if group == "deepspeed" and option.endswith(".json"):
        return "; choose the ZeRO stage, and put other keys of the file into deepspeed.config={...}"
    if group == "trainer" and option in _SAMPLERS:
        return "; no trainer here samples answers, see docs/limits.md"
    if group == "data" and ("source", option) in registered("source"):
        entry = f"data.sources.<name>={option} data.sources.<name>.path=<path>"
        return f"; {option} is an option of the group source; pass data=mix +source@{entry}"
    return ""


def _meant_word(word: str) -> str:
    """Return what to write instead of a bare word that is a command of other programs, such as `train` or `dpo`; empty for others."""
    if word == "help":
        return "did you mean --help?"
    if word in Task.__members__:
        return f"did you mean task={word}?"
    return f"did you mean trainer={word}?" if ("trainer", word) in registered("trainer") else ""


_MODEL = "model=hf model.name_or_path="
_OWN_OPTIONS = (
    "; an option of your own comes from an installed package with the entry point arctic_hydra, or from code=<file>"
)


def why_no_option(group: str, option: str) -> str:
    """Return what an author has to do for an option that has no YAML file; empty for an unknown one."""
    if option.startswith(code_file.PREFIX) and not code_file.typed_arguments():
        return "; options with this prefix come from a file; pass code=<path of the file> too"
    named_set = group.replace("/", ".")
    if named_set in NAMED_SETS and ("source", option) in registered("source"):
        return f"; {option} is an option of the group source; add it with +source@{named_set}.<name>={option}"
    cls = registered(group).get((group, option))
    if cls is not None and cls.__module__.partition(".")[0] not in ("arctic_hydra", *BROKEN_EXTENSIONS):
        lines = [f"# @package {group}.{option}"] if group in LIST_GROUPS else []
        lines.append(f"defaults: [/schema/{group}/{option}@_here_, _self_]")
        package = cls.__module__.partition(".")[0]
        places = getattr(sys.modules[package], "__path__", ())
        has_conf = any((Path(place) / "conf" / "__init__.py").is_file() for place in places)
        return (
            f"; {cls.__module__}.{cls.__qualname__} is registered under this name but has no YAML file: write "
            f"{package}/conf/{group}/{option}.yaml with the line {' and the line '.join(map(repr, lines))}"
            + ("" if has_conf else f", and an empty {package}/conf/__init__.py")
        )
    elsewhere = [place for place, name in registered() if name == option and place != group]
    if elsewhere and not BROKEN_EXTENSIONS:
        return f"; {option} is registered in the group {elsewhere[0]}"
    return "".join(f"; {problem}" for problem in BROKEN_EXTENSIONS.values())


def _no_such_option(group: str, option: str) -> ConfigError:
    if group.startswith("schema/"):
        group = group.removeprefix("schema/")
        broken = "; ".join(BROKEN_EXTENSIONS.values())
        advice = (
            broken
            or f"register a class with @component(group={group!r}, name={option!r}), in a module that the entry point imports"
        )
        return ConfigError(
            f"{group}: its YAML file names the schema {group}/{option}, but no class of this name is registered; {advice}"
        )
    if advice := why_no_option(group, option):
        return ConfigError(f"{group}: got {option!r}{advice}")
    options = sorted(path.stem for path in (Path(conf_dir()) / group).glob("*.yaml"))
    hint = option_advice(group, option) or _did_you_mean(option, options)
    return ConfigError(f"{group}: got {option!r}, expected one of {', '.join(options)}{hint}")


def _list_group(overrides: list[str]) -> ConfigError:
    """Return the error for a list or an option where named entries are expected."""
    for item in OverridesParser.create().parse_overrides(overrides):
        value = item.value()
        if item.key_or_group in NAMED_SETS and isinstance(value, list):
            group, names = item.key_or_group.replace(".", "/"), ",".join(map(str, value))
            return ConfigError(
                f"{item.key_or_group}: got a list, expected named entries; choose sets with {group}=[{names}]"
            )
        if item.key_or_group in LIST_GROUPS and value != []:
            return _no_such_option(item.key_or_group, str(value[0] if isinstance(value, list) else value))
    return ConfigError(f"{' '.join(overrides)}: got a list where named entries are expected, or the other way round")


def _not_a_choice(overrides: list[str]) -> ConfigError:
    """Return the error for a config group whose value is not an option name."""
    folders = {path.name: path for path in Path(conf_dir()).iterdir() if path.is_dir()}
    for item in OverridesParser.create().parse_overrides(overrides):
        if item.key_or_group in folders and not isinstance(item.value(), str | list):
            options = ", ".join(sorted(path.stem for path in folders[item.key_or_group].glob("*.yaml")))
            return ConfigError(
                f"{item.key_or_group}: got {item.value()}, expected one of {options}, or [] where it is a list"
            )
    return ConfigError(f"{' '.join(overrides)}: a config group takes option names")


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _known_keys(choices: list[str], recompose: Any) -> list[str]:
    """Return the keys of the config composed from group choices, or of the default one; a config file can hold an unknown key, too."""
    without = [line for line in choices if not line.lstrip("+").startswith("experiment=")]
    subsets: list[tuple[Any, ...]] = [(choices,), (without,), ([],), ([], "config")]
    for subset in subsets:
        with suppress(HydraException, OmegaConfBaseException, ConfigError):
            return sorted(flatten(OmegaConf.to_container(recompose(*subset), resolve=False)))
    return []


def _unknown_key(key: str, overrides: list[str], recompose: Any) -> ConfigError:
    """Return the error for an unknown key, with what to write instead in the config composed from the group choices alone."""
    if recompose is None:
        return ConfigError(f"{key}: there is no such key")
    parsed = OverridesParser.create().parse_overrides(overrides)
    choices = [
        item.input_line or ""
        for item in parsed
        if "." not in item.key_or_group and isinstance(item.value(), str | list)
    ]
    choices = [line for line in choices if line.partition("=")[0].lstrip("+~") != key]
    keys = _known_keys(choices, recompose)
    parts = key.split(".")
    replaced = len(parts) > 1 and any(
        item.key_or_group == parts[0] in LIST_GROUPS and parts[1] not in _as_list(item.value()) for item in parsed
    )
    replaced = replaced and key not in [item.key_or_group for item in parsed]
    if key in keys or replaced:  # a config file sets it for an option that the overrides replace
        option = ".".join(parts[:2] if replaced else parts[:-1])
        return ConfigError(
            f"{key}: a config file (such as an experiment) sets it, but the chosen options have no {option}; keep that option, or "
            "remove the key from the file"
        )
    if parts[0] in LIST_GROUPS and len(parts) > 1:
        chosen = sorted({name.split(".")[1] for name in keys if name.startswith(f"{parts[0]}.")} - {""})
        exists = (Path(conf_dir()) / parts[0] / f"{parts[1]}.yaml").is_file()
        if parts[1] not in chosen and (exists or len(parts) > 2):
            remedy = (
                f"; choose it with {parts[0]}=[{','.join([*chosen, parts[1]])}]"
                if exists
                else ", and there is no such option"
            )
            return ConfigError(
                f"{key}: {parts[0]}.{parts[1]} is not among the chosen options ({', '.join(chosen) or 'none'}){remedy}"
            )
    if "@" in key:
        return ConfigError(f"{key}: there is no such entry to replace; add it with +{key}=<option>")
    if key in _HINTS:
        return ConfigError(f"{key}: there is no such key; {_HINTS[key]}")
    return ConfigError(f"{key}: there is no such key{hint_of(key, keys)}")


def _did_you_mean(word: str, words: list[str]) -> str:
    return did_you_mean(word, [name for name in words if not name.endswith("_target_")])
