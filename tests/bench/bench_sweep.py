"""A sweep of 16 tiny runs in two slots against 16 commands one after another: time, overhead per job, the parent's memory.

Both sides do equal work: the same 16 configurations, whose losses are compared at the end. Prints, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "model.hidden_size=64 model.intermediate_size=128 model.num_hidden_layers=2 data.max_length=256 data.num_proc=1 "
    "data.sources.chat.sample_count=40 trainer.train_iters=4 trainer.eval_at_start=false tracking=[] checkpoint=[]"
)


def command(*arguments: str) -> list[str]:
    """Return the program's command line."""
    return [sys.executable, "-m", "arctic_hydra", *shlex.split(TINY), *arguments]


def losses(folder: Path) -> dict[str, list[float]]:
    """Return the training losses of each run, by directory name."""
    found = {}
    for path in sorted(folder.glob("outputs/default/*/metrics.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.parent.name] = [row["loss"] for row in rows if "loss" in row]
    return found


def timed(arguments: list[str], folder: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Run a command; return its seconds and the highest resident memory in MiB of its own process, without its children."""
    start = time.perf_counter()
    child = subprocess.Popen(arguments, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    peak = [0.0]

    def look() -> None:
        process = psutil.Process(child.pid)
        while child.poll() is None:
            try:
                peak[0] = max(peak[0], process.memory_info().rss / 2**20)
            except psutil.NoSuchProcess:
                return
            time.sleep(0.05)

    watcher = threading.Thread(target=look)
    watcher.start()
    code = child.wait()
    watcher.join()
    assert code == 0, f"exit code {code}: {shlex.join(arguments)}"
    return time.perf_counter() - start, peak[0]


def main() -> None:
    """Measure both sides and the time of a bare worker."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=16)
    jobs = parser.parse_args().jobs
    rates = [f"{1e-4 * (n + 1):.4g}" for n in range(jobs)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'launchers'}", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        swept, single = Path(scratch) / "swept", Path(scratch) / "single"
        for folder in (swept, single):
            folder.mkdir()
            timed(command("name=warm"), folder, environment)  # prepares the data
        worker = command("name=warm", "fresh=true")
        alone, _ = timed(worker, single, environment)
        run_file = next(single.glob("outputs/warm/*/run.json"))
        bare, _ = timed([sys.executable, "-m", "arctic_hydra.worker", str(run_file)], single, environment)
        grid = command("-m", "hydra/launcher=local", "hydra.launcher.slots=2", f"optimizer.lr={','.join(rates)}")
        together, memory = timed(grid, swept, environment)
        one_by_one = sum(timed(command(f"optimizer.lr={rate}"), single, environment)[0] for rate in rates)
        again, _ = timed(grid, swept, environment)
        found = losses(swept)
        assert found == losses(single) and len(found) == jobs and all(found.values()), (
            "the sides did not do the same work"
        )
        seconds = [json.loads(path.read_text())["seconds"] for path in swept.glob("outputs/default/*/record.json")]
    cores = len(os.sched_getaffinity(0))
    print(f"{jobs} jobs, {cores} cores, one thread each; the losses of both sides are equal")
    print(f"one after another   {one_by_one:7.1f} s   {one_by_one / jobs:5.2f} s per job")
    print(
        f"sweep, two slots    {together:7.1f} s   ratio {together / one_by_one:.2f} (0.5 without any start-up that the jobs share)"
    )
    print(f"the same sweep again, all finished   {again:.1f} s")
    print(f"a worker by itself  {bare:7.2f} s   a single command {alone:.2f} s")
    busy = sum(seconds) / 2  # two slots
    print(
        f"overhead per job: {(together - busy) / jobs:.2f} s of the sweep's time beside its workers' {busy / jobs:.2f} s"
    )
    print(f"the sweep's own process, without the one that forks jobs: {memory:.0f} MiB at most")


if __name__ == "__main__":
    main()
