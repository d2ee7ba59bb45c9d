"""No value of an option ends its line in a script, adds an option, or runs."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from hydra_plugins.arctic_hydra._slurm_script import render

from arctic_hydra import python_flags
from arctic_hydra.__main__ import main
from arctic_hydra.errors import ConfigError
from arctic_hydra.launch.slurm_options import _TEXTS
from tests.launchers.slurm_defaults import ATTACKS, CANARY, defaults
from tests.launchers.slurm_sweeps import DETACHED

QUOTED = [key for key in _TEXTS if key not in ("python", "folder")]
STUB = '#!/bin/sh\nprintf "%s\\0" "$@" > "$RECORD"\n'


def sbatch_words(line: str) -> list[str]:
    """Split a line of options as sbatch does: a backslash escapes any character, in quotes and outside."""
    words, word, quote, escaped = [], "", "", False
    started = False
    for letter in line:
        if escaped:
            word, escaped, started = word + letter, False, True
        elif letter == "\\":
            escaped = True
        elif quote:
            quote, word = ("", word) if letter == quote else (quote, word + letter)
        elif letter in "\"'":
            quote, started = letter, True
        elif letter == "#":
            break
        elif letter.isspace():
            words, word, started = [*words, *([word] if started else [])], "", False
        else:
            word, started = word + letter, True
    assert not quote and not escaped, f"sbatch refuses {line}"
    return [*words, *([word] if started else [])]


def parameters(script: str) -> dict[str, str]:
    """Return the options that sbatch reads from a script."""
    words = [sbatch_words(line.removeprefix("#SBATCH")) for line in script.split("\n") if line.startswith("#SBATCH")]
    assert all(len(found) == 1 and found[0].startswith("--") for found in words), words
    return dict(word.removeprefix("--").partition("=")[::2] for [word] in words)


def execute(script: str, tmp_path: Path) -> list[str]:
    """Run a script with a stand-in for srun; return the arguments of srun."""
    (programs := tmp_path / "programs").mkdir()
    (programs / "srun").write_text(STUB)
    (programs / "srun").chmod(0o755)
    (tmp_path / "script.sh").write_text(script)
    variables = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "RECORD": str(tmp_path / "arguments")}
    subprocess.run(["bash", "-n", "script.sh"], cwd=tmp_path, check=True)
    done = subprocess.run(["bash", "script.sh"], cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return (tmp_path / "arguments").read_text().split("\0")[:-1]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("text", ATTACKS, ids=lambda text: ascii(text[:20]))
def test_every_value_stays_one_inert_value(text, count, tmp_path):
    values = dict.fromkeys(QUOTED, text)
    further = {"begin": text, "mail_fake": text}
    options = defaults(**values, srun_args=[text, "--x"], additional_parameters=further)
    script = render(options, count, python="python", marker="# sweep /x")
    found = parameters(script)
    renamed = {"name": "job-name"}
    for key in (*QUOTED, *further):
        assert found.pop(renamed.get(key, key).replace("_", "-")) == text
    plain = {"nodes", "ntasks-per-node", "open-mode", "output", "requeue", "signal", "time", *["array"][: count - 1]}
    assert set(found) == plain, "no option was added"
    log = "/shared/slurm/%A_%a_%t_log.out" if count > 1 else "/shared/slurm/%j_%t_log.out"
    module = ["python", *python_flags(), "-u", "-m", "hydra_plugins.arctic_hydra._slurm_start", "/shared/slurm"]
    assert execute(script, tmp_path) == ["--unbuffered", "--output", log, text, "--x", *module]
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("text", [text for text in ATTACKS if "\\" not in text and len(text) < 100], ids=ascii)
def test_a_folder_stays_one_inert_value(text, tmp_path):
    folder = f"/shared/{text}"
    script = render(defaults(folder=folder), 1, python="python")
    assert parameters(script)["output"] == f"{folder}/%j_0_log.out"
    arguments = execute(script, tmp_path)
    assert (arguments[2], arguments[-1]) == (f"{folder}/%j_%t_log.out", folder)
    assert not (tmp_path / "canary").exists()


def test_commands_run_as_they_are(tmp_path):
    options = defaults(setup=[CANARY, "export A='b c'"], teardown=["touch end"], srun_args=["--mpi=none"])
    arguments = execute(render(options, 1, python="exec 'in a' python"), tmp_path)
    assert arguments[3:7] == ["--mpi=none", "exec", "in a", "python"]
    assert (tmp_path / "canary").exists() and (tmp_path / "end").exists()


@pytest.mark.parametrize("key", ["setup", "teardown"])
@pytest.mark.parametrize("text", ["echo 'x", 'echo "', "if true", "f() {", "$("])
def test_a_command_that_is_not_closed_is_refused(key, text):
    with pytest.raises(ConfigError, match="hydra.launcher: the script is not valid shell syntax .*check setup"):
        render(defaults(**{key: [text]}), 1, python="python")


def test_invalid_options_are_refused_before_anything_is_rendered():
    """Also those of a retry, which come from a file."""
    with pytest.raises(ConfigError, match="hydra.launcher.partition: got 'a.nb', which contains the invisible char"):
        render(defaults(partition="a\nb"), 1, python="python")


@pytest.mark.parametrize("seeds", ["1", "1,2"], ids=["job", "array"])
def test_the_scripts_that_are_submitted_are_inert(seeds, queue, tmp_path):
    """submitit renders those of arrays with a class of its own."""
    text = f"a\\' --wrap='{CANARY}"
    quoted = "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    out = "out of the way; touch canary"
    assert main([*DETACHED, f"seed={seeds}", f"hydra.launcher.comment={quoted}", f"output_root='{out}'"]) == 0
    [path] = (tmp_path / out).glob("default/sweeps/*/slurm/101_submission.sh")
    script = path.read_text()
    assert parameters(script)["comment"] == text
    assert execute(script, tmp_path)[-1] == str(path.parent)
    assert not list(tmp_path.rglob("canary"))


def test_a_folder_of_the_sweep_with_a_line_break_is_refused(queue, tmp_path, capsys):
    assert main([*DETACHED, "seed=1", f"output_root='a\n{CANARY}\n'"]) == 2
    assert "output_root: got " in (error := capsys.readouterr().err) and "invisible character U+000A" in error
    assert not list(tmp_path.rglob("*.sh")) and not queue.jobs


@pytest.mark.parametrize("item", ["partition='{}'", "setup=['{}']", "additional_parameters={{begin: '{}'}}"])
def test_a_line_break_on_the_command_line_is_one_line_of_error(item, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    override = f"hydra.launcher.{item.format('a' + chr(10) + 'b')}"
    assert main(["hydra/launcher=slurm", "hydra.launcher.dry_run=true", override]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and error.startswith(f"error: hydra.launcher.{item.partition('=')[0]}")
    assert not list(tmp_path.iterdir())


def test_a_path_with_spaces_and_quotes_is_one_word_of_the_printed_command(queue, tmp_path, capsys):
    out = 'it is a "folder"'
    assert main([*DETACHED, "seed=1", f"output_root='{out}'"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "sweep status" in line]
    [path] = (tmp_path / out).glob("default/sweeps/*")
    assert shlex.split(line)[-1] == str(path)
