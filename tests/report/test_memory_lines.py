"""Predicted and measured memory are named, so that they are not mistaken for each other; test_memory has the estimates."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch

from arctic_hydra.report import memory_lines
from arctic_hydra.report.memory_lines import Prediction, process_gib

GIB = 2**30


def test_the_process_is_told_from_its_tensors_on_a_cpu():
    held = process_gib()
    line = Prediction([], GIB // 2, held).measured_line(torch.device("cpu"))
    found = re.fullmatch(
        r"memory   peak (\S+) GiB of the process, (\S+) GiB of it before the model was built; predicted 0.5 GiB of tensors",
        line,
    )
    assert found and 0.05 < float(found[2]) <= float(found[1])
    assert Prediction().measured_line(torch.device("cpu")).endswith("before the model was built")


@pytest.mark.parametrize(("total", "beside"), [(2 * GIB, ", predicted 2 GiB"), (None, "")])
def test_on_a_gpu_both_are_of_tensors(total, beside, monkeypatch):
    monkeypatch.setattr(memory_lines, "memory_gib", lambda device: 1.75)
    line = Prediction([], total).measured_line(SimpleNamespace(type="cuda"))
    assert line == f"memory   peak 1.75 GiB of tensors on the GPU{beside}"
