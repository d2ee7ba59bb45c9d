"""Preference pairs: both sides are masked equally and never separated, for any batch geometry."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.data.formats.reading import RowFormat
from arctic_hydra.data.preference import PreferenceDataFactory
from arctic_hydra.data.prepare.truncation import Malformed, Overlong
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.distributed import World
from arctic_hydra.errors import ConfigError, DataError, FieldError
from tests.composing import built
from tests.data.load.samples import documents
from tests.data.samples import CHATML_UNTAGGED, chat, geometry, make_tokenizer, shared, write_lines

EXPLICIT = {"prompt": "Which?", "chosen": "this one", "rejected": "that"}
IMPLICIT = {key: chat("Hm", "so", "Which?", answer)["messages"] for key, answer in (("chosen", "a"), ("rejected", "b"))}


def pairs(path: Path, **fields: Any) -> PreferenceDataFactory:
    return PreferenceDataFactory(**{"sources": {"mine": JsonSource(path=str(path))}, "num_proc": 1, **fields})


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    many = [{**EXPLICIT, "prompt": f"Which of {n}?", "rejected": "that " * (1 + n % 9)} for n in range(23)]
    return write_lines(tmp_path / "pairs.jsonl", [*many, IMPLICIT])


def answers(store: Any, tokenizer: Any, index: int) -> list[str]:
    flat = store.flat
    return [tokenizer.decode(flat.ids(d)[flat.mask(d).astype(bool)]) for d in store.documents(index)]


def test_supervised_tokens_are_the_last_answers(rows: Path, tokenizer: Any) -> None:
    store = pairs(rows).process("train", tokenizer, World())
    assert len(store) == 24 == store.report["mine"]["kept"]
    assert answers(store, tokenizer, 2) == ["this one<|im_end|>", "that that that <|im_end|>"]
    assert answers(store, tokenizer, 23) == ["a<|im_end|>", "b<|im_end|>"], "an answer in the prompt is context"
    again = pairs(rows).process("train", tokenizer, World())
    assert again.key == store.key and [answers(again, tokenizer, i) for i in range(24)] == [
        answers(store, tokenizer, i) for i in range(24)
    ]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("ranks", [1, 3])
def test_pairs_stay_together_and_come_once(rows: Path, tokenizer: Any, packing: bool, ranks: int) -> None:
    seen: Counter[int] = Counter()
    for rank in range(ranks):
        loader, _ = pairs(rows, packing=packing, max_length=64).build(tokenizer, geometry(2, 2, rank, ranks))
        for window in loader.windows(0):
            for batch in window.micro_batches:
                seen.update(batch.example_ids)
                assert batch.example_ids[1::2] == [document + 1 for document in batch.example_ids[0::2]]
                assert all(document % 2 == 0 for document in batch.example_ids[0::2])
                assert not packing or sum(batch.document_lengths) <= 2 * 128
                assert batch.document_K is not None
                trained = [len(places) for _, places in documents(batch)] if batch.example_ids else [0]
                counted = Counter(batch.document_K.tolist())
                assert [counted[document] for document in range(len(trained))] == trained
    assert seen == Counter(range(48))


def test_unusable_pairs_are_dropped_and_counted(tmp_path: Path, tokenizer: Any) -> None:
    long, alike = {**EXPLICIT, "rejected": "word " * 99}, {**EXPLICIT, "rejected": "this one"}
    path = write_lines(tmp_path / "odd.jsonl", [EXPLICIT, long, alike, {**EXPLICIT, "chosen": None}])
    dropped = pairs(path, max_length=40, malformed=Malformed.drop).process("train", tokenizer, World())
    assert dropped.report["mine"]["dropped"] == {"overlong": 1, "no_difference": 1, "malformed": 1}
    assert dropped.rows.tolist() == [0] and dropped.report["mine"]["kept"] == 1
    cut = pairs(path, max_length=40, malformed=Malformed.drop, overlong=Overlong.keep_start)
    store = cut.process("train", tokenizer, World())
    assert store.rows.tolist() == [0, 1] and store.flat.lengths.max() == 40
    with pytest.raises(DataError, match=r"odd\.jsonl:2: \d+ tokens, more than data\.max_length=40; .* or keep_end$"):
        pairs(path, max_length=40, overlong=Overlong.error).build(tokenizer, geometry())
    with pytest.raises(DataError, match=r"odd\.jsonl:4: chosen: expected a text, a message or a list"):
        pairs(path).build(tokenizer, geometry())


@pytest.mark.parametrize("adds_bos", [False, True])
def test_keep_end_cuts_the_prompt_once_for_both_sides(tmp_path: Path, adds_bos: bool) -> None:
    tokenizer = make_tokenizer(CHATML_UNTAGGED, adds_bos=adds_bos)
    long = {"prompt": " ".join(f"w{n}" for n in range(60)), "chosen": "short", "rejected": "a longer one " * 9}
    path = write_lines(tmp_path / "long.jsonl", [long, EXPLICIT, {**long, "rejected": "x " * 99}])
    store = pairs(path, max_length=100, overlong=Overlong.keep_end).process("train", tokenizer, World())
    report = store.report["mine"]
    assert (report["rows"], report["kept"], report["truncated"]) == (3, 2, 1), "rows are counted, not their sides"
    assert report["dropped"] == {"overlong": 1}, "an answer that leaves no room for the prompt"
    assert sum(report["length_bins"].values()) == 3
    chosen, rejected = (store.flat.ids(document) for document in (0, 1))
    assert len(rejected) == 100 and (chosen[0] == tokenizer.bos_token_id) == adds_bos
    asked = [int(store.flat.mask(document).argmax()) for document in (0, 1)]
    assert asked[0] == asked[1] and chosen[: asked[0]].tolist() == rejected[: asked[1]].tolist()
    assert tokenizer.decode(chosen).endswith("w59<|im_end|>\n<|im_start|>assistant\nshort<|im_end|>\n")
    assert [text.strip() for text in answers(store, tokenizer, 0)] == [
        "short<|im_end|>",
        "a longer one " * 9 + "<|im_end|>",
    ]


def test_keep_start_keeps_the_prompt_of_both_sides(tmp_path: Path, tokenizer: Any) -> None:
    long = {**EXPLICIT, "chosen": "yes " * 50, "rejected": "no " * 99}
    path = write_lines(tmp_path / "long.jsonl", [long])
    store = pairs(path, max_length=40, overlong=Overlong.keep_start).process("train", tokenizer, World())
    assert store.flat.lengths.tolist() == [40, 40] and store.report["mine"]["truncated"] == 1
    texts = [tokenizer.decode(store.flat.ids(document)) for document in (0, 1)]
    assert all("Which?<|im_end|>" in text and not text.endswith("<|im_end|>") for text in texts)


def test_a_pair_whose_prompt_fills_max_length_has_no_empty_answer(tmp_path: Path, tokenizer: Any) -> None:
    """The mean over the tokens of an answer without any would be NaN: the pair is dropped, or keeps its answers."""
    full = {"prompt": "word " * 200, "chosen": "yes", "rejected": "no"}
    path = write_lines(tmp_path / "full.jsonl", [full, EXPLICIT])
    whole = pairs(path, max_length=4096).process("train", tokenizer, World())
    limit = int(whole.flat.mask(0).argmax())
    for policy, reason in ((Overlong.drop, "overlong"), (Overlong.keep_start, "no_supervised_token")):
        store = pairs(path, max_length=limit, overlong=policy).process("train", tokenizer, World())
        assert store.report["mine"]["dropped"] == {reason: 1} and store.rows.tolist() == [1]
    kept = pairs(path, max_length=limit, overlong=Overlong.keep_end).process("train", tokenizer, World())
    assert answers(kept, tokenizer, 0) == ["yes<|im_end|>", "no<|im_end|>"] and len(kept) == 2
    alone = pairs(write_lines(tmp_path / "alone.jsonl", [full]), max_length=limit)
    with pytest.raises(
        DataError, match=r"no examples left(?s:.*)raise data\.max_length or .*overlong=keep_start or keep_end$"
    ):
        alone.build(tokenizer, geometry())


def test_pairs_that_are_all_equal_are_an_error_that_says_so(tmp_path: Path, tokenizer: Any) -> None:
    path = write_lines(tmp_path / "equal.jsonl", [{**EXPLICIT, "chosen": "that"}] * 2)
    text = r"no_difference\n.* \| 2 \| 0 \| 2\ncheck that chosen and rejected are not the same answer"
    with pytest.raises(DataError, match=text):
        pairs(path).build(tokenizer, geometry())


def test_tools_and_their_calls_are_in_both_sides(tmp_path: Path, tokenizer: Any) -> None:
    """In the answers, where they are supervised, and in the prompt."""
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"city": {"type": "string"}}}}]
    calls = [
        {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}]}
        for city in ("Rome", "Oslo")
    ]  # fmt: skip
    asked = {"role": "user", "content": "How is Rome?"}
    seen = {"role": "tool", "content": "sunny"}
    called = {"prompt": [asked], "chosen": calls[:1], "rejected": calls[1:], "tools": tools}
    answered = {"prompt": [asked, calls[0], seen], "chosen": "Sunny.", "rejected": "Rainy.", "tools": json.dumps(tools)}
    path = write_lines(tmp_path / "tools.jsonl", [called, answered])
    loader, _ = pairs(path).build(tokenizer, geometry(micro=2))
    [[batch]] = [window.micro_batches for window in loader.windows(0)]
    assert batch.document_K is not None
    trained = [tokenizer.decode(batch.targets_K[batch.document_K == document]) for document in range(4)]
    for city in ("Rome", "Oslo"):
        [call] = [text for text in trained if city in text]
        assert (
            call.startswith("<tool_call>") and '"name": "weather"' in call and call.endswith("</tool_call><|im_end|>")
        )
    assert {"Sunny.<|im_end|>", "Rainy.<|im_end|>"} < set(trained)
    text = tokenizer.decode(batch.input_ids_BT.flatten())
    assert text.count("<|im_start|>tools") == 4 and text.count("<|im_start|>tool\nsunny") == 2


def test_rows_of_another_form_are_refused(small_chats: Path, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"small\.jsonl:1: no 'chosen' column; got the columns messages"):
        pairs(small_chats).build(tokenizer, geometry())


def test_a_preview_shows_both_sides(rows: Path, tokenizer: Any) -> None:
    loader, _ = pairs(rows).build(tokenizer, geometry())
    shown = [(example.row, example.side) for example in loader.preview(2)]
    assert shown == [(0, "chosen"), (0, "rejected"), (23, "chosen"), (23, "rejected")]
    figures, sides = loader.summary(), [len(example.ids) for example in loader.preview(24)]
    assert figures["examples"] == 24 and figures["tokens"] == sum(sides)
    assert figures["length_tokens"]["p100"] == max(sides) <= figures["max_length"], "the limit is that of each side"
    assert figures["pack_tokens"] == 2 * figures["max_length"]


def test_real_pairs(tokenizer: Any) -> None:
    store = pairs(shared("dpo/dpo_en_demo.json"), cache=False, max_length=4096).process("train", tokenizer, World())
    report = store.report["mine"]
    assert report["kept"] + sum(report["dropped"].values()) == report["rows"] == 300
    assert all(text.endswith("<|im_end|>") for index in range(50) for text in answers(store, tokenizer, index))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"overlong": Overlong.split}, "overlong: got split, expected drop, keep_start, keep_end or error"),
        ({"max_prompt_length": 9}, "max_prompt_length: got 9, which has no effect with overlong=drop; pass overlong=keep_start"),
        ({"max_prompt_length": 64, "max_length": 64, "overlong": "keep_end"}, "max_prompt_length: got 64, which leaves no room"),
        ({"always_max_length": True}, "always_max_length: got a value, but pairs can neither be cut nor joined"),
        ({"sources": {"a": JsonSource(path="x", format=RowFormat.text)}}, r"sources\.a\.format: got text, expected preference"),
        ({"sources": {"a": JsonSource(path="x", process=False)}}, r"sources\.a\.process: got false, expected true"),
        ({"sources": {"a": JsonSource(path="x", role_mapping={"assistant": "bot"})}}, r"sources\.a\.role_mapping: got .*, expected none"),
    ],
)  # fmt: skip
def test_refused_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError, match=message):
        pairs(Path("x"), **fields)


def test_the_sft_trainer_refuses_preference_data() -> None:
    message = (
        r"data: got preference \(PreferenceDataFactory\), but trainer=sft \(SFTTrainer\) works with data=sft; task=pre"
    )
    for task in ("train", "check", "export"):
        with pytest.raises(ConfigError, match=message):
            built("data=preference", "data.sources.preference.path=x.jsonl", f"task={task}")


def test_max_prompt_length_limits_the_prompt_before_the_answers(tmp_path: Path, tokenizer: Any) -> None:
    words = " ".join(f"word{number}" for number in range(60))
    long = {"prompt": words, "chosen": "yes " * 30, "rejected": "no"}
    path = write_lines(tmp_path / "long.jsonl", [long, EXPLICIT])
    whole = pairs(path, max_length=4096).process("train", tokenizer, World())
    limit, most = 40, 25
    for policy in (Overlong.keep_start, Overlong.keep_end):
        cut = pairs(path, max_length=limit, overlong=policy, max_prompt_length=most).process(
            "train", tokenizer, World()
        )
        assert cut.rows.tolist() == [0, 1]
        for document in (0, 1):  # the two sides of the long pair
            before, after = whole.flat.ids(document), cut.flat.ids(document)
            prompt = int(whole.flat.mask(document).argmax())
            kept = before[:most] if policy is Overlong.keep_start else before[prompt - most : prompt]
            assert after.tolist() == [*kept.tolist(), *before[prompt:].tolist()][:limit]
            trained = whole.flat.mask(document)[prompt:].tolist()
            assert cut.flat.mask(document).tolist() == [*[0] * most, *trained][:limit]
        assert cut.flat.ids(2).tolist() == whole.flat.ids(2).tolist(), "a pair that fits is not changed"
        assert cut.report["mine"]["truncated"] == 1
        assert cut.report["mine"]["tokens_lost"] == int(whole.flat.lengths.sum() - cut.flat.lengths.sum())


def test_a_bos_before_a_truncated_prompt_is_kept(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("{{ bos_token }}" + CHATML_UNTAGGED)
    path = write_lines(tmp_path / "long.jsonl", [{**EXPLICIT, "prompt": "which " * 60}])
    made = pairs(path, max_length=40, overlong=Overlong.keep_end, max_prompt_length=20)
    store = made.process("train", tokenizer, World())
    ids, mask = store.flat.ids(0).tolist(), store.flat.mask(0).tolist()
    assert ids[0] == tokenizer.bos_token_id and mask.index(1) == 20


@pytest.mark.parametrize("packing", [True, False])
def test_the_margin_of_each_pair_is_in_its_batch(tmp_path: Path, tokenizer: Any, packing: bool) -> None:
    margins = [None if n % 4 == 0 else n / 8 for n in range(13)]
    many = [{**EXPLICIT, "prompt": f"Which of {n}?", "margin": margin} for n, margin in enumerate(margins)]
    path = write_lines(tmp_path / "pairs.jsonl", [*many[:5], {**EXPLICIT, "rejected": "this one"}, *many[5:]])
    seen: dict[int, float] = {}
    for rank in range(2):
        data = pairs(path, packing=packing, max_length=64)
        data.read_margins()
        for window in data.build(tokenizer, geometry(2, 2, rank, 2))[0].windows(0):
            for batch in window.micro_batches:
                assert batch.margin_P is not None and len(batch.margin_P) == len(batch.example_ids) // 2
                seen |= dict(
                    zip((place // 2 for place in batch.example_ids[::2]), batch.margin_P.tolist(), strict=True)
                )
    assert [seen[n] for n in range(13)] == pytest.approx([math.nan if m is None else m for m in margins], nan_ok=True)
    plain = pairs(path, packing=packing, max_length=64).build(tokenizer, geometry())[0]
    assert next(plain.windows(0)).micro_batches[0].margin_P is None
