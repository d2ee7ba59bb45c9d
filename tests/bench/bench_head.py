"""Peak memory and time of the head's loss, chunked against all logits at once, at a vocabulary of 151,936.

    python -m tests.bench.bench_head [rows] [repeats]

Each side runs forward and backward in a process of its own, the sides in turn; both print their loss and the norms of
their gradients, which must agree.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROWS, WIDTH, VOCABULARY = 768, 256, 151_936


def side(name: str, rows: int) -> dict[str, float]:
    """Run one side; return its peak memory above the inputs in MiB, seconds, loss and gradient norms."""
    import torch

    from arctic_hydra.trainer.chunked import chunked_losses
    from arctic_hydra.trainer.loss import plain_losses

    torch.manual_seed(0)
    hidden = torch.randn(rows, WIDTH, requires_grad=True)
    weight = (torch.randn(VOCABULARY, WIDTH) * 0.02).requires_grad_()
    targets = torch.randint(VOCABULARY, (rows,))

    def losses(chosen: slice) -> torch.Tensor:
        if name == "chunked":
            return chunked_losses(hidden[chosen], weight, None, targets[chosen])
        return plain_losses(torch.nn.functional.linear(hidden[chosen], weight), targets[chosen])

    losses(slice(0, 2)).sum().backward()  # threads and libraries, and the weight's gradient, which both sides hold
    hidden.grad, weight.grad = None, torch.zeros_like(weight)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    loss = losses(slice(None)).sum()
    loss.backward()
    seconds = time.perf_counter() - start
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    norms = {"hidden": float(hidden.grad.norm()), "weight": float(weight.grad.norm())}
    return {"mib": peak, "seconds": seconds, "loss": float(loss.detach()), **norms}


def main(rows: int, repeats: int) -> None:
    """Run both sides in turn and print medians and ratios."""
    results: dict[str, list[dict[str, float]]] = {"full": [], "chunked": []}
    for _ in range(repeats):
        for name, runs in results.items():
            command = [sys.executable, "-m", "tests.bench.bench_head", "--side", name, str(rows)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    for key in ("loss", "hidden", "weight"):
        full, chunked = (results[name][0][key] for name in results)
        assert abs(full - chunked) <= 1e-5 * abs(full), f"{key}: {full} and {chunked}"
    median = {
        name: {key: statistics.median(run[key] for run in runs) for key in ("mib", "seconds")}
        for name, runs in results.items()
    }
    for name, values in median.items():
        print(f"{name:8} {values['mib']:8.0f} MiB above the inputs  {values['seconds']:6.2f} s")
    memory, seconds = (median["full"][key] / median["chunked"][key] for key in ("mib", "seconds"))
    print(
        f"{rows} rows x {VOCABULARY:,}: memory {memory:.1f} times less, time {1 / seconds:.2f} of the full loss; equal results"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        print(json.dumps(side(sys.argv[2], int(sys.argv[3]))))
    else:
        given = [int(value) for value in sys.argv[1:]]
        main(*given, *(ROWS, 3)[len(given) :])
