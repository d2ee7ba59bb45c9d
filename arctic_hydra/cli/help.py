"""The help page: the options of each config group and the keys of each option."""

from __future__ import annotations

import ast
import difflib
import inspect
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from omegaconf import OmegaConf

from arctic_hydra.cli.config_sources import LIST_GROUPS
from arctic_hydra.cli.search_path import conf_dir, hydra_with
from arctic_hydra.component import default_of, is_settings, registered
from arctic_hydra.config import Run
from arctic_hydra.errors import ConfigError

PLUGIN_OPTIONS = {"hydra/launcher": ["basic", "local", "slurm"], "hydra/sweeper": ["basic", "optuna"]}
"""Options that our Hydra plugins provide; listed here because loading the plugins would slow down the help page."""
PAGE = """\
{program}: post-train language models from one composed config

usage: {program} [group=option ...] [group.key=value ...]

  {program}                                             the embedded default: small model, bundled chats
  {program} model=liger data=ultrachat                  a real model on real data, on a GPU
  {program} data=json data.sources.json.path=my.jsonl   your own chats
  {program} -m optimizer.lr=1e-4,2e-4                   one run per value
  {program} optimizer.lr=1e-4 task=check                check only, do not train
  {program} task=chat                                   talk to the trained model

groups (the default first):
{groups}

keys of the run itself:
{keys}

  --help GROUP     the options of a group and their keys, such as --help trainer
  --cfg job        print the whole composed config after checking it, and exit
  -m               sweep: every combination of comma-separated values, one job after another;
                   hydra/launcher=local hydra.launcher.slots=N: N at a time, each on its own GPUs;
                   hydra/sweeper=optuna hydra.sweeper.n_trials=N key=interval(a,b): a search
                   python -m arctic_hydra.sweep --help: manage sweeps
  hydra/launcher=slurm hydra.launcher.partition=P hydra.launcher.gpus_per_node=N
                   one run, or with -m a sweep, on a cluster; launchers/README.md lists the keys
  --config-dir DIR a folder with your own options and experiments
  --version        the version
  --hydra-help     further flags of Hydra

exit codes: 0 done, 1 failed, 2 invalid config, 75 stopped early with a checkpoint (the same command resumes)
"""


def page(program: str) -> str:
    """Return the help page."""
    width = max(len(name) for name in groups())
    rows = [
        f"  {name:<{width}}  {', '.join(_default_first(name, options)) or 'your own'}"
        for name, options in groups().items()
    ]
    keys = field_docs(Run)
    own = [item for item in fields(Run) if item.name in keys and not item.name.startswith("_")]
    return PAGE.format(
        program=program,
        groups="\n".join(rows),
        keys="\n".join(_row(f"{item.name}={_default_text(default_of(item))}", keys[item.name]) for item in own),
    )


def group_page(group: str) -> str:
    """Return the options of one group with their documented keys; raises ConfigError for an unknown group."""
    known = groups()
    if group not in known:
        near = difflib.get_close_matches(group, known, n=1)
        raise ConfigError(
            f"--help {group}: there is no such group; {'did you mean ' + near[0] if near else 'expected one of ' + ', '.join(known)}"
        )
    lines = [f"{group}: {', '.join(_default_first(group, known[group]))}"]
    if group in PLUGIN_OPTIONS:
        return "\n".join([*lines, *_plugin_lines(group)])
    if not known[group]:
        own = ", ".join(name for _, name in registered(group)) or "no options yet"
        lines[0] = f'{group}: {own}; see "Extend it from your own package" in CONTRIBUTING.md'
    prefix = "data.sources.<name>" if group == "source" else f"{group}.<option>" if group in LIST_GROUPS else group
    if "/" in group:
        lines.append(f"several at once: {group}=[{known[group][0]},...]; their keys: --help source")
    for (_, name), cls in registered(group).items():
        lines += _class_lines(cls, name, prefix)
    return "\n".join(lines)


def _class_lines(cls: Any, name: str, prefix: str) -> list[str]:
    return [
        "",
        f"{cls.__name__} (schema {name}): {(inspect.getdoc(cls) or '').splitlines()[0]}",
        *_rows(cls, prefix),
    ]


def _rows(owner: Any, prefix: str) -> Iterator[str]:
    """Yield a line for each field of a class, or of a default value that holds further fields."""
    docs = field_docs(owner if isinstance(owner, type) else type(owner))
    for item in fields(owner):
        default = default_of(item) if isinstance(owner, type) else getattr(owner, item.name)
        if is_settings(type(default)):
            yield from _rows(default, f"{prefix}.{item.name}")
        elif item.name != "_target_":
            yield _row(f"{prefix}.{item.name}={_default_text(default)}", docs.get(item.name, ""))


def _plugin_lines(group: str) -> list[str]:
    """Return the documented keys of our Hydra plugins; loading them puts their schemas into Hydra's config store."""
    lines, store = [], ConfigStore.instance()
    with hydra_with():
        for folder in (group, group.replace("hydra/", "schema/")):
            for option in store.list(folder) if store.get_type(folder) is ObjectType.GROUP else []:
                node = store.load(f"{folder}/{option}")
                if node.provider == "arctic_hydra":
                    lines += _class_lines(
                        OmegaConf.get_type(node.node), option.removesuffix(".yaml"), group.replace("/", ".")
                    )
    return lines


def groups() -> dict[str, list[str]]:
    """Return all config groups with their built-in options, which some groups do not have."""
    root = Path(conf_dir())
    folders = sorted(item for item in root.rglob("*") if item.is_dir() and any(item.glob("*.yaml")))
    found = {str(item.relative_to(root)): sorted(option.stem for option in item.glob("*.yaml")) for item in folders}
    return dict(sorted((found | {group: found.get(group, []) for group in LIST_GROUPS} | PLUGIN_OPTIONS).items()))


def field_docs(cls: type) -> dict[str, str]:
    """Return the docstring under each field of a class and its bases, by field name."""
    docs: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if not owner.__module__.startswith("builtins") and "__annotations__" in owner.__dict__:
            docs |= _docs_in_source(owner)
    return docs


def _docs_in_source(cls: type) -> dict[str, str]:
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    except (OSError, TypeError, IndentationError):
        return {}
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            docs[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return docs


def _default_first(group: str, options: list[str]) -> list[str]:
    defaults = (Path(conf_dir()) / "config.yaml").read_text(encoding="utf-8")
    chosen = next(
        (line.partition(": ")[2] for line in defaults.splitlines() if line.strip().startswith(f"- {group}:")), ""
    )
    first = [name for name in chosen.strip("[]").split(", ") if name in options]
    return first + [name for name in options if name not in first]


def _default_text(default: Any) -> str:
    value = "???" if default is MISSING else default
    return str(getattr(value, "name", value)).replace("None", "null").replace("True", "true").replace("False", "false")


def _row(left: str, doc: str) -> str:
    indent = " " * 44
    first, *rest = textwrap.wrap(doc, 76) or [""]
    head = f"  {left:<42}" if len(left) < 42 else f"  {left}\n{indent}"
    return "\n".join([f"{head}{first}".rstrip(), *(indent + line for line in rest)])


def print_page(program: str, wanted: list[str]) -> None:
    """Print the help page, or those of the wanted groups."""
    text = "\n\n".join(group_page(group) for group in wanted) if wanted else page(program)
    sys.stdout.write(text.rstrip() + "\n")
