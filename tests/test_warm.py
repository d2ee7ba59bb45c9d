"""A fork of the warm process does what a fresh interpreter does, and nothing of it stays behind."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from arctic_hydra.distributed import count_gpus
from tests import command, warm
from tests.command import ROOT, SMALL, environment, losses, only_run, run

pytestmark = pytest.mark.skipif(
    os.environ["OMP_NUM_THREADS"] != "1" or count_gpus() > 0,
    reason="runs start fresh: OpenBLAS gives the warm process threads by OMP_NUM_THREADS, or there is a CUDA device",
)

PROBE = """
import atexit, json, os, pathlib, subprocess, sys, threading
of_shells = {"_", "SHLVL", "PWD", "OLDPWD"}
parent = os.environ.pop("ARCTIC_HYDRA_PARENT", None)
print(json.dumps({
    "argv": sys.argv, "path": sys.path, "names": (__name__, __file__), "folder": os.getcwd(), "stdin": sys.stdin.read(),
    "environment": sorted(item for item in os.environ.items() if item[0] not in of_shells), "torch": "torch" in sys.modules,
}))
if parent is None:
    atexit.register(print, "at exit")
    os.environ |= {"ARCTIC_HYDRA_PARENT": str(os.getpid()), "OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "1"}
    ours, theirs = os.pipe()
    command, streams = [sys.executable, "-u", "-m", "probe", "7"], {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    started = subprocess.Popen(command, stdin=subprocess.DEVNULL, **streams, start_new_session=True, pass_fds=[theirs])
    os.close(theirs)
    print(started.communicate()[0].decode(), started.returncode, os.read(ours, 9))
    threading.Timer(0.2, print, ["from a thread"]).start()
else:
    pipe = next(number for number in range(3, 99) if pathlib.Path(f"/proc/self/fd/{number}").is_fifo())
    print(int(parent) == os.getppid(), os.getsid(0) == os.getpid(), os.write(pipe, b"inherited"))
[word] = sys.argv[1:]
if word == "raise":
    raise ValueError(word)
sys.exit(int(word) if word.isdigit() else word)
"""


def results(folder: Path):
    """Return a run's losses, and the hash of its export."""
    weights = (only_run(folder) / "export" / "model.safetensors").read_bytes()
    return losses(only_run(folder)), hashlib.sha256(weights).hexdigest()


@pytest.mark.parametrize("more", ["", "ranks=2 deepspeed=zero2"])
def test_a_run_is_bit_identical_to_that_of_fresh_interpreters(more, tmp_path, monkeypatch):
    arguments = f"{SMALL} {more} trainer.train_iters=4 model.hf_config_kwargs={{attention_dropout:0.1}} tracking=[]"
    for name in ("fresh", "warm"):
        (tmp_path / name).mkdir()
    run(arguments, tmp_path / "fresh", fresh=True)
    monkeypatch.setattr(command.subprocess, "run", None)  # a fork it is
    run(arguments, tmp_path / "warm")
    assert results(tmp_path / "warm") == results(tmp_path / "fresh")


@pytest.mark.parametrize(("word", "code"), [("0", 0), ("3", 3), ("words", 1), ("raise", 1)])
def test_a_process_of_its_own(word, code, tmp_path):
    (tmp_path / "probe.py").write_text(PROBE)
    more = {"PYTHONPATH": f"{tmp_path / 'site'}:{tmp_path / 'missing'}"} if code else {}
    fresh, forked = (run(word, tmp_path, code=code, module="probe", fresh=fresh, **more) for fresh in (True, False))
    assert "True True 9" in fresh.stdout and fresh.stdout.endswith("b'inherited'\nfrom a thread\nat exit\n")
    assert forked.stdout.replace('"torch": true', '"torch": false') == fresh.stdout
    assert forked.stdout.count('"torch": true') == 2, "its child was a fork as well"
    assert forked.stderr.splitlines()[-1:] == fresh.stderr.splitlines()[-1:]


@pytest.mark.parametrize("name", ["torch.py", "hydra", "sitecustomize.py"])
def test_a_folder_that_replaces_a_module_needs_a_new_interpreter(name, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / name).mkdir()
    (tmp_path / "probe.py").write_text("import sys; print('torch' in sys.modules)")
    assert run("", tmp_path, module="probe", PYTHONPATH=str(site)).stdout == "False\n"
    (site / name).rename(site / "my_lab")
    assert run("", tmp_path, module="probe", PYTHONPATH=str(site)).stdout == "True\n"


def test_a_run_that_takes_too_long_is_killed(tmp_path):
    (tmp_path / "sleeper.py").write_text("import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    run("--version", tmp_path)  # the server has started
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        run("", tmp_path, module="sleeper", timeout=2)
    wait_for_the_end_of(int(caught.value.output))


def wait_for_the_end_of(process: int) -> None:
    end = time.monotonic() + 60
    while Path(f"/proc/{process}").exists():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_server_that_is_gone_is_done_without(tmp_path):
    with closing(warm.Server(environment())) as server:
        server.process[0].kill()
        with pytest.warns(
            UserWarning, match="the warm process is not available, so runs take longer: it exited with -9"
        ):
            assert server.run("arctic_hydra", ["--version"], tmp_path, 60) is None
        assert server.run("arctic_hydra", ["--version"], tmp_path, 60) is None


def test_the_server_ends_with_its_client(tmp_path):
    code = "from tests import command; print(command.SERVER.process[0].pid, flush=True); input()"
    client = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with client:
        server = int(client.stdout.readline())
        client.kill()
    wait_for_the_end_of(server)
