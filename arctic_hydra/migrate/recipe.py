"""Reads configs of other trainers, and detects which project they belong to."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from arctic_hydra.errors import ConfigError
from arctic_hydra.human_numbers import shorten
from arctic_hydra.migrate.key_map import PROJECTS, mapped_keys

SECTIONS = ("data", "model", "tokenizer", "optimizer", "scheduler", "logger", "wandb")
"""Sections of a recipe of ArcticTraining."""

Recipe = dict[str, Any]

_MOST_BYTES = 1_000_000
_MOST_ALIASES = 16
"""Maximum number of aliases in a file, because nested aliases multiply its size."""
_FLAT = ("axolotl", "llamafactory", "trl", "transformers")
"""Projects whose configs are flat, in order of preference if several have equally many of the keys."""
_EXTENDING = ("llamafactory", "trl")
"""Projects whose configs hold keys of TrainingArguments, too."""
_FEWEST = 3
"""Minimum number of keys that a flat config shares with its project; names such as `dataset` also occur by chance."""
_SUFFIXES = (".yaml", ".yml", ".json")


class _Loader(yaml.SafeLoader):
    """Reads plain data as ArcticTraining does: a key that appears twice in a mapping is an error."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue  # which construct_mapping refuses
        if key.value in seen:
            raise yaml.MarkedYAMLError(problem=f"{key.value!r} appears twice", problem_mark=key.start_mark)
        seen.add(str(key.value))
    loader.flatten_mapping(node)
    made: dict[Any, Any] = loader.construct_mapping(node, deep=True)
    return made


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_implicit_resolver(  # 1e-5, which YAML 1.1 reads as text
    "tag:yaml.org,2002:float",
    re.compile(r"[+-]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][+-]?\d+$"),
    list("+-0123456789."),
)


def load(path: str) -> dict[str, Any]:
    """Return the mapping in a YAML file; raises ConfigError if there is none."""
    try:
        if not os.path.isfile(path):
            raise ConfigError(f"{path}: there is no such file; expected the path of a recipe")
        if os.path.getsize(path) > _MOST_BYTES:
            raise ConfigError(f"{path}: has more than {_MOST_BYTES:,} bytes, so it is not a recipe")
        text = Path(path).read_text(encoding="utf-8")
        if sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=_Loader)) > _MOST_ALIASES:
            raise ConfigError(f"{path}: refers to its own parts more than {_MOST_ALIASES} times; write them out")
        read = yaml.load(text, Loader=_Loader)
    except ConfigError:
        raise
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: {error.problem or 'not valid YAML'}; fix this file") from error
    except (
        yaml.YAMLError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:  # of tags, too
        raise ConfigError(f"{path}: not valid YAML in UTF-8; fix this file") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    if not isinstance(read, dict):
        what = "a list" if isinstance(read, list) else "an empty file" if read is None else shorten(read)
        raise ConfigError(f"{path}: got {what}, expected a recipe: keys with values")
    return {str(key): value for key, value in read.items()}


def project_of(recipe: Mapping[str, Any]) -> str:
    """Return the project, a key of `PROJECTS`, whose config this is; empty for ours and for an unknown one."""
    if "defaults" in recipe:
        return ""
    model = recipe.get("model")
    nested = isinstance(model, Mapping) or isinstance(recipe.get("data"), Mapping)
    if nested and 2 * sum(mapped.key in recipe for mapped in mapped_keys("arctictraining")) >= len(recipe):
        data = recipe.get("data")
        ours = "trainer" in recipe or (isinstance(data, Mapping) and isinstance(data.get("sources"), Mapping))
        return "" if ours else "arctictraining"
    counts = {project: _known(recipe, project) for project in _FLAT}
    best = max(counts, key=lambda project: counts[project])
    return best if counts[best] >= _FEWEST and 2 * counts[best] >= len(recipe) else ""


def _known(recipe: Mapping[str, Any], project: str) -> int:
    """Return how many keys of a flat config a project has; 0 if none is in its own table."""
    own = sum(mapped.key in recipe for mapped in mapped_keys(project))
    return sum(mapped.key in recipe for table in tables_of(project) for mapped in mapped_keys(table)) if own else 0


def tables_of(project: str) -> tuple[str, ...]:
    """Return the tables whose keys the configs of a project may hold, its own first."""
    return (project, "transformers") if project in _EXTENDING else (project,)


def refusal(argument: str) -> str:
    """Return the error for a config or a file of data as an argument, with what to pass instead; empty for other arguments."""
    if "=" in argument or not (argument.endswith(_SUFFIXES) or os.path.isfile(argument)):
        return ""
    if os.path.isfile(argument) and _holds_data(argument):
        kind = "text" if argument.endswith(".txt") else "json"  # which reads the other kinds of files as well
        override = shlex.quote(f"data.sources.{kind}.path={argument}")
        return f"{argument}: got a file of data, expected key=value; pass data={kind} {override}"
    try:
        project = project_of(load(argument))
    except ConfigError as error:
        return str(error)
    if project:
        return _command(argument, project)
    path = Path(argument)
    if path.parent.name == "experiment":
        return (
            f"{argument}: got a file, expected key=value; pass --config-dir {path.parent.parent} experiment={path.stem}"
        )
    return f"{argument}: got a file, expected key=value; pass --config-dir {path.parent} --config-name {path.stem}"


def _holds_data(path: str) -> bool:
    """Whether a file is data by its suffix; one of JSON may be the config of another project as well."""
    from arctic_hydra.data.source.discover import SUFFIXES

    try:
        return path.endswith(SUFFIXES) and not (path.endswith(".json") and project_of(load(path)))
    except ConfigError:
        return True


def refused_name(name: str | None, config_dir: str | None) -> str:
    """Return the error for a `--config-name` that is the config of another project, with the command to use; empty for others."""
    if not name or not name.isprintable():
        return ""
    for path in (
        os.path.join(folder, name + suffix) for folder in (config_dir or ".", ".") for suffix in ("", ".yaml", ".yml")
    ):
        if os.path.isfile(path):
            try:
                project = project_of(load(path))
            except ConfigError:
                return ""  # which the composition reports
            return _command(os.path.relpath(path), project) if project else ""
    return ""


def _command(path: str, project: str) -> str:
    typed = shlex.quote(path)
    if project == "arctictraining":
        return (
            f"{path}: is a recipe of ArcticTraining; convert it with python -m arctic_hydra.migrate {typed} "
            f"--out experiment/{experiment_name(path)}.yaml"
        )
    return f"{path}: is a config of {PROJECTS[project]}; python -m arctic_hydra.migrate {typed} lists its keys in arctic_hydra's terms"


def experiment_name(path: str) -> str:
    """Return a name for the experiment made from a recipe: that of the file, with the letters that a name may have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", Path(path).stem).strip("._-")[:100] or "recipe"


def fields_of(key: str, value: Any) -> dict[str, Any]:
    """Return the fields of a section. Raises ConfigError for a value of another kind."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}: got {value!r}, expected fields with values, as in a recipe of ArcticTraining")
    return dict(value)


def flatten(recipe: Mapping[str, Any]) -> Recipe:
    """Return the fields of a recipe by `section.field`, as the table of keys names them."""
    flat: Recipe = {}
    for key, value in recipe.items():
        if key in SECTIONS and value is not None:
            flat |= {f"{key}.{name}": held for name, held in fields_of(key, value).items()}
        else:
            flat[key] = value
    return flat
