"""The extent of a value in YAML that takes several lines: a block scalar, a folded text, or a nested list or mapping."""

from __future__ import annotations

import re

_BEFORE_KEY = re.compile(r"(\s*(?:-\s+)*)(?:\?\s+)?")
_ITEM_OF_LIST = re.compile(r"-(?:\s|$)")
_LARGEST_INDENT = 200


def end_of_block(text: str, key: int, colon: int, *, is_diff: bool) -> int:
    """Return where the value of the key at position `key`, with its colon, ends: a position behind the colon.

    The rest of the line belongs to it, and further lines that are indented more than the key, or that are items of a list
    in its column. A key that is not the first of its line, as in `{a: 1, key: x}`, has no block: returns 0. In a diff, each
    line begins with a mark; the block ends where it has ended in all versions that contain its key.
    """
    first = text.rfind("\n", max(0, key - _LARGEST_INDENT), key) + 1
    before = _BEFORE_KEY.fullmatch(text, first + is_diff, key) if first or key < _LARGEST_INDENT else None
    if before is None:
        return 0
    column = len(before[1])
    open_in = _versions(text[first]) if is_diff else {""}
    end = stop = _end_of_line(text, colon)
    end -= text[end - 1] == ","  # of JSON
    while stop < len(text) and open_in:
        start, stop = stop + 1, _end_of_line(text, stop + 1)
        mark, line = text[start : start + is_diff], text[start + is_diff : stop]
        found_in = open_in & (_versions(mark) if is_diff else {""})
        content = line.lstrip()
        indent = len(line) - len(content)
        if mark in ("d", "@") or (is_diff and not mark):  # the header of another file or part
            open_in = set()
        elif indent > column or (indent == column and _ITEM_OF_LIST.match(content)):
            end = stop if found_in and content else end
        elif content and not content.startswith("#"):
            open_in -= found_in
    return end


def is_in_flow_mapping(text: str, key: int) -> bool:
    """Whether the line of the key at position `key` opens a mapping before it, as in `{a: 1, key: x}`, so that `}` ends the value."""
    first = text.rfind("\n", max(0, key - _LARGEST_INDENT), key) + 1
    before = text[max(first, key - _LARGEST_INDENT) : key]
    return before.count("{") > before.count("}")


def _end_of_line(text: str, start: int) -> int:
    end = text.find("\n", start)
    return len(text) if end < 0 else end


def _versions(mark: str) -> set[str]:
    """Return the versions that contain a line of a diff: the old one, the new one, or both."""
    return {"-": {"old"}, "+": {"new"}}.get(mark, {"old", "new"})
