"""Training speed on one CUDA device: `python -m tests.gpu.bench [--minutes 10] [--out bench_gpu.json]`.

Needs only a checkout on PYTHONPATH: models of random weights in the shapes of Qwen3, the bundled chats in packs. Each shape has
one base setting; every other cell changes one factor of it. A cell is a process of its own and a whole run, as the command
builds it; those called `bare loop` train the same model on the same batches with torch alone. Cells for which no time is
left are skipped, one that needs too much memory is a row of the table. The JSON file is written anew after each cell.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DATA_SHEET_TFLOPS = 989.0
"""Dense bf16 of H100 and H200."""
WARM_UP, TIMED = 4, 10
EXPECTED_SECONDS = 40.0
"""Of the first cell of a shape; later ones are expected to take as long as the longest before."""
TOLERANCE = 0.02
"""How far losses of equal training in bf16 may be apart, relative."""
BARE = "bare loop"

QWEN3 = "model=random model.architecture=qwen3 model.num_key_value_heads=8 model.head_dim=128 model.vocab_size=151936"
TIED = "model.max_position_embeddings=40960 model.hf_config_kwargs={tie_word_embeddings:true}"
SHAPES = {
    "0.6B": f"{QWEN3} {TIED} model.hidden_size=1024 model.intermediate_size=3072 model.num_hidden_layers=28 "
    "model.num_attention_heads=16 model.disable_activation_checkpoint=true",
    "1.7B": f"{QWEN3} {TIED} model.hidden_size=2048 model.intermediate_size=6144 model.num_hidden_layers=28 "
    "model.num_attention_heads=16 model.disable_activation_checkpoint=true",
    "8B, LoRA": f"{QWEN3} model.max_position_embeddings=40960 model.hidden_size=4096 model.intermediate_size=12288 "
    "model.num_hidden_layers=36 model.num_attention_heads=32 peft=lora",
}
"""The base setting of each shape: packs of 4k tokens, four micro-batches a step; the 8B model recomputes its layers."""
COMMON = (
    "model.dtype=bf16 data.max_length=4096 trainer.micro_batch_size=1 trainer.gradient_accumulation_steps=4 data.num_proc=1 "
    "~data.eval_sources.chat optimizer.lr=1e-4 optimizer.weight_decay=0 scheduler=constant scheduler.warmup_ratio=0 "
    "deepspeed=zero0 tracking=[] checkpoint=[] log.report=false log.print_ranks=[] log.file_ranks=[] trainer.epochs=0"
)
FACTORS = {
    "base": "",
    BARE: "",
    "padded rows, sdpa": "model.attn_implementation=sdpa data.packing=false trainer.micro_batch_size=8",
    "16k tokens": "data.max_length=16384 trainer.gradient_accumulation_steps=1",
    "recomputed": "model.disable_activation_checkpoint=false",
    "full head": "trainer.head_loss=full",
    "chunked head": "trainer.head_loss=chunked",
    "compiled": "model.compile=true",
}
"""The head of the base setting is Liger's on CUDA (`trainer.head_loss=auto`), its attention `arctic_varlen`."""


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    shape: str
    factor: str
    overrides: str
    """Of the shape and of the factor."""


def cells(shapes: dict[str, str]) -> list[Cell]:
    """Return at most 15 cells, those that say most first: the base setting of each shape beside the bare loop, then factors."""
    first = [(shape, factor) for shape in shapes for factor in ("base", BARE)]
    small, *middle = list(shapes)[:2]
    more = [(small, factor) for factor in FACTORS if factor not in ("base", BARE)]
    more += [(shape, factor) for shape in middle for factor in ("16k tokens", "recomputed")]
    more += [(shape, "16k tokens") for shape in list(shapes)[2:]]
    return [Cell(shape, factor, f"{shapes[shape]} {FACTORS[factor]}") for shape, factor in [*first, *more][:15]]


class Clock:
    """The ends of steps: as CUDA events, for which the host does not wait, or by the time of day without CUDA."""

    def __init__(self) -> None:
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Note that a step ends here."""
        import torch

        if not torch.cuda.is_available():
            self._marks.append(time.perf_counter())
            return
        self._marks.append(torch.cuda.Event(enable_timing=True))
        self._marks[-1].record()

    def seconds(self) -> list[float]:
        """Return the seconds between the ends, one fewer than there were."""
        import torch

        if not torch.cuda.is_available():
            return [after - before for before, after in itertools.pairwise(self._marks)]
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1e3 for before, after in itertools.pairwise(self._marks)]


def measure(cell: Cell, folder: Path, steps: int = WARM_UP + TIMED, warm_up: int = WARM_UP) -> dict[str, Any]:
    """Run one cell in this process; return its figures, or the error that ended it."""
    import torch

    os.environ["DS_ACCELERATOR"] = "cuda" if torch.cuda.is_available() else "cpu"
    run_dir = Path(tempfile.mkdtemp(dir=folder))
    try:
        run = composed(
            f"{COMMON} {cell.overrides} data.cache_dir={folder / 'cache'} trainer.train_iters={steps}", run_dir
        )
        found = (bare_loop if cell.factor == BARE else whole_run)(run, run_dir)
    except torch.OutOfMemoryError:
        return {"error": "out of memory"}
    taken = slice(warm_up, None)
    seconds = sum(found.clock.seconds()[warm_up - 1 :])
    return {
        "tokens_per_second": sum(found.tokens[taken]) / seconds,
        "step_seconds": seconds / (steps - warm_up),
        "tflops": sum(found.flops[taken]) / seconds / 1e12,
        "peak_gib": found.peak_gib,
        "estimated_gib": found.estimated_gib,
        "losses": [float(loss) for loss in found.losses],
    }


class Found:
    """What the steps of a cell did."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.tokens: list[int] = []
        self.flops: list[float] = []
        self.losses: list[Any] = []
        self.peak_gib = 0.0
        self.estimated_gib: float | None = None

    def add(self, window: Any, loss: Any, shape: tuple[float, float, int, int]) -> None:
        """Note the end of a step with its mean loss, a tensor that is read later."""
        from arctic_hydra.metrics import model_flops

        self.clock.mark()
        self.losses.append(loss)
        self.tokens.append(sum(batch.num_tokens for batch in window.micro_batches))
        lengths = [length for batch in window.micro_batches for length in batch.document_lengths]
        supervised = sum(batch.num_supervised for batch in window.micro_batches)
        self.flops.append(model_flops(*shape, lengths, supervised))


def composed(arguments: str, run_dir: Path) -> Any:
    """Return the checked run of a command line, with what the command writes into the run directory."""
    from arctic_hydra import config
    from arctic_hydra.distributed import World
    from tests import composing

    tree = composing.composed(*arguments.split())
    (run_dir / "run.json").write_text(json.dumps({"config": tree}))
    run = config.build(tree)
    run.trainer.set_callbacks([], World.from_env())
    return run


def whole_run(run: Any, run_dir: Path) -> Found:
    """Train as the command does."""
    from arctic_hydra import runner
    from arctic_hydra.callback.base import Callback
    from arctic_hydra.metrics import memory_gib
    from arctic_hydra.stopping import StopRequest

    found = Found()

    class Ends(Callback):
        def on_step_end(self, trainer: Any, facts: dict[str, Any]) -> None:
            mean = facts["loss_sum"] / facts["counts"]["units"]
            found.add(facts["window"], mean, trainer.tools.flops_shape)

    run.trainer.set_callbacks([Ends()], run.trainer.world)
    trainer, _, prediction = runner.build(run, run_dir, StopRequest(run_dir / "STOP"))
    trainer.train()
    found.peak_gib = memory_gib(trainer.device)
    found.estimated_gib = prediction.total and prediction.total / 2**30
    return found


def bare_loop(run: Any, run_dir: Path) -> Found:
    """Train the same model on the same batches with torch: weights of the optimizer in fp32, clipping, fused AdamW."""
    import torch

    from arctic_hydra.assembly import run_data, run_model, startup
    from arctic_hydra.metrics import memory_gib
    from arctic_hydra.report.facts import model_facts
    from arctic_hydra.trainer.head import model_inputs

    startup.start_process(run, run_dir)
    data = run_data.build_data(run, run_dir)
    device, optimizer = data.world.device, run.optimizer
    model = run_model.create_model(run, run.trainer.create_config(run.model), data.tokenizer).to(device).train()
    facts = model_facts(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    held = [p if p.dtype == torch.float32 else p.detach().float().requires_grad_() for p in trained]
    adam = torch.optim.AdamW(held, optimizer.lr, tuple(optimizer.betas), optimizer.eps, weight_decay=0.0, fused=True)
    found, steps = Found(), run.trainer.train_iters
    windows = itertools.chain.from_iterable(data.loader.windows(epoch) for epoch in itertools.count())
    for window in itertools.islice(windows, steps):
        units = sum(batch.num_supervised for batch in window.micro_batches)
        total: Any = 0.0
        for batch in (batch.to(device) for batch in window.micro_batches):
            logits_KV = model(**model_inputs(batch), logits_to_keep=batch.rows_K).logits[0].float()
            loss = torch.nn.functional.cross_entropy(logits_KV, batch.targets_K, reduction="sum") / units
            loss.backward()
            total = total + loss.detach()
        for parameter, copy in zip(trained, held, strict=True):
            if copy is not parameter:
                assert parameter.grad is not None
                copy.grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_(held, 1.0)
        adam.step()
        adam.zero_grad()
        with torch.no_grad():
            torch._foreach_copy_(trained, held)
        found.add(window, total, facts.flops_shape)
    found.peak_gib = memory_gib(device)
    return found


def device_facts(size: int = 8192, repeats: int = 30) -> dict[str, Any]:
    """Return the device's name and the TFLOP/s of a square matrix product in bf16: the best of several."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    left, right = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    clock = Clock()
    for _ in range(repeats):
        clock.mark()
        left @ right
    clock.mark()
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    return {"device": name, "torch": torch.__version__, "matmul_tflops": 2 * size**3 / min(clock.seconds()) / 1e12}


def in_process(order: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Carry out an order in a new process, which is killed after so many seconds."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "launchers"), os.environ.get("PYTHONPATH", "")])
    variables = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-m", "tests.gpu.bench", "--order", json.dumps(order)]
    child = subprocess.Popen(command, env=variables, start_new_session=True, **pipes)
    try:
        output, errors = child.communicate(timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)  # with the compiler's workers
        child.communicate()
        return {"error": "no time left"}
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if child.returncode == 0 and lines:
        return dict(json.loads(lines[-1]))
    last = (errors.strip().splitlines() or [""])[-1]
    return {"error": "out of memory" if "OutOfMemoryError" in last else f"ended with {child.returncode}: {last[:200]}"}


def obey(order: dict[str, Any]) -> dict[str, Any]:
    """Carry out an order of `in_process`."""
    return measure(Cell(**order["cell"]), Path(order["folder"])) if "cell" in order else device_facts()


def bench(
    wanted: list[Cell],
    minutes: float,
    out: Path,
    order: Callable[[dict[str, Any], float], dict[str, Any]] = in_process,
) -> dict[str, Any]:
    """Measure the cells for which there is time, and write all that is known to `out` after each."""
    end = time.monotonic() + 60 * minutes
    found: dict[str, Any] = {"device": order({}, 60 * minutes), "cells": []}
    longest: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for cell in wanted:
            start = time.monotonic()
            row: dict[str, Any] = {"error": "skipped: no time left"}
            if end - start > longest.get(cell.shape, min(EXPECTED_SECONDS, 30 * minutes)):
                row = order({"cell": asdict(cell), "folder": folder}, end - start)
                taken = row["seconds"] = time.monotonic() - start
                longest[cell.shape] = max(longest.get(cell.shape, 0.0), taken)
            found["cells"].append({**asdict(cell), **row})
            out.write_text(json.dumps(found, indent=1) + "\n")
            print(
                f"{cell.shape}, {cell.factor}: {row.get('error') or format(row['tokens_per_second'], ',.0f')}",
                flush=True,
            )
    return found


def table(found: dict[str, Any]) -> str:
    """Return the cells as a Markdown table."""
    facts, rows = found["device"], {(cell["shape"], cell["factor"]): cell for cell in found["cells"]}
    matmul = facts.get("matmul_tflops")
    measured = f", {matmul:,.1f} TFLOP/s in a bf16 matrix product" if matmul else f": {facts.get('error')}"
    lines = [f"{facts.get('device', 'unknown device')}, torch {facts.get('torch', '?')}{measured}.", ""]
    head = (
        "tokens/s",
        "step",
        f"MFU of {DATA_SHEET_TFLOPS:.0f}",
        "of the product",
        "peak GiB",
        "estimated",
        f"of the {BARE}",
    )
    lines += [f"| shape | setting | {' | '.join(head)} |", "|---" * (len(head) + 2) + "|"]
    for (shape, factor), cell in rows.items():
        figures = [str(cell.get("error")), *[""] * (len(head) - 1)]
        if "error" not in cell:
            estimate = cell["estimated_gib"]
            figures = [
                f"{cell['tokens_per_second']:,.0f}",
                f"{cell['step_seconds'] * 1e3:,.0f} ms",
                f"{cell['tflops'] / DATA_SHEET_TFLOPS:.1%}",
                f"{cell['tflops'] / matmul:.1%}" if matmul else "",
                f"{cell['peak_gib']:.1f}",
                "" if estimate is None else f"{estimate:.1f}",
                _beside_bare(cell, rows.get((shape, BARE))) if factor == "base" else "",
            ]
        lines.append(f"| {shape} | {factor} | {' | '.join(figures)} |")
    return "\n".join(lines)


def _beside_bare(cell: dict[str, Any], bare: dict[str, Any] | None) -> str:
    """Return the speed as a share of the bare loop's, if both have trained alike."""
    if bare is None or "error" in bare:
        return ""
    apart = max(abs(a - b) / abs(b) for a, b in zip(cell["losses"], bare["losses"], strict=True))
    if not apart < TOLERANCE:
        return f"losses differ by {apart:.1%}"
    return f"{cell['tokens_per_second'] / bare['tokens_per_second']:.3f}"


def main(arguments: list[str]) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.bench", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="time for all cells")
    parser.add_argument("--out", type=Path, default=Path("bench_gpu.json"))
    parser.add_argument("--only", default="", help="cells whose `shape, factor` contains this text")
    parser.add_argument("--order", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.order:
        print(json.dumps(obey(json.loads(options.order))), flush=True)
        return 0
    wanted = [cell for cell in cells(SHAPES) if options.only in f"{cell.shape}, {cell.factor}"]
    print(table(bench(wanted, options.minutes, options.out.resolve())))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
