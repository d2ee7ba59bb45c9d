"""A real SLURM of two nodes on this machine: Debian's daemons as plain processes in a temporary folder.

Neither systemd nor cgroups are needed, but root is: slurmd starts jobs as other users. The processes are

    munged                    authentication; its default socket, unless one answers there already
    mariadbd, slurmdbd        accounting (sacct), left out with `accounting=False`
    slurmctld, slurmd x 2     the cluster: partition `main` with the nodes n1 and n2, 4 CPUs each
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.ranks import free_port

NODES = ("n1", "n2")
DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
ACCOUNTING_DAEMONS = ("slurmdbd", "mariadbd", "mariadb-install-db")

SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A credential is good for 10 s: a job that is put back into the queue waits that long before it starts again.
AuthInfo=cred_expire=10
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdSpoolDir={folder}/spool.%n
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
StateSaveLocation={folder}/state
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType={accounting}
JobAcctGatherType=jobacct_gather/none
KillWait=5
MaxArraySize={max_array_size}
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=4 RealMemory=20000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs=4 RealMemory=20000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE
"""
SLURMDBD_CONF = """\
AuthType=auth/munge
DbdHost=localhost
DbdPort={dbd}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
"""


def missing(accounting: bool = True) -> str:
    """Return why no cluster can be started on this machine; empty when one can."""
    wanted = [*DAEMONS, *(ACCOUNTING_DAEMONS if accounting else ())]
    absent = [name for name in wanted if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: slurm-wlm slurmdbd munge mariadb-server)"
    return "" if os.geteuid() == 0 else "slurmd has to be started by root"


class Cluster:
    """The processes of one cluster; `variables` is what a command needs to talk to it."""

    def __init__(self, folder: Path, *, accounting: bool, max_array_size: int = 1001) -> None:
        self.folder = folder
        self.accounting = accounting
        self._max_array_size = max_array_size
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables that point SLURM's commands to this cluster."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        """Start everything and wait until both nodes are idle."""
        self.folder.chmod(0o755)
        (self.folder / "state").mkdir()
        name_nodes()
        self._start_munge()
        accounting = "accounting_storage/none"
        if self.accounting:
            accounting = f"accounting_storage/slurmdbd\nAccountingStorageHost=127.0.0.1\nAccountingStoragePort={self._start_database()}"
        host = socket.gethostname().partition(".")[0]
        text = SLURM_CONF.format(
            host=host,
            port=free_port(),
            n1=free_port(),
            n2=free_port(),
            folder=self.folder,
            accounting=accounting,
            max_array_size=self._max_array_size,
        )
        (self.folder / "slurm.conf").write_text(text)
        if self.accounting:
            self.command("sacctmgr -i add cluster test")
        self._spawn("slurmctld", "-D", "-c")
        for node in NODES:
            (self.folder / f"spool.{node}").mkdir()
            self._spawn("slurmd", "-D", "-N", node)
        self._wait(
            "both nodes idle", lambda: self.command("sinfo -h -o %t -N", check=False).split() == ["idle", "idle"]
        )

    def stop(self) -> None:
        """Cancel what still runs and end every process that `start` started, the last one first."""
        if self._processes:
            self.command("scancel --me", check=False)
            self._wait("an empty queue", lambda: not self.command("squeue -h", check=False).strip(), seconds=20)
        for process in reversed(self._processes):
            process.terminate()
        for process in reversed(self._processes):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def command(self, line: str, *, check: bool = True) -> str:
        """Run one of SLURM's commands against this cluster and return what it printed."""
        done = subprocess.run(
            line, shell=True, env={**os.environ, **self.variables}, capture_output=True, text=True, timeout=60
        )
        assert not check or done.returncode == 0, f"{line}: {done.stderr}"
        return done.stdout

    def _spawn(self, *command: str, user: str | None = None) -> None:
        log = (self.folder / f"{command[0]}.{len(self._processes)}.out").open("wb")
        environment = {**os.environ, **self.variables}
        self._processes.append(
            subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, user=user,
                start_new_session=True,
            )
        )  # fmt: skip

    def _wait(self, what: str, holds: Callable[[], bool], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not holds():
            ended = [process.args for process in self._processes if process.poll() is not None]
            assert not ended, f"waiting for {what}: ended: {ended}; see {self.folder}"
            assert time.monotonic() < end, f"{what} did not come within {seconds} s; see {self.folder}"
            time.sleep(0.1)

    def _start_munge(self) -> None:
        if subprocess.run("munge -n", shell=True, capture_output=True).returncode == 0:
            return
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        owner = pwd.getpwnam("munge")
        for place in (Path("/run/munge"), Path("/var/lib/munge"), Path("/var/log/munge")):
            place.mkdir(mode=0o755, exist_ok=True)
            os.chown(place, owner.pw_uid, owner.pw_gid)
        Path("/run/munge").chmod(0o755)
        private = self.folder / "munge"
        private.mkdir(mode=0o700)
        os.chown(private, owner.pw_uid, owner.pw_gid)
        os.chown(key, owner.pw_uid, owner.pw_gid)
        self._spawn(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--seed-file={private}/seed",
            f"--log-file={private}/log", user="munge",
        )  # fmt: skip
        self._wait("munge", lambda: subprocess.run("munge -n", shell=True, capture_output=True).returncode == 0)

    def _start_database(self) -> int:
        """Start MariaDB and slurmdbd; return the latter's port."""
        data, database, dbd = self.folder / "mariadb", free_port(), free_port()
        data.mkdir(mode=0o700)
        shutil.chown(data, "mysql", "mysql")
        install = ["mariadb-install-db", "--no-defaults", "--user=mysql", f"--datadir={data}", "--skip-test-db"]
        subprocess.run([*install, "--auth-root-authentication-method=normal"], check=True, capture_output=True)
        link = data / "socket"
        self._spawn(
            "mariadbd", "--no-defaults", f"--datadir={data}", f"--socket={link}", f"--port={database}",
            "--bind-address=127.0.0.1", "--innodb-flush-log-at-trx-commit=0", f"--pid-file={data}/pid", user="mysql",
        )  # fmt: skip
        sql = (
            "CREATE DATABASE slurm_acct_db; CREATE USER slurm@'127.0.0.1' IDENTIFIED BY 'slurm'; "
            "CREATE USER slurm@localhost IDENTIFIED BY 'slurm'; GRANT ALL ON slurm_acct_db.* TO slurm@'127.0.0.1'; "
            "GRANT ALL ON slurm_acct_db.* TO slurm@localhost"
        )
        client = ["mariadb", "--no-defaults", f"--socket={link}", "-u", "root"]
        self._wait("mariadb", lambda: subprocess.run([*client, "-e", "SELECT 1"], capture_output=True).returncode == 0)
        subprocess.run([*client, "-e", sql], check=True)
        conf = self.folder / "slurmdbd.conf"
        conf.write_text(SLURMDBD_CONF.format(dbd=dbd, database=database, folder=self.folder))
        conf.chmod(0o600)
        (self.folder / "slurm.conf").write_text("ClusterName=test\nSlurmctldHost=localhost\nAuthType=auth/munge\n")
        self._spawn("slurmdbd", "-D")
        self._wait("slurmdbd", lambda: _listens(dbd))
        return dbd


def name_nodes() -> None:
    """Give the nodes' names an address: ranks on one node ask for the other by its name."""
    hosts = Path("/etc/hosts")
    text = hosts.read_text()
    if not all(any(node in line.split() for line in text.splitlines()) for node in NODES):
        hosts.write_text(f"{text.rstrip()}\n127.0.0.1 {' '.join(NODES)}\n")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
