"""Texts of chats without running their template for each of them, where what it does follows from the roles alone.

The first chat with a sequence of roles is left to the template. When the sequence comes again, the template runs once with
stand-ins (`_Content`) for the contents. What it writes around them, and where the turns are, is the `Form` of all chats with
these roles. It is kept only if it gives what running the template gives: for marks as contents, and for the chat at hand.

A stand-in is no string. It can be written, put together with texts, and freed of white space at its ends. It can be asked
whether it holds a certain text, such as `</think>`: it says no, and the chats that hold it are left to the template. Whatever
else is done to it (its length, an order, another filter) raises `_LookedAtError`, and all chats with these roles are left to
the template. So a run that comes to its end goes the same way with all contents that the form is used for.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.filters import do_default
from jinja2.nativetypes import NativeCodeGenerator

from arctic_hydra.data.encode.turns import Turn
from arctic_hydra.data.formats.messages import Chat, Message

Steps = tuple[tuple[str, str | None], ...]
"""What of a content's ends is left out when it is written: calls of `lstrip` and `rstrip`."""
Slot = tuple[int, Steps]
"""The number of a message, and how its content is written."""
Place = tuple[int, int]
"""How many contents are before a place, and the characters after the last of them."""
Key = tuple[tuple[str, ...], tuple[int, ...]]
"""What the chats of one form share: the keys and roles of their messages, and the numbers of the wanted turns."""
Find = Callable[[Chat, Sequence[int]], tuple[str, list[Turn]]]
"""A conversation and the numbers of the wanted turns; returns its text as the template writes it, and these turns."""

_MOST_FORMS = 4096


class _LookedAtError(BaseException):
    """A template depends on what a content says; no `Exception`, which Jinja suppresses here and there."""


def _looked_at(*_: object, **__: object) -> NoReturn:
    raise _LookedAtError


class _Content:
    """Stand-ins for contents that are not blank, and texts between them: what a template may do with contents unseen."""

    def __init__(self, parts: Iterable[str | Slot], absent: set[str]) -> None:
        """Take what is to be written, and the set that collects what no content may hold."""
        self._parts, self._absent = tuple(parts), absent

    def __add__(self, other: object) -> _Content:
        return _Content((*self._parts, *_parts_of(other)), self._absent)

    def __radd__(self, other: object) -> _Content:
        return _Content((*_parts_of(other), *self._parts), self._absent)

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return other in self if isinstance(other, str) and other else _same_for_all(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __contains__(self, text: object) -> bool:
        if not isinstance(text, str) or not text or len(self._parts) > 1:
            _looked_at()
        self._absent.add(text)
        return False

    def startswith(self, text: object) -> bool:
        return text in self

    def endswith(self, text: object) -> bool:
        return text in self

    def split(self, text: object) -> list[_Content]:
        return [] if text in self else [self]

    def replace(self, old: object, _: object) -> _Content:
        return _looked_at() if old in self else self

    def strip(self, characters: str | None = None) -> _Content:
        return self.lstrip(characters).rstrip(characters)

    def lstrip(self, characters: str | None = None) -> _Content:
        return self._cut(0, "lstrip", characters)

    def rstrip(self, characters: str | None = None) -> _Content:
        return self._cut(-1, "rstrip", characters)

    def _cut(self, end: int, method: str, characters: str | None) -> _Content:
        if characters not in (None, "\n"):
            _looked_at()
        parts = list(self._parts)
        while isinstance(text := parts[end], str) and not getattr(text, method)(characters):
            del parts[end]
        match parts[end]:
            case str(text):
                parts[end] = getattr(text, method)(characters)
            case index, steps if (method, None) not in steps:
                parts[end] = index, (*(step for step in steps if step[0] != method), (method, characters))
        return _Content(parts, self._absent)

    __getattr__ = __getitem__ = __iter__ = __len__ = __hash__ = _looked_at
    __str__ = __repr__ = __format__ = __lt__ = __le__ = __gt__ = __ge__ = _looked_at
    __mul__ = __rmul__ = __mod__ = __rmod__ = __int__ = __float__ = __index__ = __call__ = _looked_at


def _same_for_all(other: object) -> bool:
    """Return whether contents equal what is no text of its own: none does, but another content may."""
    return _looked_at() if isinstance(other, _Content) else False


def _parts_of(value: object) -> tuple[str | Slot, ...]:
    if isinstance(value, _Content):
        return value._parts
    return (value,) if type(value) is str else _looked_at()  # Markup escapes what is put beside it


def _written(values: Iterable[object]) -> str | _Content:
    """Return what a template writes one after another."""
    texts = [value if isinstance(value, _Content) else str(value) for value in values]
    content = next((text for text in texts if isinstance(text, _Content)), None)
    if content is None:
        return "".join(map(str, texts))
    return _Content(
        (part for text in texts if not (isinstance(text, str) and not text) for part in _parts_of(text)),
        content._absent,
    )


class _Writing(NativeCodeGenerator):
    """Makes no strings of what is written, nor of what a `~` puts together; knows no `{% autoescape %}`."""

    visit_ScopedEvalContextModifier = visit_EvalContextModifier = _looked_at

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
        self.write("environment.concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


_TESTS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("defined", "string", "iterable", "sequence"), lambda _: True),
    **dict.fromkeys(("undefined", "none", "mapping", "number", "integer", "float", "boolean"), lambda _: False),
}
_FILTERS: dict[str, Callable[..., Any]] = {
    "trim": lambda content, *characters: content.strip(*characters),
    "replace": lambda _, content, old, new: content.replace(old, new),
    "string": lambda content: content,
    "default": do_default,  # a content may be the one or the other
    "d": do_default,
}


def _guarded(function: Callable[..., Any], known: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter, test or other function that does what is `known` with contents, and nothing else."""

    @functools.wraps(function)  # keeps the marks by which Jinja passes more arguments
    def guarded(*args: Any, **kwargs: Any) -> Any:
        is_of_content = any(isinstance(value, _Content) for value in chain(args, kwargs.values()))
        return (known if is_of_content else function)(*args, **kwargs)

    return guarded


def _traced(template: str, compiled: Any) -> Any:
    """Return the template for contents that are no strings; None where it does not compile, which running it will tell."""
    with suppress(Exception, _LookedAtError):
        environment = compiled.environment.overlay()
        environment.code_generator_class, environment.concat = _Writing, _written
        filters, tests = environment.filters.items(), environment.tests.items()
        environment.filters = {name: _guarded(one, _FILTERS.get(name, _looked_at)) for name, one in filters}
        environment.tests = {name: _guarded(one, _TESTS.get(name, _looked_at)) for name, one in tests}
        environment.getitem = _guarded(environment.getitem, _looked_at)  # `loop[content]` is asked for by name
        environment.filters["random"] = _looked_at  # as `lipsum`: another draw for each chat, not for each form
        return environment.from_string(template, globals={**compiled.globals, "lipsum": _looked_at})
    return None


class Form:
    """What a template writes around the contents of the conversations of the same roles, and where their turns are."""

    def __init__(self, written: _Content) -> None:
        """Take what the template wrote."""
        self.slots: list[Slot] = []
        self._absent = tuple(written._absent)
        self._literals = [""]
        self._turns: list[tuple[Place, Place, Place]] = []
        for part in written._parts:
            if isinstance(part, str):
                self._literals[-1] += part
            else:
                self.slots.append(part)
                self._literals.append("")

    def is_clear(self, count: int) -> bool:
        """Whether each of so many contents is written once, and found there whatever white space it begins and ends with.

        It is looked for as `outline` does, which takes the white space after it for its own where it can.
        """
        if sorted(index for index, _ in self.slots) != list(range(count)):
            return False
        followed = zip(self.slots, [*self._literals[1:-1], "the end"], strict=True)
        return all(
            not steps or (after.strip() and len(set(dict(steps).values())) == 1) for (_, steps), after in followed
        )

    def fits(self, messages: Sequence[Message]) -> bool:
        """Whether no content holds what the template looks for."""
        return not any(text in message["content"] for text in self._absent for message in messages)

    def text(self, messages: Sequence[Message]) -> tuple[str, list[int]]:
        """Return the text of a conversation, and 0 and the end of each content in it."""
        parts, ends = [self._literals[0]], [0]
        place = len(parts[0])
        for (index, steps), literal in zip(self.slots, self._literals[1:], strict=True):
            content = messages[index]["content"]
            for method, characters in steps:
                content = getattr(content, method)(characters)
            place += len(content)
            ends.append(place)
            parts += (content, literal)
            place += len(literal)
        return "".join(parts), ends

    def learn(self, turns: Sequence[Turn], ends: Sequence[int]) -> bool:
        """Take the turns of a conversation whose contents end at `ends`; False where one is more than a content and literals."""
        for turn in turns:
            start, body_end, stop_end = (self._place(at, ends) for at in (turn.start, turn.body_end, turn.stop_end))
            self._turns.append((start, body_end, stop_end))
        if any(start[0] + 1 != body_end[0] or body_end[0] != stop_end[0] for start, body_end, stop_end in self._turns):
            return False
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
    """Writes the chats of one template; a form is learned when its roles come again, and compared with that chat.

    Not when they come first: learning runs the template three times, too much for roles that never come again.
    """

    def __init__(self, template: str, compiled: Any, variables: Mapping[str, Any], find: Find) -> None:
        """Take the template and what Jinja made of it, the variables that it is run with, and what finds turns so."""
        self._variables, self._find = variables, find
        self._seen: set[Key] = set()
        self._forms: dict[Key, Form | None] = {}
        self._template = _traced(template, compiled)

    def write(self, chat: Chat, wanted: Sequence[int]) -> tuple[str, list[Turn]] | None:
        """Return the text of a conversation and its wanted turns; None where the template has to be run for them."""
        roles = _roles(chat) if self._template is not None else None
        if roles is None:
            return None
        key = (roles, tuple(wanted))
        if key not in self._seen:
            if len(self._seen) == _MOST_FORMS:
                self._seen.clear()
                self._forms.clear()
            self._seen.add(key)
            return None
        if key not in self._forms:
            self._forms[key] = self._learned(chat, wanted)
        form = self._forms[key]
        return form.write(chat.messages) if form is not None and form.fits(chat.messages) else None

    def _learned(self, chat: Chat, wanted: Sequence[int]) -> Form | None:
        """Return the form of the chats with the roles of this one; None where it is not sure to be that of all of them."""
        with suppress(Exception, _LookedAtError):  # templates raise anything
            form = self._traced_form(chat.messages)
            if not form.is_clear(len(chat.messages)):
                return None
            example = Chat([{**message, "content": f"Zqc{index}qZ"} for index, message in enumerate(chat.messages)])
            text, turns = self._find(example, wanted)
            written, ends = form.text(example.messages)
            if not form.fits(example.messages) or written != text or not form.learn(turns, ends):
                return None
            if not form.fits(chat.messages) or form.write(chat.messages) == self._find(chat, wanted):
                return form
        return None

    def _traced_form(self, messages: Sequence[Message]) -> Form:
        absent: set[str] = set()
        traced = [{**message, "content": _Content([(index, ())], absent)} for index, message in enumerate(messages)]
        said = {"tools": None, "documents": None, "add_generation_prompt": False, **self._variables}
        written = self._template.render(messages=traced, **said)
        return Form(written) if isinstance(written, _Content) else _looked_at()  # it wrote none


def _roles(chat: Chat) -> tuple[str, ...] | None:
    """Return the keys and roles of a conversation; None where it holds more than roles and contents that are not blank."""
    if chat.tools is not None:
        return None
    roles: list[str] = []
    for message in chat.messages:
        content = message.get("content")
        if not content or len(message) != 2 or content.isspace():
            return None
        roles += (*message, message["role"])  # templates may write the keys as they come
    return tuple(roles)
