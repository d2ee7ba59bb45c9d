"""Comparisons of this package with something else: equal work is checked first, then every side runs in turn.

A benchmark is a module `bench_*.py` with `comparisons(folder, quick)`. `python -m tests.bench` runs them and writes RESULTS.md.
"""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Sample:
    """What one side took once."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds of CPU time of all threads, and of child processes that have ended."""
    answer: Any = None
    """What shows which work was done, such as a loss or the output."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Further figures, by name with the unit, such as `peak MiB`."""


@dataclass(frozen=True)
class Comparison:
    """Sides that do equal work; the first is the one that the others are compared with."""

    name: str
    sides: Mapping[str, Callable[[], Sample]]
    check: Callable[[dict[str, Any]], None]
    """Raises AssertionError unless the answers, by side, are those of equal work."""
    targets: Mapping[str, float] = field(default_factory=dict)
    """The largest ratio of wall times that is wanted, by side."""
    settings: str = ""
    """What a reader has to know to repeat it."""


@dataclass(frozen=True)
class Series:
    """One kind of work at growing sizes."""

    name: str
    unit: str
    """Of the sizes."""
    points: Mapping[int, Callable[[], Sample]]
    check: Callable[[dict[int, Any]], None]
    """Raises AssertionError unless the answers, by size, are those of as much work."""
    figure: str = "wall"
    """Whose slope counts: wall, which may grow in proportion to the size, or cpu, which should not grow."""
    settings: str = ""
    rounds: int = 5
    """Rounds at most; each runs every size once."""


def grow(series: Series, rounds: int) -> dict[str, Any]:
    """Run each size in turn, `rounds` times, and check each time; without rounds, check once.

    Returns medians by size, and slopes in log-log scales: of all sizes, and of the last two, in which constant costs weigh least.
    """
    load = [os.getloadavg()[0]]
    taken: dict[int, list[Sample]] = {size: [] for size in series.points}
    for _ in range(max(1, min(rounds, series.rounds))):
        for size, run in series.points.items():
            taken[size].append(run())
        series.check({size: samples[-1].answer for size, samples in taken.items()})
    load.append(os.getloadavg()[0])
    points = [{"size": size, **_medians(samples)} for size, samples in taken.items()]
    return {
        "name": series.name,
        "settings": series.settings,
        "rounds": min(rounds, series.rounds),
        "load": load,
        "unit": series.unit,
        "figure": series.figure,
        "points": points,
        "slope": slope(points, series.figure),
        "last_slope": slope(points[-2:], series.figure),
    }


def slope(points: Sequence[Mapping[str, Any]], figure: str) -> float:
    """Return the slope of the least-squares line through the points in log-log scales: 1 is in proportion, 0 is flat."""
    places = [math.log(point["size"]) for point in points]
    values = [math.log(max(point[figure], 1e-9)) for point in points]
    return statistics.linear_regression(places, values).slope


def measure(comparison: Comparison, rounds: int) -> dict[str, Any]:
    """Run each side once, then `rounds` times in turn, and check each time.

    Returns medians, and the ratios to the first side with their range.
    """
    comparison.check({side: run().answer for side, run in comparison.sides.items()})
    load = [os.getloadavg()[0]]
    taken: dict[str, list[Sample]] = {side: [] for side in comparison.sides}
    sides = [*comparison.sides.items()]
    for turn in range(rounds):
        for side, run in sides[turn % len(sides) :] + sides[: turn % len(sides)]:  # no side is always first
            taken[side].append(run())
        comparison.check({side: samples[-1].answer for side, samples in taken.items()})
    load.append(os.getloadavg()[0])
    base, *_ = taken.values()
    return {
        "name": comparison.name,
        "settings": comparison.settings,
        "rounds": rounds,
        "load": load,
        "sides": {
            side: _summary(samples, base, comparison.targets.get(side)) for side, samples in taken.items() if samples
        },
    }


def _summary(samples: Sequence[Sample], base: Sequence[Sample], target: float | None) -> dict[str, Any]:
    ratios = {
        kind: [getattr(one, kind) / getattr(other, kind) for one, other in zip(samples, base, strict=True)]
        for kind in ("wall", "cpu")
    }
    return {
        **_medians(samples),
        "ratio": statistics.median(ratios["wall"]),
        "range": [min(ratios["wall"]), max(ratios["wall"])],
        "cpu_ratio": statistics.median(ratios["cpu"]),
        "target": target,
    }


def _medians(samples: Sequence[Sample]) -> dict[str, Any]:
    return {
        "wall": statistics.median(sample.wall for sample in samples),
        "cpu": statistics.median(sample.cpu for sample in samples),
        "figures": {name: statistics.median(sample.figures[name] for sample in samples) for name in samples[0].figures},
    }


def command(arguments: Sequence[str], folder: Path, variables: Mapping[str, str] | None = None) -> Sample:
    """Run a command in `folder`; its answer is the exit code and the output."""
    before, start = _used(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [*arguments], cwd=folder, env={**_environment(), **(variables or {})}, capture_output=True, text=True
    )
    wall = time.perf_counter() - start
    return Sample(wall, _used(resource.RUSAGE_CHILDREN) - before, (done.returncode, done.stdout, done.stderr))


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    return _used(resource.RUSAGE_SELF) + _used(resource.RUSAGE_CHILDREN)


def _used(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "launchers")])
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


class Blocks:
    """A process that waits between blocks of work; its program calls `Pauses`."""

    def __init__(
        self, arguments: Sequence[str], variables: Mapping[str, str | None], python: str = sys.executable
    ) -> None:
        """Start it; a variable of None is unset."""
        changed = {**_environment(), **variables}
        environment = {name: value for name, value in changed.items() if value is not None}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([python, *arguments], cwd=ROOT, env=environment, **pipes)

    def __call__(self) -> Sample:
        """Run one block."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith('{"wall"'):  # trainers print other lines
                return Sample(**json.loads(line))
        raise SystemExit(f"{self._process.args!r} ended with {self._process.wait()}")

    def close(self) -> None:
        """End the process, which first removes its temporary files."""
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Pauses:
    """The ends of the blocks in the program of `Blocks`; the first block begins when this is created and asked for."""

    def __init__(self) -> None:
        self._begin()

    def end(self, answer: Any) -> None:
        """Report the block that ends here, and wait until the next one is asked for; a function is asked for the answer, untimed."""
        wall, cpu = time.perf_counter() - self._wall, _used(resource.RUSAGE_SELF) - self._cpu
        print(json.dumps(vars(Sample(wall, cpu, answer() if callable(answer) else answer))), flush=True)
        self._begin()

    def _begin(self) -> None:
        if not sys.stdin.readline():
            raise SystemExit
        self._wall, self._cpu = time.perf_counter(), _used(resource.RUSAGE_SELF)


class Parts:
    """One run that gives several sides of a comparison: `sample(name)` runs it anew when a side is asked for again."""

    def __init__(self, run: Callable[[], Mapping[str, Sample]]) -> None:
        self._run = run
        self._left: dict[str, Sample] = {}

    def sample(self, name: str) -> Sample:
        """Return one side of the current run."""
        if name not in self._left:
            self._left = dict(self._run())
        return self._left.pop(name)


def peer(name: str) -> str | None:
    """Return the interpreter of the environment of a peer: that of `nox -s peers`, or of the variable `BENCH_<NAME>`.

    Without it, the sides of the peer are left out, which is said.
    """
    python = os.environ.get(f"BENCH_{name.upper()}", str(ROOT / ".nox" / f"peers-{name}" / "bin" / "python"))
    if Path(python).exists():
        return python
    print(f"skipped: {name}, which has no environment; run nox -s peers, or set BENCH_{name.upper()}=<its python>")
    return None


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Keep `count` other processes busy, each with one thread that never waits."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def machine() -> dict[str, Any]:
    """Return what the figures depend on: processor, cores that this process may use, memory and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / 2**30),
        "python": platform.python_version(),
    }


def commit() -> str:
    """Return the short hash of the checkout's commit, marked if files other than results differ from it."""
    written = [f":!tests/bench/{name}" for name in ("results", "RESULTS.md", "*.svg")]
    found = subprocess.run(["git", "rev-parse", "--short=9", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", ".", *written], cwd=ROOT).returncode
    return found.stdout.strip() + "-dirty" * bool(changed)
