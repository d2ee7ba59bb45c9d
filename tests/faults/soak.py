"""Train for half an hour through a kill a minute, and find what grows: memory, open files, threads, directories, processes.

`python -m tests.faults.soak --minutes 30 --results soak.json`; the short form is tests/faults/test_soak.py.
Two ranks train, evaluate and save. In turn a random rank is killed, the launcher is killed, the run is asked to stop, and it
is asked to stop while a rank is frozen; each time the same command starts it again. Exits with 1 and a sentence per figure
that grows faster than its bound, and if the end differs from that of an undisturbed run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.command import SMALL, metrics, run, start
from tests.faults.kill_loop import end_state, install_my_lab
from tests.faults.slope import Point, at_equal_age, slope, span, within_a_start

ARGUMENTS = (
    f"{SMALL} ranks=2 deepspeed=zero2 data.sources.chat.sample_count=40 tracking=[] trainer.eval_frequency=10 "
    "checkpoint.deepspeed.save_every_n_steps=5 model.hf_config_kwargs={attention_dropout:0.1} "
    "trainer.collective_timeout_seconds=30"
)
STEPS_PER_EPOCH = 17
PAUSED = "callback=[saboteur] callback.saboteur.how=none"
MARK = "SOAK_FOLDER"
"""Environment variable by which processes that a start leaves behind are found."""
STOP_SECONDS = 150.0
"""Within this a start must end after a signal; collectives of the living ranks time out in between."""
KINDS = ("kill a rank", "kill the launcher", "stop", "stop while frozen")
CODES = {"kill a rank": {1}, "kill the launcher": {-signal.SIGKILL}, "stop": {75}, "stop while frozen": {1, 75}}


@dataclass(frozen=True)
class Bound:
    """How much a figure may grow per minute."""

    unit: str
    per_minute: float
    noise: float
    """What it may differ by between any two moments; in samples over a short time that looks like growth."""

    def limit(self, minutes: float) -> float:
        """Return the largest slope per minute that is accepted of samples over so many minutes."""
        return self.per_minute + (self.noise / minutes if minutes else 0.0)


RANK_MEMORY, WARM_MEMORY = "memory of a rank, at equal ages of its starts", "memory of a rank, within a start"
BOUNDS = {
    RANK_MEMORY: Bound("MiB", 0.5, 40),
    WARM_MEMORY: Bound("MiB", 15, 40),
    "open files": Bound("", 0.1, 4),
    "threads": Bound("", 0.1, 4),
    "files in the run directory without checkpoints": Bound("", 0.1, 6),
    "run directory without checkpoints": Bound("KiB", 128, 256),  # metrics and logs: about 500 bytes per step
    "checkpoints": Bound("MiB", 0.1, 24),  # two or three, of 5 MiB
    "unfinished checkpoints and cache entries": Bound("", 0.05, 1.5),
    "files in the temporary directory": Bound("", 0.1, 6),
    "temporary directory": Bound("KiB", 4, 512),
    "files in the cache": Bound("", 0.05, 2),
    "cache": Bound("KiB", 4, 64),
}


@dataclass
class Soak:
    """One soak: where it runs, what was measured, and what went wrong besides growth."""

    folder: Path
    arguments: str
    environment: dict[str, str]
    minutes: float
    every_seconds: float
    draw: random.Random
    began: float = field(default_factory=time.monotonic)
    starts: int = 0
    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    slowest_end_seconds: float = 0.0
    series: dict[str, list[Point]] = field(default_factory=lambda: {name: [] for name in BOUNDS})
    problems: list[str] = field(default_factory=list)

    @property
    def minute(self) -> float:
        """Minutes since the soak began."""
        return (time.monotonic() - self.began) / 60

    @property
    def run_dir(self) -> Path:
        """The run directory; a path that does not exist before the first start has created it."""
        return next((self.folder / "outputs" / "default").glob("*"), self.folder / "absent")


def tree(directory: Path) -> list[tuple[Path, int]]:
    """Return the files below a directory and their sizes; files that vanish meanwhile are left out."""
    found = []
    for root, _, names in os.walk(directory):  # passes over directories that vanish
        for path in (Path(root, name) for name in names):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                found.append((path, path.stat().st_size))
    return found


def unfinished(folder: Path) -> list[Path]:
    """Return the directories that an interrupted save or an interrupted build of a cache entry left."""
    patterns = (".tmp-*", ".del-*", "*.part-*", "*.removed*")
    folders = (Path(root, name) for root, names, _ in os.walk(folder) for name in names)
    return [path for path in folders if any(map(path.match, patterns))]


def measure_directories(soak: Soak) -> dict[str, float]:
    """Return what is on disk, in the units of `BOUNDS`."""
    run_files = [item for item in tree(soak.run_dir) if "export" not in item[0].parts]  # written once, at the end
    temporary, cache = tree(soak.folder / "tmp"), tree(soak.folder / "cache")
    saved = [size for path, size in run_files if "checkpoints" in path.parts]
    return {
        "files in the run directory without checkpoints": len(run_files) - len(saved),
        "run directory without checkpoints": (sum(size for _, size in run_files) - sum(saved)) / 2**10,
        "checkpoints": sum(saved) / 2**20,
        "unfinished checkpoints and cache entries": len(unfinished(soak.folder)),
        "files in the temporary directory": len(temporary),
        "temporary directory": sum(size for _, size in temporary) / 2**10,
        "files in the cache": len(cache),
        "cache": sum(size for _, size in cache) / 2**10,
    }


def processes_of(launcher: psutil.Process) -> tuple[list[psutil.Process], list[psutil.Process]]:
    """Return all processes of a start, and those of them that are ranks."""
    everyone = [launcher, *launcher.children(recursive=True)]
    return everyone, [item for item in everyone if "arctic_hydra.worker" in item.cmdline()]


def measure(soak: Soak, launcher: psutil.Process, trained_since: float) -> None:
    """Append one sample of every figure."""
    found: dict[str, float] = {}
    with contextlib.suppress(psutil.Error):  # it may end meanwhile
        everyone, ranks = processes_of(launcher)
        memory = [item.memory_info().rss / 2**20 for item in ranks]
        if len(memory) == 2:
            found = {RANK_MEMORY: max(memory), WARM_MEMORY: max(memory)}
            found["open files"] = sum(item.num_fds() for item in everyone)
            found["threads"] = sum(item.num_threads() for item in everyone)
    if soak.starts > 1:  # the first start fills the directories
        found |= measure_directories(soak)
    for name, value in found.items():
        age = (time.monotonic() - trained_since) / 60
        soak.series[name].append(Point(soak.minute, value, soak.starts, age))


def left_behind(folder: Path) -> Iterator[psutil.Process]:
    """Yield the living processes of any start."""
    for item in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if item.environ().get(MARK) == str(folder) and item.status() != psutil.STATUS_ZOMBIE:
                yield item


def progress(soak: Soak) -> tuple[int, str]:
    """Return the last logged step and the name of the newest checkpoint."""
    rows = metrics(soak.run_dir)
    saved = sorted(path.name for path in (soak.run_dir / "checkpoints").glob("step-*"))
    return (rows[-1]["step"] if rows else -1), (saved[-1] if saved else "")


def strike(kind: str, soak: Soak, process: subprocess.Popen[Any], launcher: psutil.Process) -> None:
    """Send the signals of one kind of disturbance."""
    _, ranks = processes_of(launcher)
    if kind == "kill a rank":
        soak.draw.choice(ranks).kill()
    elif kind == "kill the launcher":
        process.kill()
    else:
        if kind == "stop while frozen":
            soak.draw.choice(ranks).suspend()
        process.terminate()


def follow(soak: Soak, process: subprocess.Popen[Any], due: float) -> bool:
    """Sample a start while it trains until minute `due` and a new checkpoint is there; False if it ends before."""
    before, launcher = progress(soak), psutil.Process(process.pid)
    trained_since: float | None = None
    while process.poll() is None:
        now = progress(soak)
        if trained_since is None and now[0] != before[0]:  # resuming truncates what was logged after the checkpoint
            trained_since = time.monotonic()
        if trained_since is not None:
            measure(soak, launcher, trained_since)
            if soak.minute >= due and now[1] != before[1]:
                return True
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(soak.every_seconds)
    return False


def end_of(soak: Soak, kind: str, process: subprocess.Popen[Any], log: Path) -> None:
    """Wait until a start has ended; note its exit code, how long that took and which processes remain."""
    began, name = time.monotonic(), f"start {soak.starts} ({kind})"
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        soak.problems.append(f"{name} did not end within {STOP_SECONDS:.0f} s")
    while list(left_behind(soak.folder)) and time.monotonic() - began < STOP_SECONDS:
        time.sleep(0.1)
    soak.slowest_end_seconds = max(soak.slowest_end_seconds, time.monotonic() - began)
    for item in left_behind(soak.folder):
        soak.problems.append(f"{name} left process {item.pid} behind: {' '.join(item.cmdline())[:200]}")
        item.kill()
    if process.wait() not in CODES.get(kind, {0}):
        soak.problems.append(f"{name} ended with {process.returncode}: {log.read_text()[-2000:]}")


def one_start(soak: Soak, kind: str, due: float) -> bool:
    """Start the command, sample it, and disturb it at minute `due`; return whether it has finished instead."""
    soak.starts += 1
    log = soak.folder / "output"
    with log.open("wb") as file:
        process = start(soak.arguments, soak.folder, stdout=file, **soak.environment)
    struck = follow(soak, process, due)
    if struck:
        strike(kind, soak, process, psutil.Process(process.pid))
        soak.kills[kind] += 1
    end_of(soak, kind if struck else "to the end", process, log)
    return not struck


def disturb(soak: Soak, kills: int) -> None:
    """Start and disturb the run `kills` times at even intervals, then let it finish."""
    for number in range(kills):
        due = soak.minutes * (number + 1) / kills
        if one_start(soak, KINDS[number % len(KINDS)], due) or soak.problems:
            return
    one_start(soak, "to the end", math.inf)


def judge(soak: Soak) -> list[dict[str, Any]]:
    """Return each figure with its slope and limit; append a sentence to the problems for each that grows too fast."""
    rules = {RANK_MEMORY: at_equal_age(soak.every_seconds / 60), WARM_MEMORY: within_a_start(20 / 60)}
    table = []
    for name, bound in BOUNDS.items():
        points = soak.series[name]
        rule = rules.get(name, lambda one, other: True)
        found, limit = slope(points, rule), bound.limit(span(points, rule))
        values = [point.value for point in points] or [0.0]
        row = {
            "figure": name,
            "unit": bound.unit,
            "samples": len(points),
            "lowest": min(values),
            "highest": max(values),
        }
        table.append({**row, "per_minute": found, "limit_per_minute": limit})
        if found > limit:
            unit = f" {bound.unit}" if bound.unit else ""
            soak.problems.append(f"{name}: grows by {found:.3g}{unit} per minute, more than {limit:.3g}")
    return table


def soak_run(
    minutes: float, kills: int, steps: int, folder: Path, lab: dict[str, str], pause: float, seed: int
) -> Soak:
    """Run the undisturbed run, then the disturbed one; return what was measured, with problems of its end."""
    arguments, straight, disturbed = (
        f"{ARGUMENTS} trainer.epochs={-(-steps // STEPS_PER_EPOCH)}",
        folder / "straight",
        folder / "soak",
    )
    for path in (straight, disturbed, disturbed / "tmp", disturbed / "cache"):
        path.mkdir()
    run(f"{arguments} {PAUSED}" if lab else arguments, straight, timeout=60 * minutes + 300, **lab)
    environment = {
        **lab,
        MARK: str(disturbed),
        "TMPDIR": str(disturbed / "tmp"),
        "XDG_CACHE_HOME": str(disturbed / "cache"),
    }
    paced = f"{arguments} {PAUSED} callback.saboteur.pause_seconds={pause}" if lab else arguments
    every = 3.0 if minutes > 2 else 0.3
    soak = Soak(disturbed, paced, environment, minutes, every, random.Random(seed))
    try:
        disturb(soak, kills)
    finally:  # nothing is left, unless this was interrupted
        for item in left_behind(disturbed):
            item.kill()
    if not soak.problems:
        if end_state(disturbed) != end_state(straight):
            soak.problems.append("the export or the metrics differ from those of the undisturbed run")
        soak.problems += [f"{path} was left behind" for path in unfinished(disturbed)]
    return soak


def main() -> int:
    """Soak, print a table, write the samples; return 0 where nothing grows and the end is that of an undisturbed run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long the run is disturbed")
    parser.add_argument("--kills", type=int, default=0, help="disturbances, evenly spaced; one a minute if not given")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between steps, so that the run lasts")
    parser.add_argument("--steps", type=int, default=0, help="steps of the run; by default those that fill the minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("soak.json"))
    options = parser.parse_args()
    kills = options.kills or max(1, round(options.minutes))
    steps = options.steps or int(max(2 * STEPS_PER_EPOCH, 0.85 * 60 * options.minutes / (options.pause + 0.2)))
    with tempfile.TemporaryDirectory() as place:
        lab = install_my_lab(Path(place)) if options.pause else {}
        soak = soak_run(options.minutes, kills, steps, Path(place), lab, options.pause, options.seed)
        table = judge(soak)
    for row in table:
        figures = "{samples:4} samples {lowest:9.1f} to {highest:9.1f}  slope {per_minute:+8.3f} of {limit_per_minute:.3f} per minute"
        print(f"{row['figure']:47} {row['unit']:4}" + figures.format(**row))
    counts = ", ".join(f"{count} x {kind}" for kind, count in soak.kills.items())
    print(f"{soak.minute:.1f} minutes, {soak.starts} starts, slowest end {soak.slowest_end_seconds:.1f} s")
    print(f"{sum(soak.kills.values())} of {kills} kills: {counts}")
    facts = {
        "minutes": soak.minute,
        "starts": soak.starts,
        "kills": soak.kills,
        "slowest_end_seconds": soak.slowest_end_seconds,
    }
    samples = {name: [asdict(point) for point in points] for name, points in soak.series.items()}
    report = {**facts, "figures": table, "problems": soak.problems, "samples": samples}
    options.results.write_text(json.dumps(report, indent=1) + "\n")
    for problem in soak.problems:
        print(f"soak: {problem}", file=sys.stderr)
    return int(bool(soak.problems))


if __name__ == "__main__":
    sys.exit(main())
