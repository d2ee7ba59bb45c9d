"""SLURM's commands as a few lines of shell over files: a queue in which every job runs, or waits, until it is cancelled."""

from __future__ import annotations

import os
from pathlib import Path

COMMANDS = {
    "sbatch": """\
n=$(( $(cat n 2>/dev/null || echo 100) + 1 )); echo $n > n
last=$(grep -o 'array=0-[0-9]*' "$1" | grep -o '[0-9]*$')
if [ -n "$last" ]; then for i in $(seq 0 $last); do echo "${n}_$i $n $1"; done; else echo "$n $n $1"; fi >> queue
if [ "$(cat answer_is_lost 2>/dev/null)" = $n ]; then echo 'sbatch: error: Socket timed out on send/recv' >&2; exit 1; fi
echo "Submitted batch job $n"
""",
    "squeue": """\
if [ -e away ]; then echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1; fi
touch queue
case "$*" in
    *%o*) awk '{print $2 "|" $3}' queue;;
    *) awk -v state=$(cat state 2>/dev/null || echo RUNNING) '{print $1 "|" state "|None|n1"}' queue;;
esac
""",
    "scancel": "for job in \"$@\"; do awk -v job=$job '$1 != job && $2 != job' queue > rest; mv rest queue; done",
    "sacct": "echo 'there is no accounting' >&2; exit 1",
    "scontrol": "echo 'MaxArraySize = 1001'",
    "srun": "exit 1",
}


class Queue:
    """The commands, first in PATH of `variables`, and the queue that they keep in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name, text in COMMANDS.items():
            program = folder / name
            program.write_text(f"#!/bin/sh\ncd {folder}\n{text}\n")
            program.chmod(0o755)
        self.variables = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}

    @property
    def jobs(self) -> list[str]:
        """The ids of the jobs in the queue."""
        path = self.folder / "queue"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []

    def lose_answer(self, number: int) -> None:
        """Have sbatch fail once it has put array `number`, counted from 101, into the queue."""
        (self.folder / "answer_is_lost").write_text(str(number))

    def hold(self) -> None:
        """Let all jobs wait from now on."""
        (self.folder / "state").write_text("PENDING")

    def go_away(self) -> None:
        """Let squeue fail from now on."""
        (self.folder / "away").touch()

    def come_back(self) -> None:
        """Let squeue answer again."""
        (self.folder / "away").unlink()
