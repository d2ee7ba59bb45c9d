"""The scripts in the real shells: a person types, presses TAB and then Enter."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time

import pytest

from arctic_hydra.__main__ import main
from arctic_hydra.cli.completion.shells import answer, respond
from tests.command import environment

START = {
    "bash": "bash --noprofile --norc -i",
    "zsh": "zsh -f -i",
    "fish": "fish --no-config -i",
}
SETUP = {
    "bash": "PS1='READY> '; bind 'set enable-bracketed-paste off'; source completion",
    "zsh": "PS1='READY> '; unsetopt zle_bracketed_paste; autoload -Uz compinit; compinit -u -D; source completion",
    "fish": "function fish_prompt; echo 'READY> '; end; source completion",
}
STUB = """#!/bin/sh
# Answers the shell; what a person enters is only printed.
case "$*" in
*"-sc query="*) exec {python} {module} "$@" ;;
*) printf 'ran:'; printf ' <%s>' "$@"; printf ' end\\n' ;;
esac
"""
TYPED = [
    ("arctic-hydra seed=1 trainer=dp\t", "ran: <seed=1> <trainer=dpo> end"),
    ("python -m arctic_hydra kill=x trainer.kill_\tda\t", "ran: <-m> <arctic_hydra> <kill=x> <trainer.kill_switch_path=data.v1/>"),
    ("python my_scr\t", "ran: <my_script.py>"),
]  # fmt: skip


class Terminal:
    """A shell on a terminal of its own."""

    def __init__(self, command: str, folder, variables: dict[str, str]) -> None:
        self.shown = ""
        self._pid, self._file = pty.fork()
        if self._pid == 0:
            os.chdir(folder)
            os.execvpe(command.split()[0], command.split(), variables)

    def send(self, text: str) -> None:
        os.write(self._file, text.encode())

    def wait(self, text: str, seconds: float = 120.0) -> None:
        """Wait until a text is shown since the last wait."""
        end = time.monotonic() + seconds
        while text not in self.shown:
            ready, _, _ = select.select([self._file], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{text!r} was not shown: {self.shown!r}"
            self.shown += os.read(self._file, 65536).decode(errors="replace")
        self.shown = self.shown.partition(text)[2]

    def close(self) -> None:
        os.kill(self._pid, 9)
        os.waitpid(self._pid, 0)
        os.close(self._file)


@pytest.mark.parametrize("shell", START)
def test_tab_completes_both_spellings_in_the_real_shell(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, module in (("arctic-hydra", "-m arctic_hydra"), ("python", "")):
        (bin_folder / name).write_text(STUB.format(python=sys.executable, module=module))
        (bin_folder / name).chmod(0o755)
    (tmp_path / "completion").write_text(respond([f"install={shell}"]))
    (tmp_path / "my_script.py").write_text("")
    (tmp_path / "data.v1").mkdir()
    terminal = Terminal(
        START[shell], tmp_path, environment(PATH=f"{bin_folder}:{os.environ['PATH']}", TERM="xterm", HOME=str(tmp_path))
    )
    try:
        terminal.send(f"{SETUP[shell]}; echo set' 'up\n")
        terminal.wait("set up")
        for typed, printed in TYPED:
            terminal.wait("READY> ")
            for part in typed.replace("\t", "\t\0").split("\0"):  # as a person, who sees the answer before typing on
                terminal.send(part)
                time.sleep(0.05)
            terminal.send("\n")
            terminal.wait(printed)
    finally:
        terminal.close()


@pytest.mark.parametrize(
    ("line", "part", "expected"),
    [
        ("arctic-hydra trainer=dp", "dp", "dpo\n"),  # bash replaces what follows `=`
        ("arctic-hydra 'trainer=dp", "trainer=dp", "trainer=dpo\n"),
        ("arctic-hydra init_from=my\\ d", "my\\ d", "my\\ data/\n"),
        ("arctic-hydra 'init_from=my d", "init_from=my d", "init_from=my data/\n"),
        ("arctic-hydra init_from=$", "$", "\\$\\(id\\)\\'/\n"),
        ("arctic-hydra 'init_from=$", "init_from=$", "init_from=$(id)'\\''/\n"),
        ('arctic-hydra "init_from=$', "init_from=$", "init_from=\\$(id)'/\n"),
    ],
)
def test_bash_gets_what_it_replaces(line, part, expected, tmp_path):
    (tmp_path / "my data").mkdir()
    (tmp_path / "$(id)'").mkdir()
    (tmp_path / "$two\nlines").mkdir()  # cannot be one candidate
    assert answer("bash", {"COMP_LINE": line, "COMP_WORD": part}) == expected


def test_zsh_and_fish_get_a_text_with_each_candidate():
    assert answer("zsh", {"COMP_LINE": "arctic-hydra task=che"}) == (
        "task=check\tvalidate the config and this machine, without training\n"
    )
    assert (
        answer("fish", {"COMP_LINE": "arctic-hydra seed=1 see"}) == "seed=\tSeed of weights, data order and dropout.\n"
    )


def test_an_answer_imports_nothing_heavy_and_takes_less_time_than_the_command_to_start(tmp_path):
    code = (
        "import sys, time; from arctic_hydra.__main__ import main; start = time.process_time(); main(['-sc', 'query=zsh']); "
        "print(sorted({'torch', 'deepspeed', 'transformers', 'numpy', 'datasets'} & set(sys.modules)), time.process_time() / start)"
    )
    variables = environment(COMP_LINE="arctic-hydra trainer=dpo trainer.epo")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, cwd=tmp_path)
    first, second = done.stdout.splitlines()
    assert first.startswith("trainer.epochs=\t")
    imported, ratio = second.rsplit(" ", 1)
    assert imported == "[]" and float(ratio) < 2, second


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "got no command, expected install=bash, install=zsh or install=fish"),
        (["install=tcsh"], "got install=tcsh, expected install=bash"),
        (["uninstall=bash"], "got uninstall=bash, expected install=bash"),
        (["query=bash"], "query= is called by the shell, which sets COMP_LINE"),
    ],
)
def test_other_commands_are_refused_in_one_sentence(arguments, error, capsys, monkeypatch):
    monkeypatch.delenv("COMP_LINE", raising=False)
    assert main(["--shell-completion", *arguments]) == 2
    assert f"error: --shell-completion: {error}" in capsys.readouterr().err


def test_folders_without_end_and_those_of_a_project_hinder_neither_help_nor_completion(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in "abcd":
        (tmp_path / name).symlink_to(".")
    (tmp_path / ".venv" / "lib").mkdir(parents=True)
    assert "model=tiny" in answer("bash", {"COMP_LINE": f"arctic-hydra --config-dir {tmp_path} model="})
    assert main(["--config-dir", str(tmp_path), "--help"]) == 0
    assert "model" in capsys.readouterr().out
