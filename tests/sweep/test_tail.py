"""Reading a file that grows."""

from __future__ import annotations

from arctic_hydra.sweep.tail import Tail


def test_growing_incomplete_and_truncated_files_are_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.new_rows() == []
    path.write_text('{"step": 1}\n{"st')
    assert tail.new_rows() == [{"step": 1}]
    path.write_text('{"step": 1}\n{"step": 2}\n')
    assert tail.new_rows() == [{"step": 2}]
    path.write_text('{"step": 1}\n')
    assert tail.new_rows() == [{"step": 1}]
    path.write_text('{"step": 0}\n{"step": 1}\n')
    assert tail.new_rows() == [{"step": 0}, {"step": 1}], "truncated, and longer than before since"
    assert tail.new_rows() == []


def test_damaged_lines_do_not_end_the_process_that_watches_the_job(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    path.write_bytes(b'\x80\x04\n[1]\n{"step": 1}\n{"loss": 2}\n')
    assert tail.new_rows() == [{"step": 1}]
    path.unlink()
    path.mkdir()
    assert tail.new_rows() == []
