"""Logging to one file per rank and to the terminal."""

from __future__ import annotations

import os
import subprocess
import sys

from arctic_hydra import log

LOGGING = """
import faulthandler, logging, os, pathlib, signal, sys
from arctic_hydra import log
from arctic_hydra.distributed import World
log.start(pathlib.Path(sys.argv[1]), World(1, 2), "INFO", to_file=True, to_terminal=True)
logging.getLogger("arctic_hydra.x").info("ours")
logging.getLogger("arctic_hydra.x").warning("look")
logging.getLogger("arctic_hydra.x").debug("too fine")
logging.getLogger("library").warning("theirs, a warning")
logging.getLogger("library").error("theirs, an error")
logging.getLogger("deepspeed").info("chatter")
printed = []
log.set_terminal(printed.append)
logging.getLogger("arctic_hydra.x").info("above the bar")
log.set_terminal(None)
print(printed)
os.kill(os.getpid(), signal.SIGUSR1)
"""


QUIET = """
import logging, warnings
from arctic_hydra import log
log.quiet_warnings()
logging.getLogger("arctic_hydra.x").warning("ours")
logging.getLogger("library").warning("theirs")
logging.getLogger("library").error("their error")
warnings.warn("old", FutureWarning)
"""


def test_a_conversation_is_not_interrupted_by_warnings_of_libraries():
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["warning: ours", "their error"]


def test_the_file_holds_warnings_of_libraries_and_the_terminal_their_errors(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LOGGING, str(tmp_path)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stderr.splitlines() == ["[rank 1] ours", "[rank 1] warning: look", "[rank 1] theirs, an error"]
    assert done.stdout == "['[rank 1] above the bar']\n"
    text = (tmp_path / "logs" / "rank1.log").read_text()
    assert "INFO [rank 1] arctic_hydra.x: ours" in text and "WARNING [rank 1] library: theirs, a warning" in text
    assert "chatter" not in text and "too fine" not in text
    assert "most recent call first" in text, "SIGUSR1 writes the stacks of all threads"


def test_environment_variables_of_the_user_win(monkeypatch):
    environment = {"TRANSFORMERS_VERBOSITY": "info"}
    monkeypatch.setattr(os, "environ", environment)
    log.quiet_libraries()
    assert (environment["TRANSFORMERS_VERBOSITY"], environment["DS_LOG_LEVEL"]) == ("info", "error")


def test_a_log_is_not_written_through_a_link(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "rank1.log").symlink_to("../victim")
    done = subprocess.run([sys.executable, "-c", LOGGING, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path)
    assert (
        "StateFileError" in done.stderr and "rank1.log: is a symbolic link to ../victim, expected a file" in done.stderr
    )
    assert (tmp_path / "victim").read_text() == "mine"
