"""The completion scripts, and the answers to their queries.

A script sets COMP_LINE to the command line up to the cursor, and in bash COMP_WORD to the part of the last word that bash
replaces, which begins after `=` and `:`. The answer has one candidate per line, in zsh and fish with a tab and a text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources

from arctic_hydra.cli.completion.candidates import SHELLS, complete, read_line
from arctic_hydra.errors import ConfigError

_SPECIAL = {
    "": (re.compile(r"""([\s!"#$&'()*;<>?\\`{|}])"""), r"\\\1"),
    "'": (re.compile("'"), r"'\\''"),
    '"': (re.compile(r"""(["$\\`])"""), r"\\\1"),
}
"""Characters that bash gives a meaning, by the quotes around them, and what to write instead; `[` and `]` alone stay as they are."""


def respond(arguments: Sequence[str]) -> str:
    """Return the script for `install=<shell>`, or the candidates for `query=<shell>`; raises ConfigError for others."""
    action, _, shell = arguments[0].partition("=") if len(arguments) == 1 else ("", "", "")
    if action not in ("install", "query") or shell not in SHELLS:
        given = " ".join(arguments) or "no command"
        raise ConfigError(f"--shell-completion: got {given}, expected install=bash, install=zsh or install=fish")
    if action == "install":
        return (resources.files(__package__) / f"completion.{shell}").read_text(encoding="utf-8")
    if "COMP_LINE" not in os.environ:
        raise ConfigError("--shell-completion: query= is called by the shell, which sets COMP_LINE; pass install=")
    return answer(shell, os.environ)


def answer(shell: str, variables: Mapping[str, str]) -> str:
    """Return the candidates for a line as the script of a shell expects them."""
    line = read_line(variables["COMP_LINE"])
    try:
        found = list(dict.fromkeys(complete(line)))
    except ConfigError:  # of folders that cannot be listed; a message would end up in the line that is typed
        found = []
    if shell != "bash":
        return "".join(f"{item.text}\t{item.about.partition('; ')[0]}\n" for item in found)
    part = variables.get("COMP_WORD", line.word)
    if not line.word.endswith(part):
        part = re.sub(r"\\(.)", r"\1", part)
    kept = len(line.word) - len(part) if line.word.endswith(part) else 0
    special, written = _SPECIAL[line.quote]
    return "".join(f"{special.sub(written, item.text[kept:])}\n" for item in found)
