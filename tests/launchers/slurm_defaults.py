"""The options of `hydra/launcher=slurm` as the launcher gets them, and texts that attack a script."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from hydra_plugins.arctic_hydra._slurm_conf import SlurmConf

LINE_BREAKS = (
    "\n",
    "\r",
    "\0",
    "\v",
    "\f",
    "\x1b",
    "\x85",
    "\u2028",
    "\u2029",
    "\ud800",
    "\t",
    "\u202e",
    "\u2066",
    "\u200b",
)

CANARY = "touch canary"
ATTACKS = (
    f"a'; {CANARY}; '",
    f'a"; {CANARY}; "',
    f"$({CANARY})",
    f"`{CANARY}`",
    f"; {CANARY} #",
    f"# {CANARY}",
    f"&& {CANARY}",
    f"| {CANARY}",
    f">canary {CANARY}",
    f"-x {CANARY}",
    f"--wrap={CANARY}",
    "-",
    "$HOME ${IFS} ~ * ? !! {a,b}",
    # To sbatch, a backslash escapes a quote within single quotes: quoted for a shell, the first one adds an option.
    f"\\'' --wrap={CANARY} \\",
    f"a\\' --wrap='{CANARY}",
    f"\\' --wrap={CANARY} '",
    f'\\" --wrap={CANARY} "',
    "ends in a backslash \\",
    "\\\\'\\\\\"",
    'it\'s a "quote"',
    "ünïcödé \u00a0 日本",
    "x" * 4096,
    "'" * 2000,
)
"""Texts without a line break; each must stay one inert value."""


def defaults(**options: Any) -> dict[str, Any]:
    """Return the default options with some of them changed."""
    plain = asdict(SlurmConf())
    del plain["_target_"]
    return {**plain, "folder": "/shared/slurm", "name": "run", **options}
