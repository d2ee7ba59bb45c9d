"""Data sets in the layout of the Hugging Face hub, by directory, file or id."""

from __future__ import annotations

import pickle
import random
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arctic_hydra.data.rows.read import as_rows
from arctic_hydra.data.rows.shard import START
from arctic_hydra.data.sft import SFTDataFactory
from arctic_hydra.data.source.hf import HFSource
from arctic_hydra.errors import DataError, FieldError
from tests.data.samples import chat, write_lines
from tests.data.source.files import HUB_SPLITS, every_row, questions


def test_split_files_are_found_by_name(hub_directory: Path) -> None:
    source = HFSource(path=str(hub_directory), split_mapping=HUB_SPLITS)
    assert questions(source.rows("train")) == [f"train {n}" for n in range(4)]
    assert questions(source.rows("eval")) == ["test"]
    named = HFSource(path=str(hub_directory), split="train_sft_gen", split_mapping=HUB_SPLITS)
    assert questions(named.rows("train")) == ["other split"]
    assert source.rows("train").where(2).endswith("train_sft.jsonl:3")


def test_parquet_shards_below_data_are_joined_in_order(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for shard in (1, 0):
        rows = [chat(f"shard {shard} row {n}", "a") for n in range(5)]
        name = f"train_sft-{shard:05}-of-00002-a1b2.parquet"
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / name, row_group_size=2)
    rows_read = HFSource(path=str(tmp_path), split_mapping=HUB_SPLITS).rows("train")
    assert questions(rows_read) == [f"shard {shard} row {n}" for shard in (0, 1) for n in range(5)]
    assert rows_read.where(6).endswith("train_sft-00001-of-00002-a1b2.parquet, row 1")


def test_a_file_and_a_split_folder_work_too(tmp_path: Path) -> None:
    write_lines(tmp_path / "any.jsonl", [chat("one", "a")])
    assert questions(HFSource(path=str(tmp_path / "any.jsonl")).rows("train")) == ["one"]
    (tmp_path / "train").mkdir()
    write_lines(tmp_path / "train" / "b.json", [chat("two", "a")])
    assert questions(HFSource(path=str(tmp_path)).rows("train")) == ["two"]


def test_a_missing_split_lists_the_existing_ones(hub_directory: Path) -> None:
    with pytest.raises(
        DataError, match=r"no file of split 'train'; .*found splits: test_sft, train_sft, train_sft_gen; set the"
    ):
        HFSource(path=str(hub_directory)).rows("train")


def test_a_missing_split_is_reported_with_the_key_of_the_source(hub_directory: Path) -> None:
    sources = {"mine": HFSource(path=str(hub_directory))}
    for data, split, key in (
        (SFTDataFactory(sources=sources), "train", r"data\.sources\.mine: /"),
        (SFTDataFactory(sources=sources, streaming=True), "train", r"data\.sources\.mine: /"),
        (SFTDataFactory(sources=sources, eval_sources=sources), "eval", r"data\.eval_sources\.mine: /"),
    ):
        with pytest.raises(DataError, match=rf"^{key}.*: no file of split '{split}'"):
            data.identity_of(split, "mine")
        with pytest.raises(DataError, match=rf"^{key}.*: no file of split '{split}'"):
            data.identities(split)


def test_a_missing_path_never_tries_the_network() -> None:
    source = HFSource(path="/no/such/place")
    (problem,) = source.check_environment()
    assert problem.startswith("path: '/no/such/place': no such file or directory")
    for call in (source.rows, source.identity):
        with pytest.raises(DataError, match=r"'/no/such/place': no such file or directory .*check the path"):
            call("train")


def test_an_unreachable_hub_id_fails_quickly_and_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    with pytest.raises(
        DataError, match=r"'nobody/nothing', split 'train': cannot be loaded .*offline, set the source's path="
    ):
        HFSource(path="nobody/nothing").rows("train")
    assert time.monotonic() - start < 20


def test_saved_datasets_load_and_have_an_identity(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list([chat("saved", "a")]).save_to_disk(str(tmp_path / "saved"))
    source = HFSource(path=str(tmp_path / "saved"))
    assert questions(source.rows("train")) == ["saved"]
    assert source.identity("train") == source.identity("train")


@pytest.mark.parametrize("kind", ["torch", "pandas", None])
def test_a_saved_set_is_read_whole_whatever_its_format(kind: str | None, tmp_path: Path) -> None:
    row = {"input_ids": [1, 2], "labels": [-100, 2]}
    saved = datasets.Dataset.from_list([row]).with_format(kind, columns=["input_ids"])
    saved.save_to_disk(str(tmp_path / "saved"))
    source = HFSource(path=str(tmp_path / "saved"), process=False)
    assert source.rows("train").take([0]) == source.shards("train")[0].read(START, 1)[0].take([0]) == [row]
    assert as_rows(saved).take([0]) == [{"input_ids": [1, 2]}], "as chosen by the code of a user's source"
    shown = saved.with_format(kind, columns=["input_ids"], output_all_columns=True)
    assert as_rows(shown).take([0]) == [row]


def test_settings_without_effect_on_a_file_or_a_saved_set_are_problems(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([chat("q", "a")])
    rows.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"test": rows}).save_to_disk(str(tmp_path / "splits"))
    (tmp_path / "layout").mkdir()
    write_lines(tmp_path / "layout" / "test.jsonl", [chat("q", "a")])
    fields: dict[str, Any] = {"split": "test[:10%]", "revision": "main", "kwargs": {"sep": ";"}}
    for name, kind in (("layout/test.jsonl", "a file"), ("saved", "a data set saved by `datasets`")):
        problems = list(HFSource(path=str(tmp_path / name), **fields).check_environment())
        assert [problem.partition(":")[0] for problem in problems] == ["revision", "kwargs", "split"], problems
        assert f"kwargs: sep has no effect on {kind}, which load_dataset does not read" in problems[1]
        usual = HFSource(path=str(tmp_path / name), split="train[:10%]", kwargs={"verification_mode": "no_checks"})
        assert not list(usual.check_environment())
    for name in ("splits", "layout"):
        assert not list(HFSource(path=str(tmp_path / name), split="test").check_environment())


def test_outlines_notice_a_saved_set_that_changed(tmp_path: Path) -> None:
    import datasets

    source = HFSource(path=str(tmp_path / "saved"))
    outlines = []
    for word in ("one", "two"):
        datasets.Dataset.from_list([{"text": word}]).save_to_disk(str(tmp_path / "saved"))
        outlines.append(str(source.outline("train")))
    assert outlines[0] != outlines[1]


def test_damaged_rows_of_a_saved_set_are_refused_before_they_are_read(tmp_path: Path) -> None:
    """Unchecked, `datasets` reads flipped offsets from other memory: every other file was a traceback, and some ended the process."""
    datasets.Dataset.from_list([chat(str(number), "answer") for number in range(20)]).save_to_disk(
        str(tmp_path / "set")
    )
    file = next((tmp_path / "set").glob("*.arrow"))
    content, refused = file.read_bytes(), 0
    chance = random.Random(0)
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        file.unlink()
        file.write_bytes(damaged)
        try:
            every_row(HFSource(path=str(tmp_path / "set")))
        except DataError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "state.json",
            '{"_data_files": [{"filename": "../../a.arrow"}]}',
            'got "../../a.arrow", expected a name inside',
        ),
        ("dataset_dict.json", '{"splits": ["../other"]}', 'got "../other", expected a name inside the directory'),
        ("state.json", '{"_data_files": [], "_format_type": "jax"}', 'got "jax", expected one of arrow, numpy'),
        ("dataset_dict.json", "[1]", "dataset_dict.json: .*; save the data set again"),
        ("state.json", "{", "state.json: .*; save the data set again"),
    ],
)
def test_a_saved_set_names_files_inside_only(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        HFSource(path=str(tmp_path)).read("train")


def test_a_hub_id_and_a_split_in_one() -> None:
    short = HFSource(path="HuggingFaceH4/ultrachat_200k:train_sft[:5%]")
    assert short == HFSource(path="HuggingFaceH4/ultrachat_200k", split="train_sft[:5%]")
    assert HFSource(path="name:test", split="test").split == "test"
    for path in ("s3://bucket/name", "/data/a:b", "./a:b", "org/name"):
        assert (HFSource(path=path).path, HFSource(path=path).split) == (path, "")
    with pytest.raises(
        FieldError, match="split: got 'train', but path='org/name:test' names the split 'test'; remove one"
    ):
        HFSource(path="org/name:test", split="train")


class RunsCode:
    """Leaves a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return (open, (str(self.witness), "w"))


FOREIGN = {
    "a builder by name": ("pandas", {"data_files": "PLACE/rows.pkl"}, "its builder 'pandas', expected one of arrow,"),
    "a streamed builder": ("pandas", {"data_files": "PLACE/rows.pkl"}, "its builder 'pandas', expected one of arrow,"),
    "another builder by name": ("iceberg", {"data_files": "PLACE/x.json"}, "cannot be loaded|its builder 'iceberg'"),
    "files of a builder": ("PLACE/tar", {"keep_in_memory": True}, "its builder 'webdataset', expected one of arrow,"),
    "pickles": ("PLACE/pickles", {"name": "default"}, "cannot be loaded"),
    "pickles by name": ("PLACE/pickles", {"data_files": "rows.pkl"}, "cannot be loaded"),
    "pickles as rows": ("json", {"data_files": "PLACE/rows.pkl"}, "cannot be loaded"),
    "a script": ("PLACE/script", {"name": "default"}, "cannot be loaded"),
    "a script by name": ("PLACE/script/script.py", {"name": "default"}, "script.py:1: |cannot be loaded"),
    "a card": ("PLACE/card", {"name": "default"}, "cannot be loaded"),
}
"""Data sets that name a builder, or hold files that `datasets` reads with one; and what is said of them."""


@pytest.mark.parametrize("what", FOREIGN)
def test_no_data_set_runs_code(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVIL_FILE", str(tmp_path / "called"))
    monkeypatch.syspath_prepend(str(tmp_path))
    script = "import os\nopen(os.environ['EVIL_FILE'], 'w').close()\n"
    for name in ("tar", "pickles", "script", "card"):
        (tmp_path / name).mkdir()
    (tmp_path / "script" / "script.py").write_text(script)
    (tmp_path / "evil.py").write_text(script)
    for path in (tmp_path / "rows.pkl", tmp_path / "pickles" / "rows.pkl"):
        path.write_bytes(pickle.dumps(RunsCode(tmp_path / "called")))
    with tarfile.open(tmp_path / "tar" / "train.tar", "w") as archive:
        for name in ("0.pyd", "0.pickle", "0.pkl"):
            archive.add(tmp_path / "rows.pkl", name)
    card = "---\nconfigs:\n- config_name: default\n  builder_name: evil\n  data_files: '../rows.pkl'\n---\n"
    (tmp_path / "card" / "README.md").write_text(card)
    path, kwargs, text = FOREIGN[what]
    kwargs = {
        key: value.replace("PLACE", str(tmp_path)) if isinstance(value, str) else value for key, value in kwargs.items()
    }
    source = HFSource(
        path=path.replace("PLACE", str(tmp_path)), kwargs={**kwargs, "cache_dir": str(tmp_path / "cache")}
    )
    with pytest.raises(DataError, match=text):
        _ = source.shards("train") if "streamed" in what else source.rows("train")
    assert not (tmp_path / "called").exists() and "evil" not in sys.modules


@pytest.mark.parametrize("files", ["../rows.jsonl", "ABSOLUTE", "local://ABSOLUTE"])
def test_a_card_names_only_files_of_its_data_set(files: str, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for place in (folder, tmp_path):
        write_lines(place / "rows.jsonl", [chat("q", "a")])
    kwargs = {"name": "default", "cache_dir": str(tmp_path / "cache")}

    def source(named: str, **more: Any) -> HFSource:
        card = f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: '{named}'\n---\n"
        (folder / "README.md").write_text(card)
        return HFSource(path=str(folder), kwargs=kwargs | more)

    for more in ({}, {"data_dir": ""}):
        with pytest.raises(
            DataError, match=r"its card \(README.md\) names the file .*rows.jsonl, which is outside the data set"
        ):
            source(files.replace("ABSOLUTE", str(tmp_path / "rows.jsonl")), **more).rows("train")
    assert questions(source("rows.jsonl").rows("train")) == ["q"]


def test_a_card_on_the_hub_names_no_files_of_this_machine() -> None:
    source, there = HFSource(path="owner/set"), "hf://datasets/owner/set@main/a.jsonl"
    source._check_files({"train": [there, "https://example.org/a.jsonl"]})
    for name in ("/etc/hostname", "local:///etc/hostname", "zip://a.jsonl::/home/me/x.zip", "hf://a::/etc/hostname"):
        with pytest.raises(DataError, match=f"names the file {name}, which is outside the data set"):
            source._check_files({"train": [there, name]})


def test_the_documented_builders_are_read_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    kwargs = {
        "data_files": str(tmp_path / "a.jsonl"),
        "cache_dir": str(tmp_path / "cache"),
        "verification_mode": "no_checks",
    }
    assert HFSource(path="json", kwargs=kwargs).rows("train").take([0]) == [{"text": "a"}]
    assert HFSource(path="text", kwargs=kwargs).rows("train").take([0]) == [{"text": '{"text": "a"}'}]
