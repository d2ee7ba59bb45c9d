"""The options of `hydra/launcher=slurm`.

A separate module, because Hydra's plugin scan executes plugin modules in a way that breaks dataclasses with string
annotations.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore

from arctic_hydra.human_numbers import bounded
from arctic_hydra.launch.slurm_options import INTEGERS, LARGEST_MEMORY_GB, LONGEST_POLL_SECONDS


def _integer(name: str, default: int | None) -> Any:
    least, most = INTEGERS[name]
    return bounded(default, minimum=least, maximum=most)


@dataclass(kw_only=True)
class SlurmConf:
    """Submits runs, and sweeps as job arrays, to a SLURM cluster."""

    _target_: str = "hydra_plugins.arctic_hydra.slurm.SlurmLauncher"
    nodes: int = _integer("nodes", 1)
    """Nodes per job."""
    gpus_per_node: int | None = _integer("gpus_per_node", None)
    """GPUs per node; `ranks=auto` starts one rank per GPU, or a single rank when unset."""
    timeout_min: int = _integer("timeout_min", 240)
    """Time limit in minutes, 0 for none; a job that reaches it saves a checkpoint and is requeued."""
    partition: str | None = None
    """The sbatch option of the same name; omitted when unset."""
    account: str | None = None
    """The sbatch option of the same name; omitted when unset."""
    qos: str | None = None
    """The sbatch option of the same name; omitted when unset."""
    cpus_per_task: int | None = _integer("cpus_per_task", None)
    """CPU cores per node; one task per node contains all of its ranks."""
    mem_gb: float | None = bounded(None, minimum=0, maximum=LARGEST_MEMORY_GB)
    """Memory per node in GB; 0 requests all of it."""
    gres: str | None = None
    """The sbatch option of the same name; omitted when unset."""
    constraint: str | None = None
    """The sbatch option of the same name; omitted when unset."""
    nodelist: str | None = None
    """The sbatch option of the same name; omitted when unset."""
    exclude: str | None = None
    """The sbatch option of the same name; omitted when unset."""
    exclusive: bool = False
    """The sbatch option of the same name; omitted when unset."""
    comment: str | None = None
    """The sbatch option of the same name; omitted when unset."""
    dependency: str | None = None
    """The sbatch option of the same name; omitted when unset."""
    mail_type: str | None = None
    """The sbatch option of the same name; omitted when unset."""
    mail_user: str | None = None
    """The sbatch option of the same name; omitted when unset."""
    wckey: str | None = None
    """The sbatch option of the same name; omitted when unset."""
    name: str | None = None
    """Name in the queue; the run's `name` when unset."""
    array_parallelism: int = _integer("array_parallelism", 256)
    """Maximum number of array jobs that run at the same time."""
    max_array_size: int | None = _integer("max_array_size", None)
    """Maximum size of one job array; larger sweeps use several. The cluster's limit when unset."""
    setup: list[str] = field(default_factory=list)
    """Shell commands to run before the job, such as `module load cuda`, one line each."""
    teardown: list[str] = field(default_factory=list)
    """Shell commands to run after the job, one line each."""
    srun_args: list[str] = field(default_factory=list)
    """Arguments of srun, which starts one task per node; each is passed as it is, and may name a program for srun to run."""
    additional_parameters: dict[str, Any] = field(default_factory=dict)
    """Further sbatch options by their long names; `false` omits an option, and `requeue: false` means `--no-requeue`."""
    stderr_to_stdout: bool = True
    """Write stdout and stderr to one log file, in order."""
    signal_delay_s: int = _integer("signal_delay_s", 120)
    """Seconds before the time limit at which SLURM signals the job; must cover the current step and a save."""
    max_requeues: int = _integer("max_requeues", 20)
    """How often a job may be requeued after reaching its time limit or being preempted."""
    python: str | None = None
    """Shell command that runs Python on the nodes, such as one inside a container; the current interpreter when unset."""
    folder: str | None = None
    """Folder for scripts and logs on a shared file system; `slurm` in the sweep directory when unset."""
    snapshot: bool = False
    """Copy the source code and run the jobs from the copy, so that later edits do not affect them."""
    detach: bool = False
    """Submit the jobs and exit without waiting for them."""
    dry_run: bool = False
    """Print the sbatch scripts and submit nothing."""
    poll_seconds: float = bounded(5.0, minimum=0, maximum=LONGEST_POLL_SECONDS)
    """Interval at which to query the states of the jobs while waiting."""


ConfigStore.instance().store(group="schema/launcher", name="slurm", node=SlurmConf, provider="arctic_hydra")
