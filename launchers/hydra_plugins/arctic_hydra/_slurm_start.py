"""What SLURM's script starts on each machine: submitit's job, with the stop signals blocked before anything else.

SLURM sends them to every process of a job, also to one that still imports its libraries, which would end by them. Here
they stay pending until `launch.start_ranks` takes them.
"""

from __future__ import annotations

import signal

from arctic_hydra.stopping import SIGNALS


def main() -> None:
    """Block the signals and run the job of the folder that the command line names."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # before numpy's threads, which inherit the mask
    from submitit.core.submission import submitit_main

    submitit_main()


if __name__ == "__main__":
    main()
