"""Streams: nothing lost, invented or trained twice, on any number of ranks, and the same after a resume at any step."""

from __future__ import annotations

import io
import itertools
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arctic_hydra.data.batch import StepBatch
from arctic_hydra.data.causal import CausalDataFactory
from arctic_hydra.data.prepare.preparer import RowPreparer
from arctic_hydra.data.source.text import TextSource
from arctic_hydra.errors import ConfigError, DataError
from tests.command import SMALL, losses, only_run, run
from tests.data.encode.test_limits import BODY, FOR_A_ROW
from tests.data.samples import chat, factory, geometry, write_lines
from tests.data.stream.samples import CAPACITY, rows_of, tokens_factory, write_shards


def same(left: StepBatch, right: StepBatch) -> bool:
    """Whether two windows are bit-identical."""
    pairs = zip(left.micro_batches, right.micro_batches, strict=True)
    fields = ((vars(one), vars(other)) for one, other in pairs)
    return left.step_in_epoch == right.step_in_epoch and all(
        torch.equal(one[name], other[name]) if isinstance(one[name], torch.Tensor) else one[name] == other[name]
        for one, other in fields
        for name in one
    )


STREAMS = st.fixed_dictionaries(
    {
        "lengths": st.lists(st.lists(st.integers(2, CAPACITY), max_size=30), min_size=1, max_size=3).filter(any),
        "buffer_rows": st.integers(1, 40),
        "packing": st.booleans(),
        "micro": st.integers(1, 2),
        "accumulation": st.integers(1, 2),
        "ranks": st.integers(1, 3),
        "seed": st.integers(0, 9),
        "stop": st.integers(0, 30),
    }
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=STREAMS)
def test_every_pass_holds_every_row_once_on_any_ranks_and_resumes(
    drawn: dict[str, Any], tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    total = write_shards(folder, [shard for shard in drawn["lengths"] if shard])
    lengths = [length for shard in drawn["lengths"] for length in shard]
    micro, accumulation, ranks = drawn["micro"], drawn["accumulation"], drawn["ranks"]
    steps = 2 * total + 3

    def loader(rank: int, size: int, micro: int, accumulation: int) -> Any:
        made = tokens_factory(folder, packing=drawn["packing"], buffer_rows=drawn["buffer_rows"])
        return made.build(tokenizer, geometry(micro, accumulation, rank, size, drawn["seed"], steps))[0]

    global_batch = micro * accumulation * ranks
    per_rank = [list(loader(rank, ranks, micro, accumulation).windows(0)) for rank in range(ranks)]
    assert {len(windows) for windows in per_rank} == {steps}
    seen: list[tuple[int, tuple[int, int]]] = []
    for windows in zip(*per_rank, strict=True):
        assert len({len(window.micro_batches) for window in windows}) == 1
        batches = [batch for window in windows for batch in window.micro_batches if batch.example_ids]
        assert all(batch.num_tokens <= CAPACITY * micro for batch in batches)
        seen += [pair for batch in batches for pair in zip(batch.example_ids, rows_of(batch), strict=True)]
    assert len({number for number, _ in seen}) == len(seen), "no example is trained on twice"
    passes = max(number for number, _ in seen) // total
    assert passes >= 1
    for one in range(passes):
        of_pass = Counter(row for number, row in seen if number // total == one)
        assert of_pass == Counter(enumerate(lengths)), "a pass holds every row once, whole"

    # The same global batches for any number of ranks.
    alone = list(loader(0, 1, 1, global_batch).windows(0))
    assert [sorted(i for b in w.micro_batches for i in b.example_ids) for w in alone] == [
        sorted(i for window in windows for b in window.micro_batches for i in b.example_ids)
        for windows in zip(*per_rank, strict=True)
    ]

    # Resumed at any step, by way of a file: the same windows, bit for bit.
    stop = min(drawn["stop"], steps - 3)
    first = loader(ranks - 1, ranks, micro, accumulation)
    list(itertools.islice(first.windows(0), stop))
    file = io.BytesIO()
    torch.save(first.state_dict(stop), file)
    file.seek(0)
    second = loader(ranks - 1, ranks, micro, accumulation)
    second.load_state_dict(torch.load(file, weights_only=True))
    rest = list(second.windows(0, stop))
    assert len(rest) == steps - stop
    assert all(same(one, other) for one, other in zip(rest, per_rank[ranks - 1][stop:], strict=True))


def test_statistics_grow_and_threads_end(small_chats: Path, tokenizer: Any) -> None:
    made = factory(small_chats, streaming=True, max_length=128, buffer_rows=10)
    loader, evaluation = made.build(tokenizer, geometry(1, 1, steps=100))
    assert evaluation is None and loader.steps(0) == 100
    start = loader.summary()
    assert (start["examples"], start["packs"], start["passes"]) == (37, 0, {"mine": 0})
    assert loader.preview(2)[1].row == 1 and len(loader.preview(99)) == 37
    whole = factory(small_chats, max_length=128).build(tokenizer, geometry())[0].summary()
    assert start["length_tokens"] == whole["length_tokens"] and start["tokens"] == whole["tokens"]
    windows = loader.windows(0)
    for _ in range(30):
        next(windows)
    grown = loader.summary()
    assert grown["sources"]["mine"]["prepared"]["rows"] > 37 and grown["fill"] > 0.8
    assert threading.active_count() > 1
    windows.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("arctic_hydra-loader")]


@pytest.mark.parametrize(("packing", "most"), [(True, 700), (False, 60)])
def test_a_run_reads_about_as_many_rows_as_it_needs(packing: bool, most: int, tmp_path: Path, tokenizer: Any) -> None:
    """4 steps of 2 packs of 1024 tokens are 410 rows of 20 tokens; of the 4000 rows of a segment, no more are read."""
    write_shards(tmp_path, [[20] * 4000])
    made = tokens_factory(tmp_path, max_length=1024, packing=packing, buffer_rows=4000)
    loader, _ = made.build(tokenizer, geometry(2, 1, steps=4))
    assert len(list(loader.windows(0))) == 4
    assert loader.summary()["sources"]["tokens"]["prepared"]["rows"] <= most


def test_a_stream_of_an_earlier_version_goes_on_with_the_same_segments(tmp_path: Path, tokenizer: Any) -> None:
    """Its checkpoints do not hold the length of the run, so each segment has all rows, as before."""
    write_shards(tmp_path, [[20] * 400])
    made = tokens_factory(tmp_path, max_length=64, buffer_rows=300)
    loader, _ = made.build(tokenizer, geometry(steps=3))
    state = {name: value for name, value in loader.state_dict(0).items() if name not in ("last_step", "units_per_row")}
    loader.load_state_dict(state)
    list(itertools.islice(loader.windows(0, 0), 1))
    assert loader.summary()["sources"]["tokens"]["prepared"]["rows"] == 300


def test_closing_does_not_wait_for_a_segment(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, [[20] * 4000])  # rows of tokens, which are prepared in a thread of this process
    made = tokens_factory(tmp_path, max_length=64, buffer_rows=2000, prefetch_steps=2)
    loader, _ = made.build(tokenizer, geometry(steps=10_000))
    prepared, left, plain = [], threading.Event(), RowPreparer.prepare_chunk

    def slow(preparer: RowPreparer, start: int, stop: int) -> Any:
        prepared.append(start)
        if len(prepared) > 9:  # in the second segment
            assert left.wait(60)
        return plain(preparer, start, stop)

    monkeypatch.setattr(RowPreparer, "prepare_chunk", slow)
    windows = loader.windows(0)
    next(windows)
    while len(prepared) < 10:
        time.sleep(0.01)
    threading.Timer(1.0, left.set).start()  # once `close` waits
    windows.close()  # type: ignore[attr-defined]
    assert len(prepared) < 16, "eight pieces make a segment; the second was not finished"


def test_the_memory_of_templates_is_limited_beside_training(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is one of a process, so that rows behind the preview are rendered in another one."""
    plain = RowPreparer.prepare_chunk

    def only_here(preparer: RowPreparer, start: int, stop: int) -> Any:
        assert threading.current_thread() is threading.main_thread(), "rendered without a limit"
        return plain(preparer, start, stop)

    monkeypatch.setattr(RowPreparer, "prepare_chunk", only_here)
    template = FOR_A_ROW.replace("ATTACK", "{{ 'x' * 10**10 }}") + BODY
    monkeypatch.setattr(tokenizer, "chat_template", template)
    path = write_lines(tmp_path / "a.jsonl", [chat("q", "a")] * 250 + [chat("BOMB", "a")])
    loader, _ = factory(path, streaming=True, num_proc=1).build(tokenizer, geometry(steps=99))
    with pytest.raises(
        DataError, match=r"a\.jsonl:251: the chat template takes more than 4,096 MiB of memory for this row"
    ):
        list(loader.windows(0))


def test_plain_texts_are_streamed_too(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "a.txt").write_text("\n".join(f"Text number {n}." + " And more." * (n % 30) for n in range(100)))
    made = CausalDataFactory(
        sources={"text": TextSource(path=str(tmp_path / "a.txt"))},
        streaming=True,
        max_length=64,
        num_proc=1,
        buffer_rows=30,
    )
    loader, _ = made.build(tokenizer, geometry(steps=100))
    whole = CausalDataFactory(sources=made.sources, max_length=64, num_proc=1).build(tokenizer, geometry())[0].summary()
    assert sum(batch.num_tokens for w in loader.windows(0) for batch in w.micro_batches) > whole["tokens"]
    figures = loader.summary()
    assert figures["passes"]["text"] >= 1 and figures["sources"]["text"]["prepared"]["split"] > 0


def test_worker_processes_give_the_same_windows(small_chats: Path, tokenizer: Any) -> None:
    def windows(**fields: Any) -> list[StepBatch]:
        made = factory(small_chats, streaming=True, max_length=128, buffer_rows=25, **fields)
        return list(made.build(tokenizer, geometry(2, 1, steps=25))[0].windows(0))

    plain, ahead = windows(prefetch_steps=0), windows(num_proc=2)
    assert all(same(one, other) for one, other in zip(plain, ahead, strict=True))


def test_a_bad_row_far_in_is_named_by_file_and_line(tmp_path: Path, tokenizer: Any) -> None:
    path = write_lines(tmp_path / "a.jsonl", [chat("q", "a")] * 300)
    path.write_text(path.read_text() + '{"messages": 3}\n')
    loader, _ = factory(path, streaming=True, prefetch_steps=0).build(tokenizer, geometry(steps=99))
    with pytest.raises(DataError, match=r"data\.sources\.mine: .*a\.jsonl:301: messages is a int"):
        list(loader.windows(0))
    path.write_text(path.read_text().replace('"messages": 3}\n', '"messages": \n'))
    with pytest.raises(
        DataError, match=r"a\.jsonl:301: not JSON \(.*line 1 column 13 .*got '\{\"messages\":'; expected"
    ):
        list(loader.windows(0))


def test_needs_a_number_of_steps() -> None:
    from tests.composing import built

    with pytest.raises(
        ConfigError, match=r"trainer\.train_iters: got 0, but a stream \(data\.streaming=true\) has no known length"
    ):
        built("data.streaming=true")
    with pytest.raises(ConfigError, match=r"trainer\.epochs: got 2, but with data\.streaming=true"):
        built("data.streaming=true", "trainer.train_iters=5", "trainer.epochs=2")


@pytest.mark.slow
def test_a_streamed_run_stops_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    """Two ranks stop in the middle of a pass; one rank with twice the accumulation goes on with the same batches."""
    small = (
        f"{SMALL} data.streaming=true data.buffer_rows=100 trainer.train_iters=14 tracking=[] checkpoint=[deepspeed]"
    )
    done = run(f"name=whole {small} trainer.gradient_accumulation_steps=2", tmp_path)
    assert "trainer.train_iters=42" in done.stdout and "trainer.epochs=" not in done.stdout, "what to type next"
    run(f"name=cut {small} trainer.gradient_accumulation_steps=2 trainer.exit_iteration=6", tmp_path, code=75)
    run(f"name=cut {small} trainer.gradient_accumulation_steps=2", tmp_path)
    whole = losses(only_run(tmp_path, "whole"))
    assert losses(only_run(tmp_path, "cut")) == whole
    run(f"name=ranks {small} ranks=2 trainer.exit_iteration=6", tmp_path, code=75)
    run(f"name=ranks {small} trainer.gradient_accumulation_steps=2", tmp_path)
    assert losses(only_run(tmp_path, "ranks")) == pytest.approx(whole, rel=1e-5)
