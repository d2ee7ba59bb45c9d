"""Token stores: damage is detected when one is opened, and reading keeps nothing in memory."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arctic_hydra.data.cache import token_store
from arctic_hydra.data.cache import token_store as store_module
from arctic_hydra.data.cache.token_store import EXAMPLES, MANIFEST, DamagedEntryError, TokenStore, write_store
from arctic_hydra.data.documents import Chunk
from tests.data.cache.samples import chunks
from tests.mutations import as_json, changed, file_like, fuzz


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from([EXAMPLES, MANIFEST]), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(tmp_path: Path, name: str, place: float, bit: int) -> None:
    """Of 60 damaged files of the right size, 43 had been trained on as other tokens."""
    write_store(folder := Path(tempfile.mkdtemp(dir=tmp_path)), chunks(), lambda: {"rows": 2})
    TokenStore(folder, "k")
    content = bytearray((folder / name).read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    (folder / name).write_bytes(content)
    if name == EXAMPLES or meaning(bytes(content)) != {"rows": 2}:
        with pytest.raises(DamagedEntryError):
            TokenStore(folder, "k")


def meaning(manifest: bytes) -> Any:
    """Return the report in a manifest: white space in it means nothing."""
    try:
        return json.loads(manifest)["report"]
    except (ValueError, LookupError):
        return None


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("length", [2, 4], "lengths"),
        ("length", [0, 3], "lengths"),
        ("supervised", [2, 9], "counts of supervised tokens"),
        ("row", [-1, 1], "row numbers"),
        ("row", [1, 0], "row numbers"),
        ("ids", [[0, 1, 2], [3, 4]], "offsets"),
        ("row", [0, None], "1 numbers are missing"),
    ],
)
def test_inconsistent_numbers_are_refused_even_with_a_valid_checksum(
    tmp_path: Path, column: str, values: list[Any], message: str
) -> None:
    write_store(tmp_path, chunks(), dict)
    table = pa.ipc.open_file(tmp_path / EXAMPLES).read_all()
    index = table.schema.get_field_index(column)
    table = table.set_column(index, column, pa.array(values, table.schema.field(column).type))
    with pa.ipc.new_file(tmp_path / EXAMPLES, table.schema) as writer:
        writer.write_table(table)
    (tmp_path / MANIFEST).unlink()
    store_module._write_manifest(tmp_path, 2, {})
    with pytest.raises(DamagedEntryError, match=message):
        TokenStore(tmp_path, "k")


EXAMPLES_PER_CHUNK, LENGTH, CHUNKS = 20_000, 32, 20


def many_chunks() -> list[Chunk]:
    lengths = np.full(EXAMPLES_PER_CHUNK, LENGTH, np.int32)
    ids = np.arange(EXAMPLES_PER_CHUNK * LENGTH, dtype=np.int32)
    rows = np.arange(EXAMPLES_PER_CHUNK)
    return [Chunk(ids + n, np.ones(len(ids), np.uint8), lengths, rows + n * EXAMPLES_PER_CHUNK) for n in range(CHUNKS)]


def resident_mib(path: Path) -> float:
    """Return how much of a mapped file this process holds."""
    inside, total = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total / 1024


def test_reading_at_random_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(tmp_path, many_chunks(), dict)
    opened = TokenStore(tmp_path, "key")
    order = np.random.default_rng(0).permutation(len(opened))[: 8 * token_store.RELEASE_EXAMPLES]
    view = opened.ids(0)
    monkeypatch.setattr(token_store, "RELEASE_EXAMPLES", 10**9)
    for index in order:
        opened.ids(int(index)).sum()
    held = resident_mib(tmp_path / EXAMPLES)
    assert held > 20, "mapped pages accumulate unless they are released"
    monkeypatch.undo()
    for index in order:
        opened.ids(int(index)).sum()
    assert resident_mib(tmp_path / EXAMPLES) < held / 2
    assert view.tolist() == list(range(LENGTH)), "arrays returned earlier remain readable"


def one_random_manifest(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its checksum is right in half of the cases, so that the content is looked at."""
    write_store(folder := tmp_path_factory.mktemp("random"), chunks(), lambda: {"rows": 2})
    before = json.loads((folder / MANIFEST).read_text())
    content = data.draw(file_like(before))
    if data.draw(st.booleans()):
        body = data.draw(changed({key: value for key, value in before.items() if key != "checksum"}))
        content = as_json({**body, "checksum": store_module._checksum_of_values(body)})
    (folder / MANIFEST).write_bytes(content)
    try:
        store = TokenStore(folder, "k")
    except DamagedEntryError:
        return
    assert len(store) == 2 and store.ids(1).tolist() == [2, 3, 4] and isinstance(store.report, dict)


test_a_random_manifest, test_many_random_manifests = fuzz(one_random_manifest)
