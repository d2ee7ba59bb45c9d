"""Conversations from columns: `role_mapping` maps each role to the location of its texts.

A location is a column (`question`) or a path `array.field.value` (`messages.role.user`): the items of column `array` whose
`field` equals `value`. The items of an array keep their order across roles.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from arctic_hydra.data.formats.messages import Message, check_text, columns_of, malformed

if TYPE_CHECKING:
    from arctic_hydra.data.rows.base import Row

CONTENT_KEYS = ("content", "text", "message", "value")


def mapped_paths(role_mapping: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (role, column or path) in the order of the mapping; a role may be mapped to a list."""
    return [
        (str(role), str(path))
        for role, value in role_mapping.items()
        for path in (value if isinstance(value, list) else [value])
    ]


def mapping_problems(role_mapping: Mapping[str, Any], roles: tuple[str, ...]) -> list[str]:
    """Return the problems of a mapping."""
    problems = []
    for role, path in mapped_paths(role_mapping):
        if role not in roles:
            problems.append(f"got the role {role!r}, expected one of {', '.join(roles)}")
        if path.count(".") not in (0, 2):
            problems.append(f"got {path!r} for {role}, expected a column or a path array.field.value")
    fields: dict[str, str] = {}
    for _, path in mapped_paths(role_mapping):
        if path.count(".") == 2:
            array, name, _ = path.split(".")
            if fields.setdefault(array, name) != name:
                problems.append(
                    f"got {array}.{name} together with {array}.{fields[array]}, expected one field for the roles"
                )
    if role_mapping and not any(role == "assistant" for role, _ in mapped_paths(role_mapping)):
        problems.append("got no assistant, so there is nothing to train on")
    return problems


def read_mapped(row: Row, role_mapping: Mapping[str, Any], content_key: str | None) -> list[Message]:
    """Return the messages of a row in the order of the mapping, with the items of an array in their original order.

    Empty system texts are omitted. Raises RowProblem for a missing column, or an item whose role is not mapped.
    """
    messages: list[Message] = []
    arrays: dict[str, dict[str, str]] = {}
    for role, path in mapped_paths(role_mapping):
        if path.count(".") == 2:
            array, name, value = path.split(".")
            arrays.setdefault(f"{array}.{name}", {})[value] = role
    done: set[str] = set()
    for role, path in mapped_paths(role_mapping):
        key = path.rpartition(".")[0]
        if not key:
            content = _column(row, path)
            if not (role == "system" and content in (None, "")):
                messages.append({"role": role, "content": check_text(content, f"{path} ({role})")})
        elif key not in done:
            done.add(key)
            messages += _array(row, key, arrays[key], content_key)
    return messages


def _column(row: Row, name: str) -> Any:
    if name not in row:
        raise malformed(f"no '{name}' column, which role_mapping names; got the columns {columns_of(row)}")
    return row[name]


def _array(row: Row, key: str, roles: dict[str, str], content_key: str | None) -> list[Message]:
    array, _, name = key.partition(".")
    items = _column(row, array)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise malformed(f"{array} is a {type(items).__name__}, expected a list of objects with '{name}'")
    messages: list[Message] = []
    for index, item in enumerate(items):
        value = item.get(name)
        if not isinstance(value, str) or value not in roles:
            known = ", ".join(roles)
            raise malformed(f"{array} {index}: {name} is {value!r}, which role_mapping does not map; mapped: {known}")
        content = next((key for key in ([content_key] if content_key else CONTENT_KEYS) if key in item), None)
        if content is None:
            expected = content_key or ", ".join(CONTENT_KEYS)
            raise malformed(f"{array} {index}: no text; got the keys {', '.join(sorted(item))}, expected {expected}")
        if roles[value] == "system" and item[content] in (None, ""):
            continue
        messages.append({"role": roles[value], "content": check_text(item[content], f"{array} {index} ({value})")})
    return messages
