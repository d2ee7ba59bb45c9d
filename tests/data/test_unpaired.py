"""Answers with a label: each in one batch with its mismatched pair, whatever the batches are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.data.formats.reading import RowFormat
from arctic_hydra.data.load.sequence_parallel import shard_loader
from arctic_hydra.data.prepare.truncation import Malformed, Overlong
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.data.unpaired import UnpairedDataFactory
from arctic_hydra.distributed import World
from arctic_hydra.errors import ConfigError, DataError, FieldError
from tests.composing import built
from tests.data.samples import geometry, write_lines

SINGLE = [
    {"prompt": f"Which of {n}?", "completion": "this one " * (1 + n % 4) + str(n), "label": n % 3 == 0}
    for n in range(19)
]
PAIRS = [{"prompt": f"What is {n}?", "chosen": f"number {n}", "rejected": f"no {n}"} for n in range(4)]


def unpaired(*paths: Path, **fields: Any) -> UnpairedDataFactory:
    sources = {f"s{number}": JsonSource(path=str(path)) for number, path in enumerate(paths)}
    return UnpairedDataFactory(**{"sources": sources, "num_proc": 1, "max_length": 64, **fields})


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    return write_lines(tmp_path / "a.jsonl", [*SINGLE, PAIRS[0]]), write_lines(tmp_path / "b.jsonl", PAIRS[1:])


def seen(data: UnpairedDataFactory, tokenizer: Any, *cut: int) -> dict[tuple[str, ...], tuple[bool, int]]:
    """Return label and source of each prompt, answer and mismatched answer of an epoch of all ranks."""
    found: dict[tuple[str, ...], tuple[bool, int]] = {}
    micro, accumulation, ranks = cut
    for rank in range(ranks):
        loader = data.build(tokenizer, geometry(micro, accumulation, rank, ranks))[0]
        for window in loader.windows(0):
            for batch in window.micro_batches:
                assert batch.mismatched is not None and batch.desirable_D is not None
                assert len(batch.desirable_D) == len(batch.example_ids) == len(batch.mismatched.example_ids)
                sources = {}
                for document, source in zip(batch.document_K.tolist(), batch.source_K.tolist(), strict=True):
                    sources[document] = source
                for index, label in enumerate(batch.desirable_D.tolist()):
                    texts = [_parts(one, index, tokenizer) for one in (batch, batch.mismatched)]
                    assert texts[0][0] == texts[1][0], "the prompt is the same"
                    assert (*texts[0], texts[1][1]) not in found, "each row comes once"
                    found[*texts[0], texts[1][1]] = label, sources[index]
    return found


def _parts(batch: Any, index: int, tokenizer: Any) -> tuple[str, str]:
    """Return the prompt and the supervised tokens of a document."""
    length = batch.document_lengths[index]
    start = sum(batch.document_lengths[:index]) if batch.cu_seqlens is not None else index * batch.input_ids_BT.shape[1]
    mine = batch.document_K == index
    first = int(batch.rows_K[mine][0]) + 1
    ids = batch.input_ids_BT.flatten()
    assert first < start + length <= start + 64
    return tokenizer.decode(ids[start:first]), tokenizer.decode(batch.targets_K[mine])


def test_examples_and_their_mismatched_pairs_do_not_depend_on_the_batches(paths: Any, tokenizer: Any) -> None:
    found = seen(unpaired(*paths), tokenizer, 1, 1, 1)
    assert len(found) == 19 + 2 + 6
    assert seen(unpaired(*paths, packing=False), tokenizer, 3, 1, 1) == found
    assert seen(unpaired(*paths), tokenizer, 2, 2, 3) == found
    for (prompt, answer, other), (label, source) in found.items():
        number = answer.removesuffix("<|im_end|>").split()[-1]
        assert f" {number}?" in prompt and f" {number}<" not in other, "the answer of another row"
        assert label == (answer.startswith("number") if "What" in prompt else int(number) % 3 == 0)
        assert source == ("What" in prompt and number != "0")
        assert source == 0 or other.startswith(("number", "no")), "of the same source"


def test_partners_of_held_out_rows_are_held_out(paths: Any, tokenizer: Any) -> None:
    loader, held = unpaired(paths[0], train_eval_split=[0.5, 0.5]).build(tokenizer, geometry())
    answers = []
    for one in (loader, held):
        shown = one.preview(100)
        assert {example.side for example in shown[0::2]} == {"desirable", "undesirable"}
        assert {example.side for example in shown[1::2]} == {"mismatched"}
        texts = [
            [tokenizer.decode([t for t, m in zip(e.ids, e.mask, strict=True) if m]) for e in shown[k::2]]
            for k in (0, 1)
        ]
        assert set(texts[1]) <= set(texts[0])
        answers.append(set(texts[0]))
    assert not answers[0] & answers[1] and sum(map(len, answers)) == 21


def test_a_mismatched_pair_is_truncated_at_the_end_of_its_answer(tmp_path: Path, tokenizer: Any) -> None:
    long = {"prompt": "word " * 9, "completion": "x", "label": True}
    path = write_lines(tmp_path / "rows.jsonl", [long, {"prompt": "q", "completion": "yes " * 20, "label": 0}])
    store = unpaired(path, max_length=60).process("train", tokenizer, World())
    loader = unpaired(path, max_length=60).build(tokenizer, geometry())[0]
    own, cut, other, whole = loader.preview(2)
    assert (
        len(cut.ids) == 60
        and cut.ids[: len(own.ids) - sum(own.mask) - 1] == own.ids[: len(own.ids) - sum(own.mask) - 1]
    )
    assert 0 < sum(cut.mask) < sum(other.mask) and sum(whole.mask) == sum(own.mask)
    figures = loader.summary()
    assert store.lengths.max() <= 60 and figures["examples"] == 2
    assert figures["tokens"] == len(own.ids) + len(other.ids), "mismatched pairs are not trained on"
    assert figures["supervised_tokens"] == sum(own.mask) + sum(other.mask)


def test_mismatched_pairs_are_padded_as_rows_are(paths: Any, tokenizer: Any) -> None:
    loader = shard_loader(unpaired(*paths, packing=False).build(tokenizer, geometry())[0], 64)
    [batch] = next(iter(loader.windows(0))).micro_batches
    assert batch.input_ids_BT.shape == batch.mismatched.input_ids_BT.shape == (1, 64)


def test_unusable_rows_are_dropped_and_counted(tmp_path: Path, tokenizer: Any) -> None:
    odd = [
        {**SINGLE[0], "completion": "word " * 99},
        {**SINGLE[0], "label": None},
        {**PAIRS[0], "rejected": "number 0"},
    ]
    path = write_lines(tmp_path / "odd.jsonl", [*SINGLE[:4], *odd, PAIRS[1]])
    store = unpaired(path, malformed=Malformed.drop).process("train", tokenizer, World())
    assert store.report["s0"]["dropped"] == {"overlong": 1, "malformed": 1, "no_difference": 1}
    assert (store.report["s0"]["kept"], store.rows.tolist()) == (6, [0, 1, 2, 3, 7, 7])
    assert store.flat.labels is not None and store.flat.labels.tolist() == [1, 0, 0, 1, 1, 0]
    with pytest.raises(DataError, match=r"odd\.jsonl:6: no 'label' column; got the columns completion, prompt"):
        unpaired(path).build(tokenizer, geometry())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (SINGLE[:1], r"data\.sources\.s0: got a single row to train on, expected two or more, because the KL term"),
        (PAIRS[:1], r"data\.sources\.s0: got a single row to train on"),
        (SINGLE[1:3], r"data\.sources: got 2 undesirable answers to train on, expected desirable and undesirable ones"),
        ([SINGLE[0], SINGLE[3]], r"data\.sources: got 2 desirable answers .* add rows with the label false"),
    ],
)
def test_data_without_a_partner_or_a_label_is_refused(tmp_path: Path, tokenizer: Any, rows: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        unpaired(write_lines(tmp_path / "rows.jsonl", rows)).build(tokenizer, geometry())


def test_a_single_row_of_evaluation_data_is_refused(paths: Any, tmp_path: Path, tokenizer: Any) -> None:
    one = write_lines(tmp_path / "one.jsonl", SINGLE[:1])
    with pytest.raises(
        DataError, match=r"data\.eval_sources\.held: got a single row to evaluate, expected two or more"
    ):
        unpaired(*paths, eval_sources={"held": JsonSource(path=str(one))}).build(tokenizer, geometry())
    with pytest.raises(DataError, match=r"data\.sources\.s0: got a single row to evaluate, .* a larger share"):
        unpaired(paths[0], train_eval_split=[0.95, 0.05]).build(tokenizer, geometry())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"overlong": Overlong.split}, "overlong: got split, .*: labelled answers cannot be split"),
        ({"streaming": True}, "streaming: got true, expected false: labelled answers cannot be streamed"),
        ({"sources": {"a": JsonSource(path="x", format=RowFormat.text)}}, r"format: got text, .* answers with a label"),
        ({"sources": {"a": JsonSource(path="x", process=False)}}, r"pre-tokenized labelled answers are not supported"),
    ],
)
def test_refused_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError, match=message):
        unpaired(Path("x"), **fields)


def test_trainers_refuse_the_data_of_the_others() -> None:
    for trainer, data in (("dpo", "unpaired"), ("kto", "preference")):
        with pytest.raises(ConfigError, match=f"data: got {data} .*, but trainer={trainer} .* works with data="):
            built(f"trainer={trainer}", f"data={data}", f"data.sources.{data}.path=x.jsonl")


def test_blank_answers_that_are_to_be_learned_are_counted(tmp_path: Path, tokenizer: Any) -> None:
    blank = [{"prompt": "Which?", "completion": " ", "label": label} for label in (True, False)]
    path = write_lines(tmp_path / "blank.jsonl", [*SINGLE, *blank, {"prompt": "Who?", "chosen": "", "rejected": "no"}])
    store = unpaired(path).process("train", tokenizer, World())
    assert store.report["s0"]["blank_answers"] == 2 and len(store) == 19 + 2 + 2
