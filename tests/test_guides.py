"""README and the page of config groups: what they promise is complete."""

from __future__ import annotations

import re

from tests.command import ROOT


def test_the_two_commands_are_those_of_ci() -> None:
    readme, script = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    assert "pip install -c constraints.txt -e . && python -m arctic_hydra\n" in readme
    assert "pip install nox && nox\n" in readme
    assert "\nnox 2>&1" in script


def test_pages_that_the_readme_links_to_exist() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text())
    assert len(targets) > 10
    assert [target for target in targets if not (ROOT / target).is_file()] == []


def test_first_commands_hold_no_comment() -> None:
    """zsh passes it as arguments when it is pasted, unless it has been told otherwise."""
    for page in ("README.md", "docs/index.md"):
        blocks = re.findall(r"^```(?:console|bash)\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
        assert blocks and not [block for block in blocks if "#" in block], page


def test_the_table_of_groups_is_complete() -> None:
    from arctic_hydra.cli.help.inventory import groups

    page = (ROOT / "docs" / "config.md").read_text()
    for group, options in groups().items():
        if "/" in group:
            assert f"`{group}`" in page
            continue
        [row] = [
            line for line in page.splitlines() if re.match(rf"\| .*`{group}`.* \|", line) and line.startswith("| `")
        ][:1]
        assert all(f"`{name}`" in row or f"[{name}]" in row or name in row for name in options), (group, row)
