"""Time and peak memory of the head's loss, chunked against all logits at once, at a vocabulary of 151,936.

`python -m tests.bench head`. Each side runs forward and backward in a process of its own; losses and gradient norms must agree.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.harness import Comparison, Sample, command

ROWS, WIDTH, VOCABULARY = 768, 256, 151_936
SIDES = {"all logits at once": "full", "chunked": "chunked"}


def comparisons(folder: Path, quick: bool) -> Iterator[Comparison]:
    """Yield the one comparison."""
    if quick:
        sides = {name: partial(side, kind, 8, 512) for name, kind in SIDES.items()}
    else:
        sides = {name: partial(in_process, kind, folder) for name, kind in SIDES.items()}
    settings = f"{ROWS} rows of {WIDTH}, forward and backward"
    yield Comparison(f"loss over {VOCABULARY:,} tokens", sides, _check, settings=settings)


def in_process(kind: str, folder: Path) -> Sample:
    """Run one side in a new process."""
    code, output, errors = command([sys.executable, "-m", __name__, kind], folder).answer
    assert code == 0, errors
    return Sample(**json.loads(output.splitlines()[-1]))


def side(kind: str, rows: int, vocabulary: int) -> Sample:
    """Run one side; the answer is the loss and the norms of the gradients, the memory is that above the inputs."""
    import torch

    from arctic_hydra.trainer.chunked import chunked_losses
    from arctic_hydra.trainer.loss import plain_losses

    torch.manual_seed(0)
    hidden = torch.randn(rows, WIDTH, requires_grad=True)
    weight = (torch.randn(vocabulary, WIDTH) * 0.02).requires_grad_()
    targets = torch.randint(vocabulary, (rows,))

    def losses(chosen: slice) -> torch.Tensor:
        if kind == "chunked":
            return chunked_losses(hidden[chosen], weight, None, targets[chosen])
        return plain_losses(torch.nn.functional.linear(hidden[chosen], weight), targets[chosen])

    losses(slice(0, 2)).sum().backward()  # threads and libraries, and the weight's gradient, which both sides hold
    hidden.grad, weight.grad = None, torch.zeros_like(weight)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu = time.perf_counter(), time.process_time()
    loss = losses(slice(None)).sum()
    loss.backward()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    answer = [float(value) for value in (loss.detach(), hidden.grad.norm(), weight.grad.norm())]
    return Sample(seconds, cpu, answer, {"MiB above the inputs": peak})


def _check(answers: dict[str, Any]) -> None:
    for full, chunked in zip(*answers.values(), strict=True):
        assert abs(full - chunked) <= 1e-5 * abs(full), answers


if __name__ == "__main__":
    print(json.dumps(asdict(side(sys.argv[1], ROWS, VOCABULARY))))
