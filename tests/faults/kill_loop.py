"""Kill a run with SIGKILL at random instants, start it again, and compare its end with the uninterrupted run's.

`python -m tests.faults.kill_loop --kills 100 --results kills.json`; the short form is pitfall 17 in tests/test_run.py.
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
from pathlib import Path
from typing import Any

from tests.command import SMALL, losses, metrics, only_run, run, start

CASES = {
    "1 rank, ZeRO-0": "ranks=1 deepspeed=zero0",
    "2 ranks, ZeRO-2": "ranks=2 deepspeed=zero2",
    "2 ranks, ZeRO-3": "ranks=2 deepspeed=zero3",
}
ARGUMENTS = (
    f"{SMALL} trainer.gradient_accumulation_steps=3 trainer.epochs=2 data.sources.chat.sample_count=100 tracking=[] "
    "trainer.eval_frequency=4 checkpoint.deepspeed.save_every_n_steps=2 model.hf_config_kwargs={attention_dropout:0.1}"
)


def end_state(folder: Path) -> dict[str, Any]:
    """Return what must be equal at the end: weights, losses of every step, evaluations."""
    run_dir = only_run(folder)
    export = (run_dir / "export" / "model.safetensors").read_bytes()
    evaluations = {row["step"]: row["eval/loss"] for row in metrics(run_dir) if "eval/loss" in row}
    return {"weights": hashlib.sha256(export).hexdigest(), "losses": losses(run_dir), "evaluations": evaluations}


def phase(folder: Path) -> str:
    """Say what the run was doing when it was killed, as far as its files tell."""
    if not list((folder / "outputs").glob("default/*/metrics.jsonl")):
        return "start"
    return "save" if list((folder / "outputs").glob("default/*/checkpoints/.tmp-*")) else "step or evaluation"


def kill_until_done(arguments: str, folder: Path, kills: int, seconds: float, draw: random.Random) -> Counter[str]:
    """Start the command and kill it at a random instant within `seconds`, `kills` times, starting over when it ends."""
    phases: Counter[str] = Counter()
    for _ in range(kills):
        process = start(arguments, folder)
        try:
            process.wait(draw.uniform(0.5, seconds))
            assert process.returncode == 0, process.communicate()[0]
            return phases  # it got to its end between two kills
        except subprocess.TimeoutExpired:
            phases[phase(folder)] += 1
            process.kill()
            process.communicate()
            time.sleep(0.5)  # the ranks die with their parent; the lock is theirs until then
    return phases


def main() -> int:
    """Run every case; return 0 where all ends are bit-identical."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="kills in all, spread evenly over the cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("kills.json"))
    options = parser.parse_args()
    draw, results = random.Random(options.seed), []
    for name, case in CASES.items():
        arguments, wanted = f"{ARGUMENTS} {case}", -(-options.kills // len(CASES))
        with tempfile.TemporaryDirectory() as scratch:
            straight = Path(scratch) / "straight"
            straight.mkdir()
            begin = time.monotonic()
            run(arguments, straight)
            seconds, expected = time.monotonic() - begin, end_state(straight)
            phases: Counter[str] = Counter()
            runs = different = 0
            while phases.total() < wanted:
                folder = Path(scratch) / f"killed{runs}"
                folder.mkdir()
                phases += kill_until_done(arguments, folder, wanted - phases.total(), seconds, draw)
                run(arguments, folder)
                different += end_state(folder) != expected
                runs += 1
        results.append(
            {"case": name, "kills": phases.total(), "phases": dict(phases), "runs": runs, "different": different}
        )
        options.results.write_text(json.dumps(results, indent=2) + "\n")
        print(results[-1], flush=True)
    return int(any(result["different"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
