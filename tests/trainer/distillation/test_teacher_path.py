"""A teacher is found in a directory, in the export of a run, or on the hub."""

from __future__ import annotations

from arctic_hydra.trainer.distillation.distill import DistillTrainer
from arctic_hydra.trainer.distillation.teacher_path import find_directory, path_problem


def test_a_directory_a_run_with_an_export_and_a_hub_id_are_teachers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, adapter, nothing = (tmp_path / name for name in ("run", "adapter", "nothing"))
    for folder, name in ((run / "export", "config.json"), (adapter / "export", "adapter_config.json")):
        folder.mkdir(parents=True)
        (folder / name).write_text("{}")
    nothing.mkdir()
    assert find_directory(str(run)) == find_directory(str(run / "export")) == str(run / "export")
    assert find_directory("Qwen/Qwen3-4B") == "Qwen/Qwen3-4B"
    assert [path_problem(name) for name in (str(run), str(run / "export"), "Qwen/Qwen3-4B")] == [None] * 3
    for path, text in ((adapter, "holds an adapter"), (nothing, "no config.json"), (tmp_path / "x", "not a directory")):
        [problem] = DistillTrainer(teacher_path=str(path)).check_environment()
        assert problem.startswith(f"teacher_path: got '{path}', which ") and text in problem
