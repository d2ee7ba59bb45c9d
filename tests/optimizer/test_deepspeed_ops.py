"""DeepSpeed's compiled optimizers need a compiler."""

from __future__ import annotations

from importlib.machinery import ModuleSpec

from arctic_hydra.optimizer import deepspeed_ops
from arctic_hydra.optimizer.cpu_adam import CPUAdamFactory
from arctic_hydra.optimizer.fused_adam import FusedAdamFactory


def test_a_missing_compiler_is_reported_before_the_run(monkeypatch, tmp_path):
    monkeypatch.setattr(deepspeed_ops.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    for factory in (FusedAdamFactory, CPUAdamFactory):
        [problem] = factory().check_environment()
        assert "on first use, and this machine lacks a C++ compiler (g++)" in problem
        assert problem.endswith("or pass optimizer=adamw")


def test_an_extension_that_was_built_in_needs_no_compiler(monkeypatch, tmp_path):
    (tmp_path / "ops" / "adam").mkdir(parents=True)
    (tmp_path / "ops" / "adam" / "cpu_adam_op.cpython.so").touch()
    spec = ModuleSpec("deepspeed", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(deepspeed_ops.importlib.util, "find_spec", lambda name: spec if name == "deepspeed" else None)
    monkeypatch.setattr(deepspeed_ops.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    assert list(CPUAdamFactory().check_environment()) == []
    assert len(list(FusedAdamFactory().check_environment())) == 1
