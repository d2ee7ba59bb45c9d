"""The sbatch script of a job or an array, from options that `check_options` accepted.

submitit's own scripts hold the options of a job in lines that a value can end, and quote them for a shell, although
sbatch reads backslashes within single quotes too.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra_plugins.arctic_hydra._slurm_job import SECRETS_VARIABLE

from arctic_hydra import python_flags
from arctic_hydra.errors import ConfigError
from arctic_hydra.files import code_file
from arctic_hydra.launch.slurm_options import check_folder, check_options

CODE_FOLDER = "code"
"""Folder of a snapshot with the file of `code=`."""
NOTHING = ("NONE", "NIL")
"""Values of `export` with which a job inherits no variable."""
_RENAMED = {"name": "job-name", "timeout_min": "time"}
_NO_PARAMETERS = frozenset(
    "array_parallelism max_array_size signal_delay_s max_requeues mem_gb poll_seconds setup teardown srun_args "
    "additional_parameters stderr_to_stdout python folder snapshot detach dry_run".split()
)
"""Options that are no parameter of sbatch under their own name."""


def render(options: dict[str, Any], count: int, *, python: str, snapshot: Path | None = None, marker: str = "") -> str:
    """Return the script of an array of `count` runs, or of a single run.

    `python` is a shell command, `marker` a comment line. Raises ConfigError for invalid options, and for a `setup`,
    `teardown` or `python` that leave the script without a valid shell syntax.
    """
    check_options(options)
    folder = Path(options["folder"])
    check_folder(folder)
    # %t is the task: the log of the batch script itself is that of task 0.
    log = f"{folder}/{'%A_%a' if count > 1 else '%j'}_%t_log"
    parameters = _parameters(options, count, log) | ({"chdir": str(snapshot)} if snapshot else {})
    step = ["srun", "--unbuffered", "--output", f"{log}.out"]
    if not options["stderr_to_stdout"]:
        step += ["--error", f"{log}.err"]
    if options["cpus_per_task"]:
        # Since SLURM 22.05 a step does not inherit this number from the allocation, and its ranks would share one core.
        step.append(f"--cpus-per-task={options['cpus_per_task']}")
    module = [*python_flags(), "-u", "-m", "hydra_plugins.arctic_hydra._slurm_start", str(folder)]
    module += code_file.arguments(snapshot and snapshot / CODE_FOLDER)
    setup = [*([marker] if marker else []), *options["setup"]]
    lines = [
        "#!/bin/bash",
        "",
        "# Parameters",
        *(_directive(name, parameters[name]) for name in sorted(parameters)),
        *(["", "# setup", *setup] if setup else []),
        "",
        "# command",
        "export SUBMITIT_EXECUTOR=slurm",
        f"{shlex.join([*step, *options['srun_args']])} {python} {shlex.join(module)}",
        "",
        *(["", "# teardown", *options["teardown"]] if options["teardown"] else []),
    ]
    script = "\n".join(lines)
    _check_syntax(script)
    return script


def _parameters(options: dict[str, Any], count: int, log: str) -> dict[str, Any]:
    """Return the parameters of sbatch by their long names; those of `additional_parameters` replace others."""
    own = {_RENAMED.get(key, key): value for key, value in options.items() if key not in _NO_PARAMETERS}
    memory = options["mem_gb"]
    parameters = {
        **own,
        "mem": None if memory is None else f"{int(memory)}GB" if memory == int(memory) else f"{int(memory * 1024)}MB",
        "ntasks-per-node": 1,
        "signal": f"USR2@{options['signal_delay_s']}",
        "array": f"0-{count - 1}%{min(count, options['array_parallelism'])}" if count > 1 else None,
        "output": f"{log}.out".replace("%t", "0"),
        "error": None if options["stderr_to_stdout"] else f"{log}.err".replace("%t", "0"),
        "open-mode": "append",
    }
    asked = {_long(name): value for name, value in options["additional_parameters"].items()}
    if isinstance(names := asked.get("export"), str) and names.upper() not in ("ALL", *NOTHING):
        asked["export"] = f"{names},PYTHONPATH,{SECRETS_VARIABLE}"  # the code of a snapshot, and secrets of the config
    if asked.get("requeue") is False:
        asked["no-requeue"] = True
    parameters = {_long(name): value for name, value in parameters.items()}
    parameters |= {"requeue": "no-requeue" not in asked, **asked}
    return {name: value for name, value in parameters.items() if value is not None and value is not False}


def _long(name: str) -> str:
    return name.replace("_", "-")


def _directive(name: str, value: Any) -> str:
    """Return the line of an option.

    To sbatch a backslash escapes the next character within quotes of both kinds; to `shlex.quote`, and a shell, it is an
    ordinary one within single quotes.
    """
    return f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={quote(str(value))}"


def quote(text: str) -> str:
    """Return a text as one word of a line that sbatch reads."""
    return shlex.quote(text.replace("\\", "\\\\"))


def _check_syntax(script: str) -> None:
    """Raise ConfigError if bash cannot parse a script; without bash on this machine it is not checked."""
    bash = shutil.which("bash")
    if bash is None:
        return
    words: Sequence[str] = [bash, "--norc", "-n"]
    done = subprocess.run(words, input=script.encode(), capture_output=True, env={}, check=False)
    if done.returncode != 0:
        [first, *_] = [*done.stderr.decode(errors="replace").splitlines(), "no reason given"]
        raise ConfigError(
            f"hydra.launcher: the script is not valid shell syntax ({first.partition(': ')[2] or first}); check setup, "
            "teardown and python for a quote or a bracket that is not closed"
        )
