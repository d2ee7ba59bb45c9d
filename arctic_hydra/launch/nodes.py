"""The machines of a run: the index of each, and starting all of them from one machine through ssh.

Several machines run one agent each (`arctic_hydra.launch`). SLURM starts the agents as tasks; users start them with one
command per machine (`nnodes`, `node_rank`, `rendezvous`), or with a single command and a hostfile in DeepSpeed's format.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_hydra import python_flags
from arctic_hydra.errors import ConfigError
from arctic_hydra.files import code_file

if TYPE_CHECKING:
    from arctic_hydra.config import Run

REMOTE_SHELL = "ARCTIC_HYDRA_SSH"
"""Environment variable with the command that runs a command on a host, `ssh` when unset."""
_CARRIED = (
    "HF_",
    "NCCL_",
    "OMP_",
    "PYTHON",
    "TORCH_",
    "UCX_",
    "CUDA_HOME",
    "LD_LIBRARY_PATH",
    "ARCTIC_HYDRA_",
    "TOKENIZERS_",
)
_HOST = re.compile(
    r"(?P<name>(?:[a-z0-9_][a-z0-9_.-]*@)?[a-z0-9_:][a-z0-9_.:-]*)\s+slots\s*=\s*(?P<slots>\d{1,4})\s*(?:#.*)?",
    re.IGNORECASE | re.ASCII,
)
"""A line of a hostfile: no name can be an option of ssh or hold a character that a shell interprets."""


@dataclass(frozen=True)
class Nodes:
    """The number of machines of a run, the index of this one, and the `host:port` of the rendezvous."""

    count: int = 1
    index: int = 0
    rendezvous: str = "localhost:0"

    def arguments(self) -> list[str]:
        """Return the arguments of this machine's agent, none for a single machine."""
        if self.count == 1:
            return []
        return ["--nnodes", str(self.count), "--node-rank", str(self.index), "--rendezvous", self.rendezvous]


@dataclass(frozen=True)
class Hosts:
    """The machines of a hostfile; this process starts an agent on each, and may run on another machine."""

    names: list[str]
    rendezvous: str
    index: int = field(default=0, init=False)

    @property
    def count(self) -> int:
        """Number of machines."""
        return len(self.names)

    def start(self, run_file: Path, ranks: int, secrets: dict[str, str]) -> dict[str, RemoteAgent]:
        """Start the agent of every host, with `ranks` ranks each, and return them in order; the hosts must share this folder."""
        shell = remote_shell()
        environment = {key: value for key, value in os.environ.items() if key.startswith(_CARRIED)} | secrets
        agents = {}
        for index, name in enumerate(self.names):
            nodes = Nodes(len(self.names), index, self.rendezvous)
            agent = [
                sys.executable,
                *python_flags(),
                "-u",
                "-m",
                "arctic_hydra.launch",
                str(run_file),
                str(ranks),
                *nodes.arguments(),
                *code_file.arguments(),
            ]
            python_path = f"PYTHONPATH={os.environ.get('PYTHONPATH', '')}"
            command = f"cd {shlex.quote(os.getcwd())} && exec env {shlex.join([python_path, *agent, '--remote'])}"
            agents[name] = RemoteAgent([*shell, name, command], environment)
        return agents


def remote_shell() -> list[str]:
    """Return the words of the command that runs a command on a host; raises ConfigError if this machine has no such command."""
    text = os.environ.get(REMOTE_SHELL, "ssh")
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{REMOTE_SHELL}: got {text!r}, which is not a shell command: {error}") from error
    if not words:
        raise ConfigError(
            f"{REMOTE_SHELL}: got {text!r}, expected a command such as `ssh -p 2222`; unset it to use ssh"
        )
    if shutil.which(words[0]) is None:
        raise ConfigError(
            f"hostfile: there is no command {words[0]!r} on this machine, which starts the ranks on the hosts; install it, or "
            f"set {REMOTE_SHELL}"
        )
    return words


def machines_of(run: Run, run_dir: Path) -> Nodes | Hosts:
    """Return the machines that a run's keys name; raises ConfigError for several machines without a rendezvous.

    With a hostfile, the port is a hash of the run's directory between 10,000 and 29,999, so that different runs use
    different ports; a collision (1 in 20,000) is reported at the rendezvous.
    """
    if run.hostfile is not None:
        names, _ = read_hostfile(Path(run.hostfile))
        remote_shell()
        first = names[0].rpartition("@")[2]
        number = int(hashlib.sha256(os.fsencode(run_dir)).hexdigest(), 16)
        return Hosts(names, run.rendezvous or f"{first}:{10_000 + number % 20_000}")
    if run.nnodes > 1 and run.rendezvous is None:
        raise ConfigError(
            f"rendezvous: required with nnodes={run.nnodes}; pass rendezvous=<first machine>:<free port> on each machine, "
            "or start all of them with hostfile=<path> or hydra/launcher=slurm"
        )
    return Nodes(run.nnodes, run.node_rank, run.rendezvous or "localhost:0")


def apply_hostfile(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a resolved config with the number of machines, and of ranks on each, filled in from its hostfile."""
    if not tree.get("hostfile"):
        return tree
    if tree["nnodes"] != 1 or tree["node_rank"] != 0:
        raise ConfigError("hostfile: starts every machine itself, so nnodes and node_rank have no effect; remove them")
    names, slots = read_hostfile(Path(tree["hostfile"]))
    return {**tree, "nnodes": len(names), "ranks": str(slots) if tree["ranks"] == "auto" else tree["ranks"]}


class RemoteAgent:
    """An agent on another host, controlled through its standard input: the environment, then one signal name per line.

    Remote shells do not forward signals, and the end of the input tells the agent that this process has died.
    """

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
        self._send(json.dumps(environment))

    def poll(self) -> int | None:
        """Return the exit code of the agent, or None while it runs."""
        return self._process.poll()

    def send_signal(self, number: int) -> None:
        """Make the agent forward a signal to its ranks, which it wakes itself if they are stopped."""
        if number != signal.SIGCONT:
            self._send(signal.Signals(number).name)

    def kill(self) -> None:
        """Kill the remote shell, which ends the agent and its ranks."""
        self._process.kill()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has exited; `poll` returns its code


def read_hostfile(path: Path) -> tuple[list[str], int]:
    """Return the hosts of a file in DeepSpeed's format (`name slots=8`, one per line) and the slots of each.

    Raises ConfigError for a missing file, a malformed line, a repeated host, and unequal slots.
    """
    if not os.path.isfile(path):  # of a name that is too long, Path.is_file raises
        raise ConfigError(
            f"hostfile: got {str(path)[:250]}, but there is no such file; expected lines such as `node1 slots=8`"
        )
    slots: dict[str, int] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"hostfile: cannot read {path}: {error}; expected UTF-8 lines such as `node1 slots=8`"
        ) from error
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.strip().startswith("#"):
            continue
        match = _HOST.fullmatch(line.strip())
        if match is None or int(match["slots"]) == 0:
            raise ConfigError(
                f"hostfile: line {number} of {path} is {line.strip()[:200]!r}, expected `<host> slots=<number>`"
            )
        if match["name"] in slots:
            raise ConfigError(
                f"hostfile: {match['name']} is listed twice in {path}; expected each host once; remove a line"
            )
        slots[match["name"]] = int(match["slots"])
    if len(set(slots.values())) != 1:
        listed = ", ".join(f"{name} {count}" for name, count in slots.items()) or "no host"
        raise ConfigError(f"hostfile: {path} lists {listed}; expected hosts with the same number of slots")
    return list(slots), next(iter(slots.values()))
