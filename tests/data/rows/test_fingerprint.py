"""Fingerprints of files: large ones are sampled."""

from __future__ import annotations

from pathlib import Path

from arctic_hydra.data.rows.fingerprint import fingerprint_files


def test_outlines_read_little_of_large_files(tmp_path: Path) -> None:
    """Files of 80 MB, sparse on the disk: the ends and blocks between them count."""
    paths = [tmp_path / f"{name}.jsonl" for name in "ab"]
    for path in paths:
        with path.open("wb") as file:
            file.truncate(80_000_000)

    def outline(at: int) -> str:
        with paths[1].open("r+b") as file:
            file.seek(at)
            file.write(b"x" * 200_000)
        try:
            return str(fingerprint_files(paths))
        finally:
            with paths[1].open("r+b") as file:
                file.seek(at)
                file.write(bytes(200_000))

    before = str(fingerprint_files(paths))
    assert len({before, *(outline(at) for at in (0, 40_000_000, 79_800_000))}) == 4
    assert str(fingerprint_files(paths)) == before
