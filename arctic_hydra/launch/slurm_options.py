"""The check of every option of `hydra/launcher=slurm`, before any of them reaches a script or a command line.

Scripts consist of lines, so that a character that could end a line is refused everywhere. What remains is quoted by
`_slurm_script`. Four options are commands by design: `setup`, `teardown`, `python` and `srun_args`.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from arctic_hydra.errors import ConfigError
from arctic_hydra.files.ownership import folder_problem, remedy
from arctic_hydra.human_numbers import shorten
from arctic_hydra.redaction.trees import secret_keys

LONGEST = 4096
"""Maximum length of a value; sbatch reads lines of 8 KiB on older clusters, and quoting can double a value."""
_MANY = 1_000_000_000
INTEGERS = {
    "nodes": (1, 65_536),
    "gpus_per_node": (0, 1_024),
    "cpus_per_task": (1, 65_535),
    "timeout_min": (0, _MANY),
    "array_parallelism": (1, _MANY),
    "max_array_size": (1, _MANY),
    "signal_delay_s": (1, 65_535),
    "max_requeues": (0, _MANY),
}
"""Range of each integer; the delay is a 16-bit number in SLURM."""
_FLAGS = ("exclusive", "stderr_to_stdout", "snapshot", "detach", "dry_run")
_TEXTS = (
    *("partition", "account", "qos", "gres", "constraint", "nodelist", "exclude", "comment", "dependency"),
    *("mail_type", "mail_user", "wckey", "name", "python", "folder"),
)
COMMANDS = ("setup", "teardown", "python", "srun_args")
"""The options that are commands by design."""
_LISTS = ("setup", "teardown", "srun_args")
_OPTIONAL = frozenset({*_TEXTS, "gpus_per_node", "cpus_per_task", "mem_gb", "max_array_size"})
KEYS = frozenset({*INTEGERS, *_FLAGS, *_TEXTS, *_LISTS, "mem_gb", "poll_seconds", "additional_parameters"})
"""The keys of `hydra.launcher`."""
LONGEST_POLL_SECONDS, LARGEST_MEMORY_GB = 86_400, 1_000_000
_OPTION_NAME = re.compile(r"[a-z][a-z0-9-]*")
_EXPORT = "export"
_UNUSABLE = {
    **dict.fromkeys(
        ("array", "clusters", "parsable", "test-only", "wait", "wrap"),
        "which the launcher cannot work with, because it submits its own jobs and arrays, and looks after them; remove it",
    ),
    **dict.fromkeys(
        ("chdir", "error", "input", "open-mode", "output"),
        "which the launcher sets itself; choose where logs are written with hydra.launcher.folder",
    ),
    **dict.fromkeys(
        ("bb", "bbf", "container", "epilog", "export-file", "prolog", "task-epilog", "task-prolog"),
        "which may name code or overwrite files; options that run commands belong to hydra.launcher.setup or srun_args",
    ),
}
"""Options of sbatch that are refused, and why: they change what is submitted, what runs, where it writes, or what sbatch
answers."""
_NAMES = re.compile(r"[A-Za-z_]\w*(,[A-Za-z_]\w*)*", re.ASCII)
"""Names of environment variables, as `export` takes them."""
_DIRECTIVE = re.compile(r"#(SBATCH|SLURM|PBS|BSUB)")
_REPLACED = re.compile(r"\\|%[%0-9A-Za-z]")
"""What SLURM does not take literally in the path of a log file."""


def check_options(options: Mapping[Any, Any]) -> None:
    """Raise ConfigError with every invalid option; takes the settings of the launcher or the options of a submission."""
    plain: dict[str, Any] = {key: value for key, value in options.items() if not str(key).startswith("_")}
    problems = [f"hydra.launcher.{key}: there is no such key" for key in plain if key not in KEYS]
    problems += [f"hydra.launcher.{key}: there is no value" for key in sorted(KEYS - set(plain))]
    if not problems:
        found = [*plain.items(), *_named_parameters(plain["additional_parameters"])]
        problems = [f"hydra.launcher.{key}: {text}" for key, value in found for text in _problems(key, value)]
    if not problems:
        problems = list(_signal_problems(plain))
    problems += [
        f"{key}: contains a secret, which SLURM's queue or the job's script would show; export it in the shell that submits "
        "the job, which inherits its environment"
        for key in secret_keys(plain, "hydra.launcher")
    ]
    if problems:
        raise ConfigError(problems)


def check_folder(folder: Path, key: str = "hydra.launcher.folder") -> None:
    """Raise ConfigError for a folder whose path a script cannot hold, or in which another user could replace scripts."""
    if problem := next(_folder_problems(str(folder)), None):
        raise ConfigError(f"{key}: {problem}")
    if problem := folder_problem(folder, follow=True):
        raise ConfigError(
            f"{key}: {folder} {problem}, so the jobs could be replaced; {remedy(problem)}, or pass another folder"
        )


def line_problem(text: str) -> str | None:
    """Return why a text cannot be part of one line of a script, None if it can."""
    if len(text) > LONGEST:
        return f"got {len(text):,} characters, expected at most {LONGEST:,}"
    for letter in text:
        # Zl and Zp end lines for Python and some editors; lone surrogates cannot be written; format characters (Cf) are
        # invisible, and those that turn the direction of text make a command look like another one. Joiners are part of words.
        if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") and letter not in "\u200c\u200d":
            what = f"contains the invisible character U+{ord(letter):04X}"
            return f"got {shorten(text)}, which {what}; expected a single line of visible characters"
    return None


def _problems(key: str, value: Any) -> Iterator[str]:
    """Yield what is wrong with the value of a known key."""
    if value is None and key in _OPTIONAL:
        return
    if key in INTEGERS:
        yield from _number_problems(value, int, *INTEGERS[key])
    elif key == "mem_gb":
        yield from _number_problems(value, (int, float), 0, LARGEST_MEMORY_GB)
    elif key == "poll_seconds":
        if isinstance(value, int | float) and not value > 0:
            yield f"got {value}, expected more than 0"
        else:
            yield from _number_problems(value, (int, float), 0, LONGEST_POLL_SECONDS)
    elif key in _FLAGS:
        if not isinstance(value, bool):
            yield f"got {shorten(value)}, expected true or false"
    elif key == "additional_parameters":
        yield from _name_problems(value)
    elif key.startswith("additional_parameters."):
        yield from _parameter_problems(value)
        if key == f"additional_parameters.{_EXPORT}":
            yield from _export_problems(value)
    elif key in _LISTS:
        yield from _list_problems(value)
    elif text_problems := list(_text_problems(value)):
        yield from text_problems
    elif key == "folder":
        yield from _folder_problems(value)


def _number_problems(value: Any, kinds: Any, least: int, most: int) -> Iterator[str]:
    infinite = isinstance(value, float) and not math.isfinite(value)
    if isinstance(value, bool) or not isinstance(value, kinds) or infinite:
        yield f"got {shorten(value)}, expected a number"
    elif value < least:
        yield f"got {shorten(value)}, expected {least} or more"
    elif value > most:
        yield f"got {shorten(value)}, expected at most {most}"


def _text_problems(value: Any) -> Iterator[str]:
    if not isinstance(value, str):
        yield f"got {shorten(value)}, expected text"
    elif not value.strip():
        yield f"got {value!r}, expected text, or null to omit the option"
    elif problem := line_problem(value):
        yield problem


def _list_problems(value: Any) -> Iterator[str]:
    if not isinstance(value, list):
        yield f"got {shorten(value)}, expected a list"
        return
    for item in value:
        if not isinstance(item, str) or not item.strip():
            yield f"got {shorten(item)}, expected text in each item"
        elif problem := line_problem(item):
            yield f"{problem} in each item"
        elif _DIRECTIVE.match(item):
            yield f"got {shorten(item)}, which sbatch reads as an option; pass it in hydra.launcher.additional_parameters"


def _named_parameters(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the options in `additional_parameters` by their full keys, apart from those whose names are invalid."""
    if isinstance(value, dict):
        yield from ((f"additional_parameters.{name}", item) for name, item in value.items() if _is_option_name(name))


def _is_option_name(name: Any) -> bool:
    return isinstance(name, str) and len(name) <= 100 and bool(_OPTION_NAME.fullmatch(name.replace("_", "-")))


def _name_problems(value: Any) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"got {shorten(value)}, expected options of sbatch by name"
        return
    for name in value:
        if not _is_option_name(name):
            yield f"got the name {shorten(name)}, expected a long option of sbatch without its dashes, such as mail-user"
        elif reason := _refusal(name.replace("_", "-")):
            yield f"got {name}, {reason}"


def _refusal(name: str) -> str | None:
    """Return why an option is refused, or None; sbatch accepts unique abbreviations, so those are refused as well."""
    if name == _EXPORT:
        return None  # its value is checked; it would count as an abbreviation of `export-file`
    if name.startswith("container-"):  # those of the plugin pyxis choose the image in which the job runs
        name = "container"
    return next((reason for full, reason in _UNUSABLE.items() if full.startswith(name)), None)


def _export_problems(value: Any) -> Iterator[str]:
    """Yield what is wrong with the names of the variables that a job inherits."""
    if not isinstance(value, bool | None) and not _NAMES.fullmatch(str(value)):
        yield (
            f"got {shorten(value)}, expected ALL, NONE, NIL or names of variables, without values; a variable such as "
            "PYTHONPATH could run code, so set it in hydra.launcher.setup"
        )


def _parameter_problems(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if problem := line_problem(value):
            yield problem
    elif not isinstance(value, bool | int | float | None):
        yield f"got {shorten(value)}, expected text, a number, true or false"


def _folder_problems(folder: str) -> Iterator[str]:
    if problem := line_problem(folder):
        yield problem
    elif found := _REPLACED.search(folder):
        yield (
            f"got {shorten(folder)}, but SLURM replaces {found[0]!r} in the paths of logs; pass a folder without it in "
            "hydra.launcher.folder"
        )


def _signal_problems(options: Mapping[str, Any]) -> Iterator[str]:
    limit, delay = options["timeout_min"] * 60, options["signal_delay_s"]
    if 0 < limit <= delay:
        yield (
            f"hydra.launcher.signal_delay_s: got {delay}, but hydra.launcher.timeout_min={options['timeout_min']} limits a "
            f"job to {limit} s, so SLURM would signal it immediately after the start; use a shorter delay or a longer time limit"
        )
