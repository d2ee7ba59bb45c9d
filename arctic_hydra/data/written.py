"""Chats written out without running their template again, where it only writes contents and never looks at them.

Once for each sequence of roles the template runs with objects in place of the contents that can be written, put together
with texts and stripped. They are no strings, so whatever else is done to one (a comparison, another filter, a search)
raises. A run that comes to its end followed from the roles alone: with other contents it would go the same way, so what
it wrote is what stands around the contents of every conversation of these roles, and so are its turns.
"""

from __future__ import annotations

import functools
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, NoReturn

from jinja2 import Environment, nodes

from arctic_hydra.data.messages import Chat, Message
from arctic_hydra.data.turns import Turn

Slot = tuple[int, str]
"""The number of a message, and the method of `str` that the template calls on its content before it writes it, or ``."""
Place = tuple[int, int]
"""How many contents are before a place, and the characters after the last of them."""
Find = Callable[[Chat, Sequence[int]], tuple[str, list[Turn]]]
"""A conversation and the numbers of the wanted turns; returns its text as the template writes it, and these turns."""

_MOST_FORMS = 4096
_MARK = re.compile(r"\0(\d+)(\w*)\0")
# What is captured and comes back as a string would be looked at unseen.
_CAPTURES = (
    nodes.Macro,
    nodes.AssignBlock,
    nodes.FilterBlock,
    nodes.Block,
    nodes.Import,
    nodes.FromImport,
    nodes.Include,
)
_TAGS = _THOUGHT, _RESULT = "think>", "tool_response>"
"""What templates look for in contents, and usual ones do not hold."""
_TESTS = {
    **dict.fromkeys(("defined", "string", "iterable", "sequence"), True),
    **dict.fromkeys(("undefined", "none", "mapping", "number", "integer", "float", "boolean", "callable"), False),
}
"""What tests say of every content: it is a string."""


class _LookedAtError(BaseException):
    """A template depends on what a content says; no `Exception`, which Jinja suppresses here and there."""


def _looked_at(*_: object, **__: object) -> NoReturn:
    raise _LookedAtError


class _Content:
    """Usual contents and the texts between them: what a template may do with them unseen."""

    def __init__(self, *parts: str | Slot) -> None:
        self._parts = parts

    def __add__(self, other: object) -> _Content:
        return _Content(*self._parts, *_parts_of(other))

    def __radd__(self, other: object) -> _Content:
        return _Content(*_parts_of(other), *self._parts)

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return False if other == "" else _looked_at()

    def __ne__(self, other: object) -> bool:
        return True if other == "" else _looked_at()

    def __contains__(self, text: object) -> bool:
        is_tag = isinstance(text, str) and any(tag in text for tag in _TAGS)
        return False if is_tag and len(self._parts) == 1 else _looked_at()

    def startswith(self, text: object) -> bool:
        return text in self

    def endswith(self, text: object) -> bool:
        return text in self

    def split(self, text: object) -> list[_Content]:
        return [] if text in self else [self]

    def strip(self) -> _Content:
        return self._by("strip")

    def lstrip(self) -> _Content:
        return self._by("lstrip")

    def rstrip(self) -> _Content:
        return self._by("rstrip")

    def _by(self, method: str) -> _Content:
        match self._parts:
            case ((index, "" | "strip" as before),):
                return _Content((index, before or method))
        _looked_at()

    def marks(self) -> str:
        """Return the texts, with a mark in place of each content."""
        return "".join(part if isinstance(part, str) else "\0{}{}\0".format(*part) for part in self._parts)

    __getattr__ = __getitem__ = __iter__ = __len__ = __hash__ = _looked_at
    __str__ = __repr__ = __format__ = __lt__ = __le__ = __gt__ = __ge__ = _looked_at
    __mul__ = __rmul__ = __mod__ = __rmod__ = __int__ = __float__ = __index__ = __call__ = _looked_at


def _parts_of(value: object) -> tuple[str | Slot, ...]:
    if isinstance(value, _Content):
        return value._parts
    return (value,) if isinstance(value, str) else _looked_at()


def _guarded(function: Callable[..., Any], known: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter or test that does what is `known` with contents, and nothing else."""

    @functools.wraps(function)  # keeps the marks by which Jinja passes more arguments
    def guarded(*args: Any, **kwargs: Any) -> Any:
        is_of_content = any(isinstance(value, _Content) for value in chain(args, kwargs.values()))
        return (known if is_of_content else function)(*args, **kwargs)

    return guarded


_FILTERS: dict[str, Callable[..., Any]] = {
    "trim": lambda content: content.strip(),
    "string": lambda content: content,
    "default": lambda content, *_: content,
    "d": lambda content, *_: content,
}


def _tracing(environment: Environment) -> Environment:
    """Return the environment of a template, with contents guarded."""
    tracing = environment.overlay(finalize=lambda value: value.marks() if isinstance(value, _Content) else value)
    tracing.filters = {
        name: _guarded(function, _FILTERS.get(name, _looked_at)) for name, function in environment.filters.items()
    }
    tracing.tests = {
        name: _guarded(test, (lambda said: lambda _: said)(_TESTS[name]) if name in _TESTS else _looked_at)
        for name, test in environment.tests.items()
    }
    return tracing


class Form:
    """What a template writes around the contents of the conversations of the same roles, and where their turns are."""

    def __init__(self, marked: str) -> None:
        """Take what was written, with marks in place of the contents."""
        parts = _MARK.split(marked)
        self._literals = parts[::3]
        self.slots: list[Slot] = [(int(index), method) for index, method in zip(parts[1::3], parts[2::3], strict=True)]
        self._turns: list[tuple[Place, Place, Place]] = []

    def text(self, messages: Sequence[Message]) -> tuple[str, list[int]]:
        """Return the text of a conversation, and 0 and the end of each content in it."""
        parts, ends = [self._literals[0]], [0]
        place = len(parts[0])
        for (index, method), literal in zip(self.slots, self._literals[1:], strict=True):
            content = messages[index]["content"]
            if method:
                content = getattr(content, method)()
            place += len(content)
            ends.append(place)
            parts += (content, literal)
            place += len(literal)
        return "".join(parts), ends

    def learn(self, turns: Sequence[Turn], ends: Sequence[int]) -> bool:
        """Take the turns of a conversation whose contents end at `ends`; False where one ends within a content."""
        for turn in turns:
            start, body_end, stop_end = (self._place(at, ends) for at in (turn.start, turn.body_end, turn.stop_end))
            self._turns.append((start, body_end, stop_end))
        return all(offset <= len(self._literals[before]) for turn in self._turns for before, offset in turn)

    @staticmethod
    def _place(at: int, ends: Sequence[int]) -> Place:
        before = bisect_right(ends, at) - 1
        return before, at - ends[before]

    def write(self, messages: Sequence[Message]) -> tuple[str, list[Turn]]:
        """Return the text of a conversation, and its turns."""
        text, ends = self.text(messages)
        return text, [Turn(ends[a] + i, ends[b] + j, ends[c] + k) for (a, i), (b, j), (c, k) in self._turns]


class WrittenChats:
    """Writes the chats of one template; a form is learned from the first chat of its roles, and compared with it."""

    def __init__(self, template: str, compiled: Any, variables: Mapping[str, Any], find: Find) -> None:
        """Take the template and what Jinja made of it, the variables that it is run with, and what finds turns so."""
        self._variables, self._find = variables, find
        self._forms: dict[tuple[tuple[str, ...], tuple[int, ...]], Form | None] = {}
        self._template = _traced(template, compiled)

    def write(self, chat: Chat, wanted: Sequence[int]) -> tuple[str, list[Turn]] | None:
        """Return the text of a conversation and its wanted turns; None where the template has to be run for them."""
        roles = _roles(chat) if self._template is not None else None
        if roles is None:
            return None
        key = (roles, tuple(wanted))
        if key not in self._forms:
            if len(self._forms) == _MOST_FORMS:
                self._forms.clear()
            self._forms[key] = self._learned(chat, wanted)
        form = self._forms[key]
        return None if form is None else form.write(chat.messages)

    def _learned(self, chat: Chat, wanted: Sequence[int]) -> Form | None:
        """Return the form of the chats with the roles of this one; None where it is not sure to be that of all of them."""
        with suppress(Exception, _LookedAtError):  # templates raise anything
            form = Form(self._run(chat.messages))
            if sorted(index for index, _ in form.slots) != list(range(len(chat.messages))):
                return None
            example = Chat([{**message, "content": f"Zqc{index}qZ"} for index, message in enumerate(chat.messages)])
            text, turns = self._find(example, wanted)
            written, ends = form.text(example.messages)
            if written == text and form.learn(turns, ends) and form.write(chat.messages) == self._find(chat, wanted):
                return form
        return None

    def _run(self, messages: Sequence[Message]) -> str:
        traced = [{**message, "content": _Content((index, ""))} for index, message in enumerate(messages)]
        said = {"tools": None, "documents": None, "add_generation_prompt": False, **self._variables}
        return str(self._template.render(messages=traced, **said))


def _roles(chat: Chat) -> tuple[str, ...] | None:
    """Return the roles of a conversation; None where it holds anything but roles and usual contents."""
    if chat.tools is not None:
        return None
    roles: list[str] = []
    for message in chat.messages:
        content = message.get("content")
        if not content or len(message) != 2 or content.isspace() or _THOUGHT in content or _RESULT in content:
            return None
        roles.append(message["role"])
    return tuple(roles)


def _traced(template: str, compiled: Any) -> Any:
    """Return the template for contents that are no strings; None where it could look at one unseen."""
    with suppress(Exception):  # one that does not compile is told about when it is run
        tree = compiled.environment.parse(template)
        calls = (block.call.node for block in tree.find_all(nodes.CallBlock))
        # Tags of an extension, such as `{% generation %}`, write what is in them.
        if next(tree.find_all(_CAPTURES), None) is None and all(
            isinstance(one, nodes.ExtensionAttribute) for one in calls
        ):
            return _tracing(compiled.environment).from_string(template, globals=compiled.globals)
    return None
