"""The table of SECURITY.md: as many cases as the tests try."""

from __future__ import annotations

import re
from pathlib import Path

from tests import test_bad_inputs as bad
from tests.cli import test_no_code as code
from tests.cli.composition import test_config_sources as sources
from tests.data.encode import test_limits as limits
from tests.data.source import test_hf as data
from tests.files import test_lock_file as locks
from tests.redaction import test_planted as planted
from tests.redaction import test_yaml_blocks as blocks


def cases(*tests: object) -> int:
    """The number of cases of parametrized tests."""
    marks = (mark for test in tests for mark in test.pytestmark if mark.name == "parametrize")  # type: ignore[attr-defined]
    return sum(len(mark.args[1]) for mark in marks)


def test_the_table_counts_the_cases(repository: Path) -> None:
    more = 2 * len(code.CODE_IN_ARGUMENTS) + len(code.CODE_IN_CONFIGS) + len(code.FILES) + len(code.BEHIND_A_CHOICE)
    secrets = (
        len(planted.PLANTED) + cases(planted.test_errors_do_not_show_secrets) + len(blocks.SETTINGS) + len(blocks.DIFFS)
    )
    wrong = len([*bad.NUMBERS, *bad.DEEPSPEED, *bad.MODEL, *bad.PATHS, *bad.ON_THIS_MACHINE, *bad.IN_THE_RANK])
    counted = [
        len(code.CASES) + more + len(data.FOREIGN),
        secrets,
        wrong + len(sources.NOT_PLAIN) + cases(locks.test_a_lock_that_another_program_wrote_is_left_alone),
        len(sources.BOMBS) + len(limits.LARGE) + len(limits.LONG),
    ]
    text = (repository / "SECURITY.md").read_text(encoding="utf-8")
    assert [int(number) for number in re.findall(r"^\| [^|]+ \| (\d+) \| ", text, re.MULTILINE)] == counted
