"""The benchmark of one CUDA device, with tiny shapes on the CPU: all of its path but the sizes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import bench
from tests.ranks import run_ranks

TINY = (
    "model=random model.architecture=qwen3 model.hidden_size=32 model.intermediate_size=64 model.num_hidden_layers=2 "
    "model.num_attention_heads=4 model.num_key_value_heads=2 model.head_dim=8 model.vocab_size=4096 model.dtype=fp32 "
    "data.max_length=256 data.sources.chat.sample_count=24 model.max_position_embeddings=2048 "
    "model.disable_activation_checkpoint=true trainer.gradient_accumulation_steps=2"
)
FACTORS = ("base", bench.BARE, "full head")
"""The others take a compiler or say nothing at this size; padded rows are tested with an adapter."""


def whole(folder: Path) -> dict[str, Any]:
    """Run the cells of tiny shapes one after the other in this process, the one with all logits out of memory."""
    import torch

    whole_run = bench.whole_run

    def runs_out(run: Any, run_dir: Path) -> Any:
        if run.trainer.head_loss.name == "full":
            raise torch.OutOfMemoryError
        return whole_run(run, run_dir)

    bench.whole_run = runs_out

    def order(given: dict[str, Any], seconds: float) -> dict[str, Any]:
        if "cell" not in given:
            return bench.device_facts(64, 2)
        return bench.measure(bench.Cell(**given["cell"]), Path(given["folder"]), steps=2, warm_up=1)

    wanted = [cell for cell in bench.cells({"tiny": TINY}) if cell.factor in FACTORS]
    padded = bench.FACTORS["padded rows, sdpa"]
    return bench.bench(
        [*wanted, bench.Cell("tiny, LoRA", "padded", f"{TINY} peft=lora {padded}")], 5, folder / "found.json", order
    )


def test_the_whole_path_runs_on_the_cpu_with_tiny_shapes(tmp_path: Path) -> None:
    [found] = run_ranks(1, whole, tmp_path)
    assert found == json.loads((tmp_path / "found.json").read_text())
    rows = {(cell["shape"], cell["factor"]): cell for cell in found["cells"]}
    assert rows["tiny", "full head"]["error"] == "out of memory"
    ours, bare, adapter = (rows[row] for row in (("tiny", "base"), ("tiny", bench.BARE), ("tiny, LoRA", "padded")))
    assert ours["losses"] == pytest.approx(bare["losses"], rel=1e-5) and ours["losses"][0] != ours["losses"][1]
    assert adapter["tflops"] / adapter["tokens_per_second"] < ours["tflops"] / ours["tokens_per_second"]
    assert 0 < ours["estimated_gib"] < ours["peak_gib"]
    text = bench.table(found)
    assert "CPU, torch " in text and "| tiny | full head | out of memory |" in text
    assert text.count("| tiny") == len(rows) == 4


def test_there_are_at_most_15_cells_and_the_base_settings_come_first() -> None:
    found = bench.cells(bench.SHAPES)
    assert len(found) == 15 == len(set(found))
    assert [cell.factor for cell in found[:6]] == ["base", bench.BARE] * 3


def test_cells_without_time_are_skipped_and_said(tmp_path: Path) -> None:
    row = {"tokens_per_second": 1.0, "step_seconds": 1.0, "tflops": 1.0, "peak_gib": 1.0, "estimated_gib": None}
    clock = iter(range(0, 1000, 30))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.time, "monotonic", lambda: float(next(clock)))
        found = bench.bench(
            bench.cells({"a": ""}), 2, tmp_path / "x.json", lambda given, seconds: {**row, "losses": []}
        )
    errors = [cell.get("error") for cell in found["cells"]]
    assert errors[0] is None and errors[-1] == "skipped: no time left"
    assert f"| a | {found['cells'][-1]['factor']} | skipped: no time left |" in bench.table(found)


@pytest.mark.parametrize(
    ("program", "seconds", "error"),
    [
        ("raise SystemExit('torch.OutOfMemoryError: CUDA')", 60.0, "out of memory"),
        ("import time; time.sleep(60)", 1.0, "no time left"),
    ],
)
def test_a_cell_that_dies_or_hangs_is_a_row(
    program: str, seconds: float, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    popen = bench.subprocess.Popen
    monkeypatch.setattr(
        bench.subprocess, "Popen", lambda command, **more: partial(popen, [command[0], "-c", program])(**more)
    )
    assert bench.in_process({}, seconds) == {"error": error}
