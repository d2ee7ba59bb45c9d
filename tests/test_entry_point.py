"""What all commands have in common: their exit codes, and the messages of errors that any of them may meet."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from arctic_hydra import __main__, entry_point
from arctic_hydra.data.cache import __main__ as cache
from arctic_hydra.errors import ConfigError, DataError
from arctic_hydra.migrate import __main__ as migrate
from arctic_hydra.sweep import __main__ as sweep

COMMANDS = {
    "run": (__main__, ["--version"], "_dispatch"),
    "sweep": (sweep, ["status", "outputs/a/sweeps/b"], "load_extensions"),
    "migrate": (migrate, ["--table", "trl"], "_migrate"),
    "cache": (cache, ["--cache-dir", "cache", "list"], "entries"),
}
each_command = pytest.mark.parametrize("name", COMMANDS)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError(["a: one", "b: two"]), 2, "error: a: one\nerror: b: two\n"),
        (DataError("a row"), 1, "error: a row\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_are_exit_codes(error, code, text, capsys):
    def fail() -> int:
        raise error

    assert entry_point.exit_code(fail) == code
    assert capsys.readouterr().err == text
    if code < 100:
        told = []
        assert entry_point.exit_code(fail, [], told.append) == code and told == [error]


def test_a_full_disk_is_one_sentence(capsys):
    def fail(*names: str) -> int:
        raise OSError(28, "No space left on device", *names)

    for names, text in (((), "error: "), (("a/run.json",), "error: a/run.json: ")):
        assert entry_point.exit_code(partial(fail, *names)) == 1
        assert capsys.readouterr().err.startswith(f"{text}No space left on device; free space, or")


@each_command
def test_a_command_needs_a_working_directory(name, tmp_path, monkeypatch, capsys):
    module, arguments, _ = COMMANDS[name]
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert module.main(arguments) == 2
    assert capsys.readouterr().err == "error: the working directory no longer exists; change to another\n"
    os.chdir(tmp_path)


@each_command
def test_an_interrupt_ends_a_command_without_a_traceback(name, monkeypatch, capsys):
    module, arguments, function = COMMANDS[name]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, function, interrupt)
    assert module.main(["recipe.yaml"] if name == "migrate" else arguments) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("name", ["run", "migrate", "cache"])
def test_a_closed_pipe_ends_a_command_without_a_traceback(name, tmp_path, monkeypatch, capsys):
    """As of `| head`, or `| true`, which closes it before the command has printed as much as is buffered."""
    module, arguments, _ = COMMANDS[name]
    monkeypatch.chdir(tmp_path)
    Path("cache").mkdir()
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        assert module.main(arguments) == 1
    assert capsys.readouterr().err == ""
