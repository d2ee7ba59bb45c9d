"""Which modules belong to the file of `code=`, and how a change is told."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from arctic_hydra.errors import ConfigError
from arctic_hydra.files import code_file


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(code_file, "_FILES", [])
    (tmp_path / "parts").mkdir()
    texts = {
        "my_lab.py": "from . import a\nfrom .parts.inner import x\nimport os\ndef f():\n    from .late import y\n",
        "a.py": "",
        "late.py": "",
        "other.py": "",
        "parts/__init__.py": "",
        "parts/inner.py": "from ..b import z\nx = 1\n",
        "b.py": "",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_what_is_hashed_and_copied(mine: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    code_file.take(["x=1", f"code={mine}/my_lab.py"], load=False)
    found = code_file.content()
    assert found is not None and found["file"] == "my_lab.py"
    names = ["a.py", "b.py", "late.py", "my_lab.py", "parts/__init__.py", "parts/inner.py"]
    assert sorted(found["sha256"]) == names
    target = tmp_path_factory.mktemp("copy")
    code_file.copy_to(target)
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*.py")) == names
    assert code_file.arguments() == [f"code={mine}/my_lab.py"] and code_file.arguments(target) == [
        f"code={target}/my_lab.py"
    ]


def test_the_hash_of_a_module_is_that_of_what_it_imports(mine: Path) -> None:
    def digests() -> list[str]:
        code_file.take([f"code={mine}/my_lab.py"], load=False)
        return [code_file.module_digest(f"{code_file.PACKAGE}.{name}") for name in ("my_lab", "parts.inner", "a")]

    before = digests()
    assert len(set(before)) == 3
    (mine / "b.py").write_text("z = 2\n")
    after = digests()
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, False, True]


def test_a_change_is_told(mine: Path) -> None:
    assert code_file.change_since(None) == "" and code_file.record_entry({}) == {}
    assert code_file.take(["x=1", f"code={mine}/my_lab.py", "y"], load=False) == ["x=1", "y"]
    before = code_file.content()
    assert code_file.change_since(before) == "" and code_file.record_entry({}) == {"code": before}
    (mine / "late.py").write_text("y = 2\n")
    code_file.take([f"code={mine}/my_lab.py"], load=False)
    assert code_file.change_since(before).startswith("code: late.py has changed since this run last started")
    assert "late.py, my_lab.py" in code_file.change_since(None) and "was not used" in code_file.change_since(None)
    code_file._FILES.clear()
    assert "is not used any more" in code_file.change_since(before)
    assert code_file.record_entry({"code": before}) == {"code": None}


def test_the_current_content_is_executed_although_size_and_time_are_those_of_the_last_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_file, "_FILES", [])
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (tmp_path / "parts").mkdir()
    finders = [
        finder for finder in sys.meta_path if finder is not code_file._Finder
    ]  # of a file that another test left
    for number in (1, 2):
        texts = {
            "mine.py": f"from .other import y\nfrom .parts.inner import z\nx = {number}",
            "other.py": f"y = {number}",
        }
        for name, text in {**texts, "parts/__init__.py": "", "parts/inner.py": f"z = {number}"}.items():
            (tmp_path / name).write_text(text)
            os.utime(tmp_path / name, (1_000_000_000, 1_000_000_000))
        code_file.take([f"code={tmp_path}/mine.py"])
        module = sys.modules[f"{code_file.PACKAGE}.mine"]
        assert (module.x, module.y, module.z) == (number, number, number)
        code_file.forget()
    assert sys.meta_path == finders


def test_two_files_are_refused_and_one_that_is_only_passed_on_is_not_checked(mine: Path) -> None:
    with pytest.raises(ConfigError, match="code: got a.py and b.py, expected one file"):
        code_file.take(["code=a.py", "code=b.py"])
    assert code_file.take(["code=/nowhere/x.py"], load=False) == []
    assert code_file.arguments() == ["code=/nowhere/x.py"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (f"x = {'-' * 100_000}1", "MemoryError"),
        (f"x = a{'.a' * 100_000}", "RecursionError"),
        (f"x = {'(' * 500}1{')' * 500}", "SyntaxError: too many nested parentheses"),
        ("x = '\0'", "SyntaxError: source code string cannot contain null bytes"),
        ("x = '\udc80'", "SyntaxError"),
        (f"from {'.' * 50} import x", "ImportError: attempted relative import beyond top-level package"),
    ],
    ids=["operators", "attributes", "parentheses", "null", "bytes", "dots"],
)
def test_a_file_that_cannot_be_read_as_python_is_one_error(
    text: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_file, "_FILES", [])  # of the whole test process otherwise
    path = tmp_path / "mine.py"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(ConfigError, match=rf"^code: .*mine\.py cannot be (read|imported): {error}.*; fix it"):
        code_file.take([f"code={path}"])
