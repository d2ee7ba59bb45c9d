"""Kill a run with SIGKILL at random instants, start it again, and compare its end with the uninterrupted run's.

`python -m tests.faults.kill_loop --kills 108 --results kills.json`; the short form is `test_three_kills_...` in tests/test_whole_run.py.
The kills are spread over start, step, save, evaluation and epoch end; what a run was doing when it died, what it loaded
and which examples it read is what its ranks wrote down themselves (the callback `witness` of tests/examples/my_lab).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from arctic_hydra.checkpoint.store import CheckpointStore
from tests.command import ROOT, SMALL, losses, metrics, only_run, run, start

CASES = (
    "ranks=1 deepspeed=zero0 checkpoint.deepspeed.asynchronous=false",
    "ranks=1 deepspeed=zero0 checkpoint.deepspeed.asynchronous=true",
    "ranks=1 deepspeed=zero2 checkpoint.deepspeed.asynchronous=true",
    "ranks=1 deepspeed=zero3 checkpoint.deepspeed.asynchronous=false",
    "ranks=2 deepspeed=zero0 checkpoint.deepspeed.asynchronous=true",
    "ranks=2 deepspeed=zero2 checkpoint.deepspeed.asynchronous=false",
    "ranks=2 deepspeed=zero2 checkpoint.deepspeed.asynchronous=true",
    "ranks=2 deepspeed=zero3 checkpoint.deepspeed.asynchronous=false",
    "ranks=2 deepspeed=zero3 checkpoint.deepspeed.asynchronous=true",
)
ARGUMENTS = (
    f"{SMALL} trainer.gradient_accumulation_steps=3 trainer.epochs=3 data.sources.chat.sample_count=40 tracking=[] "
    "trainer.eval_frequency=3 checkpoint.deepspeed.save_every_n_steps=2 callback=[witness] "
    "model.hf_config_kwargs={attention_dropout:0.1}"
)
MOMENTS = ("start", "step", "save", "evaluation", "epoch end")
TIMING = {"step_seconds", "tokens_per_second", "supervised_tokens_per_second", "tflops", "mfu", "memory_gib"}


@dataclass
class Result:
    """What the kills of one case did; what follows after `runs` must stay 0."""

    case: str
    kills: int = 0
    aims: Counter[str] = field(default_factory=Counter)
    """Moments that the kills were aimed at; each waits a random while after the moment's beginning."""
    phases: Counter[str] = field(default_factory=Counter)
    """What the runs were doing when they died."""
    runs: int = 0
    torn: int = 0
    """Published checkpoints that did not verify after a kill."""
    fell_back: int = 0
    """Starts that did not resume from the newest checkpoint that was there."""
    misread: int = 0
    """Steps that read other examples than the uninterrupted run's, on any rank."""
    different: int = 0
    """Runs whose weights, metrics or steps differ at the end from the uninterrupted run's."""

    @property
    def good(self) -> bool:
        """Whether nothing was lost."""
        return not (self.torn or self.fell_back or self.misread or self.different)


def events(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    """Return what one rank has noted down so far, over all starts in `folder`."""
    path = folder / f"events.rank{rank}"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def end_state(folder: Path) -> dict[str, Any]:
    """Return what must be equal at the end: weights, and every figure of every line that is no timing."""
    run_dir = only_run(folder)
    losses(run_dir)  # each step stands once
    export = (run_dir / "export" / "model.safetensors").read_bytes()
    history = [{name: value for name, value in row.items() if name not in TIMING} for row in metrics(run_dir)]
    return {"weights": hashlib.sha256(export).hexdigest(), "history": history}


def examples(folder: Path) -> list[dict[int, list[Any]]]:
    """Return by rank and step the examples that were read, every time a step was taken."""
    ranks = len(list(folder.glob("events.rank*")))
    read: list[dict[int, list[Any]]] = [{} for _ in range(ranks)]
    for rank in range(ranks):
        for event in events(folder, rank):
            if event["event"] == "step":
                read[rank].setdefault(event["step"], []).append(event["examples"])
    return read


def misread(straight: Path, killed: Path) -> int:
    """Return how many steps of `killed` were left out or read, at any time, what `straight` did not."""
    count = 0
    for expected, found in zip(examples(straight), examples(killed), strict=True):
        count += sum(any(took != once for took in found.get(step, [None])) for step, [once] in expected.items())
        count += len(found.keys() - expected.keys())
    return count


def durations(folder: Path) -> dict[str, float]:
    """Return how many seconds each moment took on average in an uninterrupted run."""
    seen, taken = events(folder), {moment: [0.05] for moment in MOMENTS}
    for event, after in pairwise(seen):
        if event["event"] in taken:
            taken[event["event"]].append(after["time"] - event["time"])
    return {moment: sum(seconds) / len(seconds) for moment, seconds in taken.items()}


def wait_for(moment: str, count: int, folder: Path, process: subprocess.Popen[str]) -> bool:
    """Wait until `moment` has begun `count` times since now; False when the process ends before."""
    before = len(events(folder))
    while process.poll() is None:
        if sum(event["event"] == moment for event in events(folder)[before:]) >= count:
            return True
        time.sleep(0.005)
    return False


def phase(folder: Path, before: int) -> str:
    """Say what the run was doing when it was killed; `before` is how many events older starts had left."""
    last = events(folder)[before:][-1:]
    doing = last[0]["event"] if last else "start"
    if doing in ("start", "train"):
        return "start"
    writing = list(folder.glob("outputs/default/*/checkpoints/.tmp-*"))
    return "save" if writing and doing != "save" else doing


def kill_once(
    arguments: str, folder: Path, moment: str, typical: dict[str, float], draw: random.Random, environment: Any
) -> str:
    """Start the command and kill it at a random instant of `moment`; return what it was doing, "" when it ended before."""
    before, count = len(events(folder)), draw.randint(1, 3)
    process = start(arguments, folder, **environment)
    reached = moment == "start" or wait_for(moment, count, folder, process)
    try:
        process.wait(draw.uniform(0, 10 if moment == "start" else 1.5 * typical[moment]) if reached else None)
        assert process.returncode == 0, process.communicate()[0]
        return ""
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        time.sleep(0.5)  # the ranks die with their parent; the lock is theirs until then
        return phase(folder, before)


def published(folder: Path, result: Result) -> int:
    """Verify every checkpoint that is there and return the newest one's step, 0 where there is none."""
    newest = 0
    for root in folder.glob("outputs/default/*/checkpoints"):
        store = CheckpointStore(root, 0)
        for path in store.steps():
            try:
                newest = max(newest, store.verified(path).step)
            except Exception as error:
                print(f"torn: {error}", flush=True)
                result.torn += 1
    return newest


def kill_case(
    case: str,
    kills: int,
    moments: tuple[str, ...],
    straight: Path,
    scratch: Path,
    draw: random.Random,
    environment: dict[str, str],
) -> Result:
    """Kill runs of one case `kills` times in all, each run until it gets to its end."""
    result, typical, expected = Result(case), durations(straight), end_state(straight)
    arguments = f"{ARGUMENTS} {case}"
    while result.kills < kills:
        folder = scratch / f"killed{result.runs}"
        folder.mkdir()
        result.runs += 1
        killed, newest = "start", 0
        while killed:
            before, moment = len(events(folder)), draw.choice(moments)
            if result.kills < kills:
                killed = kill_once(arguments, folder, moment, typical, draw, environment)
            else:
                run(arguments, folder, **environment)
                killed = ""
            result.fell_back += sum(e["step"] != newest for e in events(folder)[before:] if e["event"] == "train")
            newest = published(folder, result)
            if killed:
                result.kills += 1
                result.aims[moment] += 1
                result.phases[killed] += 1
        result.misread += misread(straight, folder)
        result.different += end_state(folder) != expected
    return result


def install_my_lab(scratch: Path) -> dict[str, str]:
    """Install the example package with the witness below `scratch`; return the environment that finds it."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    source = ROOT / "tests" / "examples" / "my_lab"
    subprocess.run([*command, "--target", str(scratch / "lab"), str(source)], check=True)
    return {"PYTHONPATH": str(scratch / "lab")}


def main() -> int:
    """Run every case; return 0 where nothing was lost and all ends are bit-identical."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=108, help="kills in all, spread evenly over the cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("kills.json"))
    parser.add_argument("--only", default="", help="only the cases whose arguments contain this text")
    parser.add_argument("--moment", choices=MOMENTS, action="append", help="aim at this one only; may be repeated")
    options = parser.parse_args()
    moments = tuple(options.moment or MOMENTS)
    draw, results = random.Random(options.seed), []
    straights: dict[str, Path] = {}
    cases = [case for case in CASES if options.only in case]
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        environment = install_my_lab(scratch)
        for number, case in enumerate(cases):
            geometry = case.rpartition(" ")[0]
            if geometry not in straights:  # saved at once or beside training: the end is the same
                straights[geometry] = scratch / f"straight{number}"
                straights[geometry].mkdir()
                run(f"{ARGUMENTS} {case}", straights[geometry], **environment)
            (folder := scratch / f"case{number}").mkdir()
            wanted = -(-options.kills // len(cases))
            results.append(kill_case(case, wanted, moments, straights[geometry], folder, draw, environment))
            options.results.write_text(json.dumps([vars(result) for result in results], indent=2) + "\n")
            print(results[-1], flush=True)
    return int(not all(result.good for result in results))


if __name__ == "__main__":
    sys.exit(main())
