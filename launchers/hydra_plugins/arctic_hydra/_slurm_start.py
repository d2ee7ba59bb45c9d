"""The program that SLURM's script starts on each machine: blocks the stop signals, then runs submitit's job.

SLURM sends signals to every process of a job, and would kill one that is still importing its libraries. Blocked signals
stay pending until `launch.ranks.start_ranks` receives them.
"""

from __future__ import annotations

import signal
import sys

from arctic_hydra import redaction
from arctic_hydra.files import code_file
from arctic_hydra.stopping import SIGNALS


def main() -> None:
    """Block the signals and run the job of the folder that the command line names."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # before numpy's threads, which inherit the mask
    redaction.protect()
    sys.argv[1:] = code_file.take(sys.argv[1:], load=False)  # for the ranks that this process starts
    from submitit.core.submission import submitit_main

    submitit_main()


if __name__ == "__main__":
    main()
