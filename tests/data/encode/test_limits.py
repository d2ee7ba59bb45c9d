"""Templates that would compute without end, or take more memory than there is, are refused in one sentence."""

from __future__ import annotations

import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from arctic_hydra.data.encode import limits
from arctic_hydra.data.encode.chat import ChatEncoder
from arctic_hydra.data.encode.limits import RenderLimitError, render_limits
from arctic_hydra.data.formats.messages import Chat, RowProblem
from arctic_hydra.tokenizer.bundled import BundledTokenizerFactory
from tests.command import SMALLEST, run

BODY = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DOUBLED = "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = NEXT %}{% endfor %}"
LARGE = {
    "product": "{{ 'x' * 10**10 }}",
    "list": "{{ ([0] * 10**10) | length }}",
    "constant filter": "{{ 'x' | center(10000000000) }}",
    "method": "{{ 'x'.ljust(10**10) }}",
    "format": "{{ '{:>10000000000}'.format(1) }}",
    "percent": "{{ '%*d' % (2147483647, 1) * 9 }}",
    "sum": DOUBLED.replace("NEXT", "ns.x + ns.x"),
    "concatenation": DOUBLED.replace("NEXT", "ns.x ~ ns.x"),
    "replace": DOUBLED.replace("NEXT", "ns.x | replace('x', 'xx')"),
    "join": "{{ range(99999) | join('x' * 10000000) }}",
    "generation": "{% generation %}{{ 'x' * 10**10 }}{% endgeneration %}",
    "bytes": "{{ (1).to_bytes(10000000000) }}",
}
LONG = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "tests of loops": "{% for i in range(99999) %}{% for j in range(99999) if j < 0 %}{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "filters": "{{ range(99999) | map('center', 100000) | list | length }}" * 9,
}
FOR_A_ROW = "{% if messages[0].content == 'BOMB' %}ATTACK{% endif %}"


def encoder(template: str) -> ChatEncoder:
    tokenizer = BundledTokenizerFactory().create_tokenizer()
    tokenizer.chat_template = template
    return ChatEncoder(tokenizer)


def chat(question: str) -> Chat:
    return Chat([{"role": "user", "content": question}, {"role": "assistant", "content": "ok"}])


@pytest.mark.parametrize("attack", LARGE.values(), ids=LARGE)
def test_memory_is_bounded(attack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_BYTES", 1 << 28)
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(RenderLimitError, match=r"^tokenizer.chat_template: the template takes more than 256 MiB"):
        encoder(attack + BODY)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


@pytest.mark.parametrize("attack", LONG.values(), ids=LONG)
def test_time_is_bounded(attack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SECONDS", 0.3)
    began = time.process_time()
    with pytest.raises(RenderLimitError, match="the template computes for more than 0.3 seconds"):
        encoder(attack + BODY)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("attack", ["{{ 9 ** (10**9) }}", "{% set x = 2 ** 9999 %}{{ x * x }}"])
def test_integers_are_bounded(attack: str) -> None:
    with pytest.raises(RenderLimitError, match="makes an integer of more than 16,384 bits") as caught:
        encoder(attack + BODY)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value), "as it arrives from a worker"


@pytest.mark.parametrize(
    ("attack", "text"),
    [
        ("{{ 'x' * 10**10 }}", "the chat template takes more than 256 MiB of memory for this row; shorten the row"),
        (LONG["loops"], "the chat template computes for more than 0.3 seconds for this row; shorten the row"),
    ],
    ids=["memory", "time"],
)
def test_the_row_is_named_and_the_others_are_encoded(attack: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_BYTES", 1 << 28)
    monkeypatch.setattr(limits, "MAX_SECONDS", 0.3)
    made = encoder(FOR_A_ROW.replace("ATTACK", attack) + BODY)
    first, bad, last = made.encode([chat("a"), chat("BOMB"), chat("b")])
    assert isinstance(bad, RowProblem) and str(bad).startswith(text)
    assert not isinstance(first, RowProblem) and not isinstance(last, RowProblem)


def test_time_is_bounded_in_other_threads_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SECONDS", 0.3)
    found: list[BaseException] = []

    def render() -> None:
        try:
            with render_limits():
                while True:
                    pass
        except RenderLimitError as error:
            found.append(error)

    thread = threading.Thread(target=render)
    thread.start()
    thread.join(30)
    assert len(found) == 1


def test_time_that_was_not_used_up_is_not_missed_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SECONDS", 0.3)
    with render_limits() as watch:
        for _ in range(4):
            began = time.thread_time()
            while time.thread_time() - began < 0.2:
                pass
            watch.restart()
    time.sleep(0.3)


def test_a_run_says_which_file_and_row(tmp_path: Path) -> None:
    (tmp_path / "template.jinja").write_text(FOR_A_ROW.replace("ATTACK", "{{ 'x' * 10**10 }}") + BODY)
    line = '{"messages": [{"role": "user", "content": "WORD"}, {"role": "assistant", "content": "ok"}]}\n'
    (tmp_path / "rows.jsonl").write_text(line.replace("WORD", "a") + line.replace("WORD", "BOMB"))
    source = "data=json data.sources.json.path=rows.jsonl tokenizer.chat_template=template.jinja"
    done = run(f"{SMALLEST} {source} trainer.train_iters=1 tracking=[]", tmp_path, code=1)
    assert "rows.jsonl:2: " in done.stderr and "takes more than 4,096 MiB of memory for this row" in done.stderr


NESTED = (
    "{% set ns = namespace(a=[1], b=[1]) %}"
    "{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}"
)


@pytest.mark.parametrize("operation", ["ns.a == ns.b", "ns.a"])
def test_an_operation_without_bytecode_ends_with_the_process(operation: str) -> None:
    """Nothing in the process can interrupt it, so the kernel does; data workers and ranks are such processes."""
    code = (
        "from arctic_hydra.data.encode import limits\nfrom tests.data.encode.test_limits import BODY, encoder\n"
        f"limits.ALARM_SECONDS = 1.0\nencoder({NESTED + '{{ ' + operation + ' }}'!r} + BODY)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == -signal.SIGPROF


def test_the_alarm_is_off_once_rendering_has_ended() -> None:
    code = (
        "import signal, time\nfrom arctic_hydra.data.encode import limits\n"
        "limits.ALARM_SECONDS = 0.3\n"
        "with limits.render_limits() as watch:\n"
        "    with limits.render_limits():\n        pass\n"
        "    assert signal.getitimer(signal.ITIMER_PROF)[0] > 0\n"
        "assert signal.getitimer(signal.ITIMER_PROF) == (0, 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)
