"""The options of `hydra/launcher=slurm`.

A module of its own: Hydra's scan for plugins executes theirs in a way that dataclasses cannot stand.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore


@dataclass(kw_only=True)
class SlurmConf:
    """Where and how jobs run on the cluster; keys without a note are sbatch's own options."""

    _target_: str = "hydra_plugins.arctic_hydra.slurm.SlurmLauncher"
    nodes: int = 1
    """Machines of each job."""
    gpus_per_node: int | None = None
    """GPUs of each machine; `ranks=auto` starts a rank on each, or a single rank where unset."""
    timeout_min: int = 240
    """Time limit in minutes, 0 for none; a job that reaches it saves, and goes back into the queue."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    cpus_per_task: int | None = None
    """Cores of each machine: one task per machine holds all of its ranks."""
    mem_gb: float | None = None
    """Memory of each machine, 0 for all that it has."""
    gres: str | None = None
    constraint: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    exclusive: bool = False
    comment: str | None = None
    dependency: str | None = None
    mail_type: str | None = None
    mail_user: str | None = None
    wckey: str | None = None
    name: str | None = None
    """Name in the queue; the run's `name` when unset."""
    array_parallelism: int = 256
    """Jobs of an array that run at a time."""
    max_array_size: int | None = None
    """Jobs of an array; a longer sweep takes several. The cluster's own limit when unset."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell before the job, such as `module load cuda`."""
    teardown: list[str] = field(default_factory=list)
    """Lines of shell after the job."""
    srun_args: list[str] = field(default_factory=list)
    """Arguments of srun, which starts the task of each machine."""
    additional_parameters: dict[str, Any] = field(default_factory=dict)
    """Any other option of sbatch, by its long name; `false` leaves one out, and `requeue: false` is `--no-requeue`."""
    stderr_to_stdout: bool = True
    """One log file per job, in the order in which things were said."""
    signal_delay_s: int = 120
    """Seconds before the time limit at which SLURM warns the job: time for the step under way and for the save."""
    max_requeues: int = 20
    """How often a job may put itself back into the queue, after its time limit or a preemption."""
    python: str | None = None
    """The command that runs Python on the machines, such as one inside a container; this very one when unset."""
    folder: str | None = None
    """Folder for scripts and logs, on a file system that all machines share; the sweep's own when unset."""
    snapshot: bool = False
    """Copy the source, and have the jobs import the copy: editing a file while they wait changes nothing."""
    detach: bool = False
    """Submit and leave, instead of waiting for the jobs."""
    dry_run: bool = False
    """Print the sbatch scripts and submit nothing."""
    poll_seconds: float = 5.0
    """How often to ask SLURM for the jobs' states while waiting."""


ConfigStore.instance().store(group="schema/launcher", name="slurm", node=SlurmConf, provider="arctic_hydra")
