"""How time and memory grow with what a user has much of: rows, packs, ranks, jobs of a sweep, sources, steps.

`python -m tests.bench growth`. Each size runs in a process of its own, and is checked to have done its work.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.harness import Sample, Series, command, cpu_seconds

THOUSANDS = (10_000, 100_000, 1_000_000)


@dataclass
class Taken:
    """What a block took."""

    wall: float = 0.0
    cpu: float = 0.0
    grown_mib: float = 0.0

    def sample(self, answer: Any) -> Sample:
        """Return it as a sample."""
        return Sample(self.wall, self.cpu, answer, {"MiB above the start": self.grown_mib})


@contextmanager
def measured() -> Iterator[Taken]:
    """Measure a block: wall, CPU time of this process and its children, and by how much the peak of this one grew."""
    taken = Taken()
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now
    before = status_mib("VmHWM")
    wall, cpu = time.perf_counter(), cpu_seconds()
    yield taken
    taken.wall, taken.cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    taken.grown_mib = status_mib("VmHWM") - before


def status_mib(name: str) -> float:
    """Return a figure of the memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def rows(size: int, folder: Path) -> Sample:
    """Prepare so many short chats, none like another, in one process; the answer is how many there are in the cache."""
    return _prepare({"chat": _write_chats(folder / "chats.jsonl", size, 0)}, folder)


def sources(size: int, folder: Path) -> Sample:
    """Prepare so many sources of 1,000 chats each; the answer is how many chats there are for each source."""
    files = {f"s{n}": _write_chats(folder / f"{n}.jsonl", 1000, n) for n in range(size)}
    found = _prepare(files, folder)
    return Sample(found.wall, found.cpu, found.answer / 1000, found.figures)


def _write_chats(path: Path, count: int, salt: int) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for index in range(count):
            asked = {"role": "user", "content": f"What follows {index} in list {salt}?"}
            told = {"role": "assistant", "content": f"After {index} comes {index + 1}, " * (1 + index % 4)}
            file.write(json.dumps({"messages": [asked, told]}) + "\n")
    return path


def _prepare(files: Mapping[str, Path], folder: Path) -> Sample:
    from arctic_hydra.data.base import DataSource
    from arctic_hydra.data.sft import SFTDataFactory
    from arctic_hydra.data.source.json import JsonSource
    from arctic_hydra.distributed import World
    from arctic_hydra.tokenizer.bundled import BundledTokenizerFactory

    tokenizer = BundledTokenizerFactory().create_tokenizer()
    chosen: dict[str, DataSource] = {name: JsonSource(path=str(path)) for name, path in files.items()}
    data = SFTDataFactory(sources=chosen, num_proc=1, cache_dir=str(folder / "cache"))
    with measured() as taken:
        store = data.process("train", tokenizer, World())
    return taken.sample(len(store))


def packs(size: int, folder: Path) -> Sample:
    """Plan packs of 4,096 tokens for so many documents with lengths as of chats; the answer is how many are in packs."""
    import numpy as np

    from arctic_hydra.data.load.packing import plan_packs

    lengths = np.clip(np.random.default_rng(0).lognormal(5.9, 0.9, size).astype(np.int64), 1, 4096)
    plan_packs(lengths[:100], 4096)
    with measured() as taken:
        plan = plan_packs(lengths, 4096)
    return taken.sample(len(plan.examples))


def ranks(size: int, folder: Path) -> Sample:
    """Train 20 steps on so many ranks at ZeRO-1, one document each per step; CPU time is that of one rank."""
    from tests.ranks import run_ranks

    found = run_ranks(size, _train, folder)
    wall = max(wall for wall, *_ in found)
    return Sample(wall, sum(cpu for _, cpu, _ in found) / size, sum(steps for *_, steps in found) / 20)


def _train(folder: Path) -> tuple[float, float, int]:
    from arctic_hydra.distributed import World
    from tests.trainer.loop import documents, make_trainer

    count = 20 * World.from_env().size
    trainer = make_trainer(documents([64] * count, [32] * count), folder, stage=1)
    with measured() as taken:
        trainer.train()
    return taken.wall, taken.cpu, trainer.global_step


JOB = (
    "model.hidden_size=32 model.intermediate_size=64 model.num_hidden_layers=1 data.max_length=128 data.num_proc=1 "
    "data.sources.chat.sample_count=20 trainer.train_iters=2 trainer.eval_at_start=false trainer.eval_at_end=false "
    "tracking=[] checkpoint=[] log.report=false"
)


def jobs(size: int, folder: Path) -> Sample:
    """Sweep over so many seeds in two slots; the answer is how many runs have finished."""
    program = [sys.executable, "-m", "arctic_hydra", *JOB.split()]
    command([*program, "name=warm", f"output_root={folder}"], folder)  # prepares the data
    seeds = ",".join(str(seed) for seed in range(size))
    sweep = ["-m", "hydra/launcher=local", "hydra.launcher.slots=2", f"seed={seeds}", f"output_root={folder}"]
    taken = command([*program, *sweep], folder)
    assert taken.answer[0] == 0, taken.answer[2][-2000:]
    records = [json.loads(path.read_text()) for path in folder.glob("default/*/record.json")]
    return Sample(taken.wall, taken.cpu, sum(record["status"] == "finished" for record in records))


def metrics(size: int, folder: Path) -> Sample:
    """Read the metrics of so many steps; the answer is the number of rows with a loss."""
    from arctic_hydra.metrics import read_metrics

    directory = _run_directory(folder, size)
    with measured() as taken:
        found = read_metrics(directory.path / "metrics.jsonl")
    return taken.sample(sum("loss" in row for row in found))


def report(size: int, folder: Path) -> Sample:
    """Write the report of a run of so many steps; the answer is their number if the page shows the run."""
    from arctic_hydra.report import run_page

    directory = _run_directory(folder, size)
    run_page.write(_run_directory(folder / "small", 100))  # imports and fonts
    with measured() as taken:
        path = run_page.write(directory)
    page = path.read_text()
    return taken.sample(size if page.count("<svg") == 5 else page[:1000])


def _run_directory(folder: Path, steps: int) -> Any:
    from tests.report.test_run_page import run_directory

    folder.mkdir(exist_ok=True)
    return run_directory(folder, steps)


KINDS: dict[Callable[[int, Path], Sample], tuple[tuple[int, ...], tuple[int, ...], int]] = {
    rows: (THOUSANDS, (20, 40), 1),
    packs: (THOUSANDS, (200, 400), 5),
    sources: ((1, 2, 4, 8, 16, 32), (), 3),
    ranks: ((1, 2, 3, 4), (), 3),
    jobs: ((1, 4, 16, 64), (), 1),
    metrics: (THOUSANDS, (10, 20), 3),
    report: (THOUSANDS, (20, 40), 3),
}
"""By what is done: its sizes, those of the quick form, and rounds at most. Other tests cover what has no quick form."""
FLAT_CPU = (ranks,)
"""What takes no more CPU time the larger it is; all others may take time in proportion."""


def comparisons(folder: Path, quick: bool) -> Iterator[Series]:
    """Yield one series for each kind."""
    for do, (sizes, few, rounds) in KINDS.items():
        chosen = few if quick else sizes
        if not chosen:
            continue
        points = {size: partial(here if quick else in_process, do, size, folder) for size in chosen}
        unit = "steps" if do in (metrics, report) else do.__name__
        about = (do.__doc__ or "").partition(";")[0].rstrip(".")
        yield Series(f"{do.__name__}", unit, points, _check, "cpu" if do in FLAT_CPU else "wall", about, rounds)


def here(do: Callable[[int, Path], Sample], size: int, folder: Path) -> Sample:
    """Run one size in this process."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        return do(size, Path(name))


def in_process(do: Callable[[int, Path], Sample], size: int, folder: Path) -> Sample:
    """Run one size in a new process."""
    code, output, errors = command([sys.executable, "-m", __name__, do.__name__, str(size), str(folder)], folder).answer
    assert code == 0, errors[-2000:]
    return Sample(**json.loads(output.splitlines()[-1]))


def _check(answers: dict[int, Any]) -> None:
    assert all(answer == size for size, answer in answers.items()), answers


if __name__ == "__main__":
    [kind] = [do for do in KINDS if do.__name__ == sys.argv[1]]
    print(json.dumps(asdict(here(kind, int(sys.argv[2]), Path(sys.argv[3])))))
