"""Fixtures that sweeps and launchers share."""

from tests.launchers.slurm_sweeps import queue as queue
from tests.launchers.slurm_sweeps import while_waiting as while_waiting
from tests.sweep.sweeps import shell_jobs as shell_jobs
