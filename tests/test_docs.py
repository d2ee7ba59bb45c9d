"""The pages below docs/: their files form a package beside which every command of the page runs.

The first line of a code block names its file in a comment. A command that is meant to fail ends in a comment with its exit
code and a part of its message: `# exit code 2: there is no such key`. Blocks of `console` hold commands that are only composed.
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from arctic_hydra import config as config  # registers all options
from arctic_hydra.component import registered
from tests.command import ROOT, run
from tests.composing import built

sys.path.append(str(ROOT / "docs"))

import reference  # writes the pages of the groups; needs the path above

PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "reference_pages")
_BLOCK = re.compile(r"^```(python|yaml|toml|tsv|jsonl|bash)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"# (\S+\.(?:py|yaml|toml|tsv|jsonl))\n")
_COMMAND = re.compile(r"python -m (arctic_hydra[\w.]*) ([^\n]*?)(?:  #(.*))?")
_FEWER = " data.eval_sources.chat.sample_count=20"
"""Appended to commands that evaluate on all bundled chats, which would take most of their time; what the pages show does not
depend on it."""
_OTHER_DATA = re.compile(r"--|\bdata=|\bdata/|eval_sources|\btrainer=|\btask=(?!evaluate\b|export\b)")
"""Matches commands that train on other data, or do not train."""


def files(page: str) -> dict[str, str]:
    """Return the content of each file that the page shows, by path."""
    found: dict[str, str] = {}
    for language, text in _BLOCK.findall(page):
        name = _FILE.match(text)
        if language != "bash":
            assert name, f"the first line of a block names its file: {text[:80]!r}"
            found[name[1]] = text if language == "python" else text[name.end() :]
    return found


def install(content: dict[str, str], folder: Path) -> None:
    """Write the files, and what makes `my_lab` an installed package if the page leaves it out."""
    for name, text in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    package = folder / "my_lab"
    if package.is_dir():
        modules = "".join(f"from my_lab import {path.stem}\n" for path in sorted(package.glob("*.py")))
        for path, text in ((package / "__init__.py", modules), (package / "conf" / "__init__.py", "")):
            if path.parent.is_dir() and not path.exists():
                path.write_text(text)
        metadata = folder / "my_lab-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-lab\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text("[arctic_hydra]\nmy_lab = my_lab\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT / "docs")))
def test_the_commands_of_a_page_run(page, tmp_path):
    text = page.read_text()
    install(files(text), tmp_path)
    commands = [line for language, block in _BLOCK.findall(text) if language == "bash" for line in block.splitlines()]
    more = {"PYTHONPATH": str(tmp_path)} if (tmp_path / "my_lab").is_dir() else {}
    for line in commands:
        command = _COMMAND.fullmatch(line)
        assert command, line
        failure = re.match(r" exit code (\d+): (.+)", command[3] or "")
        evaluates = command[1] == "arctic_hydra" and not _OTHER_DATA.search(command[2])
        arguments = command[2] + _FEWER if evaluates and (not failure or failure[1] == "75") else command[2]
        done = run(arguments, tmp_path, code=int(failure[1]) if failure else 0, module=command[1], **more)
        assert not failure or failure[2] in done.stdout + done.stderr, f"{line}\n{done.stderr}"
        assert "Traceback" not in done.stdout + done.stderr, line


def test_every_block_of_a_page_runs_or_says_why_it_does_not():
    """`console` is composed, `py` is the page of the notebook, which runs, and `text` is output."""
    for page in PAGES:
        for language, block in re.findall(r"^```(.*?)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE):
            known = _BLOCK.match(f"```{language}\n{block}```") or language in ("console", "text")
            directive = language.startswith("{") or (language, page.stem) == ("py", "python")
            assert known or directive or block.startswith("# Not run"), f"{page}: {block[:80]}"


COMPOSED = sorted(
    {
        line.partition("  #")[0].strip().removeprefix("$ ")
        for page in (ROOT / "README.md", ROOT / "launchers" / "README.md", *PAGES)
        for block in re.findall(r"^```console\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
        if line.startswith("$ python -m arctic_hydra")
    }
    | {f"python -m arctic_hydra {guide.command}" for guide in reference.GUIDES.values()}
)
"""The commands that need a GPU, the hub or minutes."""


@pytest.mark.parametrize("line", COMPOSED)
def test_every_other_command_composes(line, tmp_path, monkeypatch):
    """What the tests do not run is composed and checked, up to the machine."""
    monkeypatch.chdir(tmp_path)
    overrides = [word for word in shlex.split(line)[3:] if word != "-m" and "(" not in word]
    built(*(word if "[" in word else word.partition(",")[0] for word in overrides))


def test_the_page_of_a_group_shows_a_command_its_errors_and_its_metrics(tmp_path):
    reference.write_pages(tmp_path / "pages")
    written = {path.stem: path.read_text() for path in (tmp_path / "pages").glob("*.md")}
    assert {group.replace("/", "-") for group in reference.GUIDES} == set(written) - {"index"}
    metrics = set(re.findall(r"`([^`]+)`", (ROOT / "docs" / "metrics.md").read_text()))
    metrics |= {"eval/loss", "eval/perplexity", "eval/accuracy"}
    for group, guide in reference.GUIDES.items():
        page = written[group.replace("/", "-")]
        assert f"$ python -m arctic_hydra {guide.command}\n" in page and "\n## Errors\n" in page, group
        assert set(guide.metrics) <= metrics and all(f"`{name}`" in page for name in guide.metrics), group
        assert group == "run" or re.search(rf"(?<![\w.]){group}[.=@]", guide.command), group
    assert "- `optimizer.nesterov`: got false, but DeepSpeed's Muon" in written["optimizer"]
    assert (
        "- `callback.samples.prompts`: got …" in written["callback"]
        and "expected at least one text" not in written["run"]
    )
    assert "- `optimizer.betas`: got …" in written["optimizer"] and "- `trainer.ld_alpha`: got …" in written["trainer"]
    assert "- `log.level`: got …" in written["log"] and "- `extend`: … contains no checkpoint" in written["run"]
    assert sum(page.count("\n- `") for page in written.values()) > 200, "errors are found in the source"


GUIDES = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "launchers/README.md"))]
COMMANDS = [
    line
    for page in GUIDES
    for language, block in _BLOCK.findall(page.read_text())
    if language == "bash"
    for line in block.splitlines()
    if "python -m arctic_hydra" in line
]


def test_arguments_with_characters_of_patterns_are_quoted():
    """Those that name existing files by a pattern are not overrides."""
    assert len(COMMANDS) > 60
    words = [
        word
        for line in COMMANDS
        for word in re.sub(r"\$\([^)]*\)|'[^']*'|\"[^\"]*\"", "", line.partition("  #")[0]).split()
    ]
    assert [word for word in words if set(word) & set("[]{}?*()<>~#") and not word.startswith("outputs/")] == []


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_commands_mean_the_same_in_each_shell(shell, tmp_path):
    """The arguments that the program gets are those that the tests of README and docs pass to it."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    for name in ("stopped/1", "teacher/1", "sweep/sweeps/1", "search/sweeps/1"):
        (tmp_path / "outputs" / name / "export").mkdir(parents=True)
    lines = [line for line in COMMANDS if "&&" not in line and "||" not in line]
    script = ["python() { printf '%s\\n' \"$@\" end; }", *lines]
    done = subprocess.run(
        [shell, *(["-f"] if shell == "zsh" else []), "-c", "\n".join(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    for line, got in zip(lines, done.stdout.split("end\n"), strict=False):
        words = re.sub(r"\$\([^)]*\)|outputs/\S+", "...", line.partition("  #")[0])
        assert [word for word in shlex.split(words)[1:] if "..." not in word] == [
            word for word in got.splitlines() if "outputs/" not in word
        ], line


def test_the_page_names_what_a_class_of_each_group_has_to_define():
    rows = re.findall(
        r"^\| `(\w+)` \| `([\w.]+)\.(\w+)` \| ([^|]*)\|", (ROOT / "docs/extending/code.md").read_text(), re.MULTILINE
    )
    assert {group for group, *_ in rows} == {group for group, _ in registered()} - {"log"}
    for group, module, name, methods in rows:
        base = getattr(importlib.import_module(module), name)
        assert base.__abstractmethods__ == set(re.findall(r"`(\w+)`", methods)), group
        assert any(issubclass(cls, base) for cls in registered(group).values())


MOST_LINES = 30
"""Lines of code of one class or function of an extension."""


def _definitions(text: str) -> dict[str, int]:
    """Return the lines of each class and function at the top of a module, without empty ones."""
    found, lines = {}, text.splitlines()
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            found[node.name] = sum(bool(line.strip()) for line in lines[first - 1 : node.end_lineno])
    return found


def test_each_component_of_an_extension_is_short():
    modules = {str(path): path.read_text() for path in (ROOT / "tests" / "examples").rglob("*.py")}
    for page in (ROOT / "docs" / "extending").glob("*.md"):
        blocks = {f"{page}: {name}": text for name, text in files(page.read_text()).items()}
        modules |= {name: text for name, text in blocks.items() if name.endswith(".py")}
    counted = {
        f"{place}: {name}": lines for place, text in modules.items() for name, lines in _definitions(text).items()
    }
    assert len(counted) > 40
    assert {name: lines for name, lines in counted.items() if lines > MOST_LINES} == {}
