"""Fingerprints of files: large ones are sampled."""

from __future__ import annotations

from pathlib import Path

from arctic_hydra.data.rows.fingerprint import fingerprint_files


def test_large_files_are_sampled(tmp_path: Path) -> None:
    """Sparse files of 80 MB: changes at both ends and in the middle are detected."""
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
