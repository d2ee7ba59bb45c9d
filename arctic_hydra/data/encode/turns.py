"""Where in a rendered chat the model writes: each turn from the end of its header to the end of its stop token."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from arctic_hydra.data.encode.skeleton import (
    PROBE,
    Skeleton,
    before_partial_tag,
    constant_header,
    is_plain,
    roles_key,
    shared_prefix,
    thought_key,
    with_placeholders,
)
from arctic_hydra.data.encode.spans import Span
from arctic_hydra.data.encode.template import ChatTemplate
from arctic_hydra.data.encode.verify import (
    TAGGED_ADVICE,
    changed_answer,
    check_complete,
    check_order,
    check_tools,
    find_content,
    missing_turn,
    no_stop_token,
    skip_space,
    unlocated_turn,
)
from arctic_hydra.data.formats.messages import REASONING_KEYS, Chat, Message, RowProblem

_MAX_SKELETONS = 4096


@dataclass(frozen=True)
class Turn:
    """Characters of one turn."""

    start: int
    body_end: int
    """Where its stop token begins, or the space before it."""
    stop_end: int


class TurnFinder:
    """Finds what the model writes in the chats of one template."""

    def __init__(self, template: ChatTemplate, stops: Sequence[str], eot_tokens: Sequence[str]) -> None:
        """Take the tokens that may end a turn (`stops`), and those that the config names as such (`ends`)."""
        self._template = template
        self._stops = sorted(stops, key=lambda token: (-len(token), token))
        self._stop = re.compile("|".join(map(re.escape, self._stops)) or r"(?!)")
        self._eot_tokens = frozenset(eot_tokens)
        self._skeletons: dict[Any, Skeleton] = {}
        self._trailing_header = ""  # what stands at the end of every chat
        self._header = self._generation_header()
        if not self._header:
            asked, answered = self._try_render(PROBE[:1], None), self._try_render(PROBE, None)
            self._header = self._trailing_header = constant_header(asked or "", answered or "", self._stop)

    def find(self, chat: Chat, text: str, tagged: list[Span], selected: Sequence[int]) -> list[Turn]:
        """Return the selected turns of a rendered chat; raises RowProblem where one is not there or not to be located."""
        check_tools(chat, text)
        text = text.removesuffix(self._trailing_header)
        skeleton, slot_spans = self._match_skeleton(chat, text)
        content_spans = {
            index: span for (kind, index), span in zip(skeleton.slots, slot_spans, strict=True) if kind == "c"
        }
        if skeleton.misplaced is not None:
            raise missing_turn(skeleton.misplaced, chat.messages[skeleton.misplaced])
        if len(content_spans) < len(chat.messages):
            check_complete(chat, text, content_spans)
        answers = (
            self._tagged_turns(chat, text, tagged, skeleton, content_spans) if self._template.marks_answers else {}
        )
        turns = {
            index: answers.get(index) or self._untagged_turn(chat, text, skeleton, slot_spans, content_spans, index)
            for index in selected
        }
        if len(content_spans) < len(chat.messages) or any(message.get("tool_calls") for message in chat.messages):
            spans = {index: (turn.start, turn.stop_end) for index, turn in (answers | turns).items()}
            check_order(chat, text, content_spans, spans)
        return [turns[index] for index in selected]

    def _generation_header(self) -> str:
        """Return what the template writes to open an answer; empty where it does not say."""
        plain, prompt = self._try_render(PROBE[:1], None, False), self._try_render(PROBE[:1], None, True)
        return prompt[len(plain) :] if plain is not None and prompt is not None and prompt.startswith(plain) else ""

    def _try_render(self, messages: list[Message], tools: list[Any] | None, generate: bool = False) -> str | None:
        """Return the rendered messages; None where the template refuses these, such as a lone question."""
        with suppress(Exception):  # templates raise anything
            text = self._template.render([messages], tools, generate)[0].text
            return text if generate else text.removesuffix(self._trailing_header)
        return None

    def _match_skeleton(self, chat: Chat, text: str) -> tuple[Skeleton, list[Span]]:
        """Return the skeleton of a chat, with as many of its contents marked as the template allows, and their positions."""
        key = roles_key(chat.messages) if chat.tools is None else None
        every = range(len(chat.messages))
        if key is not None:
            skeleton = self._skeletons.get(key)
            if skeleton is None:
                if len(self._skeletons) == _MAX_SKELETONS:
                    self._skeletons.clear()
                skeleton = self._skeletons[key] = self._make_skeleton(chat, every)
            if (slot_spans := skeleton.fill(text, chat.messages)) is not None:
                return skeleton, slot_spans
        if (
            not self._template.marks_answers
        ):  # a template may treat some contents in another way: these are left as they are
            usual = [index for index in every if is_plain(chat.messages[index])]
            attempts = [every, usual] if key is None and len(usual) < len(every) else [usual]
            for attempt in attempts:
                skeleton = self._make_skeleton(chat, attempt)
                if (slot_spans := skeleton.fill(text, chat.messages)) is not None:
                    return skeleton, slot_spans
        return Skeleton(chat.messages, text, placeholders=False), []

    def _make_skeleton(self, chat: Chat, which: Sequence[int]) -> Skeleton:
        messages = list(chat.messages)
        for index in which:
            messages[index] = with_placeholders(messages[index], index)
        skeleton = Skeleton(messages, self._try_render(messages, chat.tools) or "")
        return skeleton if skeleton.is_unambiguous else Skeleton(messages, "", placeholders=False)

    def _tagged_turns(
        self, chat: Chat, text: str, tagged: list[Span], skeleton: Skeleton, content_spans: dict[int, Span]
    ) -> dict[int, Turn]:
        """Return the turn of each assistant message, by index."""
        answers = [index for index, message in enumerate(chat.messages) if message["role"] == "assistant"]
        blocks: list[Span] = []
        for first, last in tagged:  # a turn may be written in several blocks, one right after the other
            if blocks and blocks[-1][1] == first and len(tagged) > len(answers):
                blocks[-1] = (blocks[-1][0], last)
            else:
                blocks.append((first, last))
        if len(blocks) != len(answers):
            raise RowProblem(
                "template",
                f"the chat template marks {len(blocks)} generation blocks for {len(answers)} assistant messages; "
                f"expected one for each; {TAGGED_ADVICE}",
            )
        turns: dict[int, Turn] = {}
        for (first, last), index in zip(blocks, answers, strict=True):
            message, content = chat.messages[index], content_spans.get(index)
            if content is None or message.get("tool_calls") or not first <= content[0] <= content[1] <= last:
                turns[index] = self._turn_in_span(text, (first, last), message, index)
                continue
            stop_end = content[1] + len(text[content[1] : last].rstrip())
            if stop_end == content[1]:  # closed before the stop token, which is trained on all the same
                stop_end = self._stop_after(chat, text, skeleton, content[1], index)
            elif not self._is_stop(text[content[1] : stop_end]):
                raise changed_answer(index, message["content"], text[content[0] : stop_end])
            start = self._after_header(text, first, content[0])
            prefix = text[start : content[0]]
            is_header = prefix.strip() and not self._is_generated(prefix, message)
            turns[index] = Turn(content[0] if is_header else start, content[1], stop_end)
        return turns

    def _untagged_turn(
        self,
        chat: Chat,
        text: str,
        skeleton: Skeleton,
        slot_spans: list[Span],
        content_spans: dict[int, Span],
        index: int,
    ) -> Turn:
        """Return a turn that the template does not mark."""
        message = chat.messages[index]
        is_answer = message["role"] == "assistant"
        begins = self._turn_start(chat, skeleton, index) if is_answer or index not in content_spans else None
        if index not in content_spans or message.get("tool_calls"):
            ends = None if begins is None else self._turn_end(chat, skeleton, index, begins)
            if begins is None or ends is None:
                raise unlocated_turn(index, message)
            span = (skeleton.map_position(begins, slot_spans), skeleton.map_position(ends, slot_spans))
            return self._turn_in_span(text, span, message, index)
        content = content_spans[index]
        stop_end = self._stop_after(chat, text, skeleton, content[1], index)
        if not is_answer:
            return Turn(content[0], content[1], stop_end)
        if begins is None:
            if self._header or thought_key(message):
                raise unlocated_turn(index, message)
            return Turn(content[0], content[1], stop_end)
        start = self._after_header(text, skeleton.map_position(begins, slot_spans), content[0])
        prefix = text[start : content[0]]
        is_header = prefix.strip() and not self._is_generated(prefix, message)
        return Turn(content[0] if is_header else start, content[1], stop_end)

    def _turn_start(self, chat: Chat, skeleton: Skeleton, index: int) -> int | None:
        """Return where in the skeleton the model begins to write message `index`; None if that is not known."""
        if index not in skeleton.starts:
            skeleton.starts[index] = self._find_start(chat, skeleton, index)
        return skeleton.starts[index]

    def _find_start(self, chat: Chat, skeleton: Skeleton, index: int) -> int | None:
        is_answer = skeleton.messages[index]["role"] == "assistant"
        if not index:  # the template may write a system text of its own first
            return self._after_last_header(skeleton, index) if is_answer and self._header else 0
        before = skeleton.messages[:index]
        prompt = self._try_render(before, chat.tools, is_answer)
        if prompt is None or not is_answer:
            return len(prompt) if prompt is not None and skeleton.text.startswith(prompt) else None
        if skeleton.text.startswith(prompt):
            return len(prompt)
        # Some templates open a thought when they ask for an answer, and write answers without one.
        shared = shared_prefix(prompt, skeleton.text)
        own = self._first_slot(skeleton, index)
        if own is None or own[0] != shared:
            shared = before_partial_tag(prompt, shared)
        opened = self._try_render(before, chat.tools) or ""
        if opened and shared > len(opened) and prompt.startswith(opened) and not prompt[shared].isalnum():
            thought = prompt.find("<think", len(opened), shared)
            return shared if thought < 0 else thought  # an empty thought was asked for, and this one is none
        return self._after_last_header(skeleton, index)

    def _after_last_header(self, skeleton: Skeleton, index: int) -> int | None:
        """Return the end of the header of message `index`, which is between it and the message before.

        For templates that write the turns before in another way when they ask for this answer.
        """
        previous, own = skeleton.spans.get(("c", index - 1)), self._first_slot(skeleton, index)
        for header in (self._header, self._header.split("<think>")[0]):
            if not header.strip():
                continue
            if own is not None:
                low = max((end for (_, one), (_, end) in skeleton.spans.items() if one < index), default=0)
                found = skeleton.text.rfind(header, low, own[0])
            else:
                known = 0 if not index else previous and previous[1]
                found = skeleton.text.find(header, known) if known is not None else -1
            if found >= 0:
                return found + len(header)
        return None

    @staticmethod
    def _first_slot(skeleton: Skeleton, index: int) -> Span | None:
        """Return the first of a message's slots."""
        return skeleton.spans.get(("t", index)) or skeleton.spans.get(("c", index))

    def _turn_end(self, chat: Chat, skeleton: Skeleton, index: int, start: int) -> int | None:
        """Return where in the skeleton message `index`, which begins at `start`, is over; None if that is not known."""
        if index + 1 == len(skeleton.messages):
            return len(skeleton.text)
        alone = self._try_render(skeleton.messages[: index + 1], chat.tools)
        if alone is None or skeleton.text.startswith(alone):
            return None if alone is None else len(alone)
        # Some templates write thoughts, or an empty one, in the last turn only: what follows them is the same.
        if alone[:start] == skeleton.text[:start]:
            turn = alone[start:]
        elif self._header and self._header in alone:
            turn = alone[alone.rfind(self._header) + len(self._header) :]
        else:
            return None
        for first in range(len(turn.rstrip())):
            if skeleton.text.startswith(turn[first:], start):
                return start + len(turn) - first
        return None

    def _stop_after(self, chat: Chat, text: str, skeleton: Skeleton, position: int, index: int) -> int:
        """Return the end of the stop tokens after an answer that ends at `position`; raises RowProblem if there are none.

        What follows the answer here and also where its turn is the last one belongs to it; what comes then opens the
        next turn.
        """
        if index not in skeleton.ends:
            skeleton.ends[index] = self._find_closing(chat, skeleton, index)
        shared, closing = skeleton.ends[index]
        first = self._stop.match(text, skip_space(text, position))
        if first is None:
            plain = closing.rstrip()  # the stop is ordinary text, such as "\n###"
            if plain and shared >= len(plain) and self._is_stop(plain):
                return position + len(plain)
            if plain:
                raise changed_answer(
                    index, chat.messages[index]["content"], text[position - 20 : position + len(plain)]
                )
            raise no_stop_token(index)
        if not self._stop.match(closing, skip_space(closing, 0)) and first[0] not in self._eot_tokens:
            raise no_stop_token(index)  # it opens the next turn
        end = first.end()
        while (more := self._stop.match(text, end)) and more.end() <= position + shared:
            end = more.end()
        return end

    def _find_closing(self, chat: Chat, skeleton: Skeleton, index: int) -> tuple[int, str]:
        """Return what follows the content of a message that is the last one, and how much of it follows here too."""
        rest = skeleton.text[skeleton.spans["c", index][1] :]
        if index + 1 == len(skeleton.messages):
            return len(rest), rest
        alone = self._try_render(skeleton.messages[: index + 1], chat.tools)
        if alone is None:
            return 0, rest
        closing = alone.rpartition(skeleton.messages[index]["content"])[2]
        return shared_prefix(rest, closing), closing

    def _is_stop(self, text: str) -> bool:
        """Whether a text is nothing but stop tokens, or ordinary text that ends a turn."""
        return not self._stop.sub("", text).strip() or self._stop.search(text) is None

    def _after_header(self, text: str, start: int, end: int) -> int:
        """Return where the header that a turn begins with ends; `start` if it begins with none."""
        header = self._header
        if not header:
            return start
        if text.startswith(header, start) and start + len(header) <= end:
            return start + len(header)
        space = header[len(header.rstrip()) :]  # a generation block may begin before it
        if space and text.startswith(space, start, end) and text.endswith(header.rstrip(), 0, start):
            return start + len(space)
        # It may open a thought that this answer does not have.
        shared = before_partial_tag(header, shared_prefix(header, text[start : min(start + len(header), end)]))
        first = self._stop.match(header)
        return start + shared if first is not None and first.end() <= shared else start

    def _turn_in_span(self, text: str, span: Span, message: Message, index: int) -> Turn:
        """Return what the model writes of a span that holds a turn whose content is not located."""
        start, end = span
        is_answer = message["role"] == "assistant"
        if is_answer:
            start = self._after_header(text, start, end)
        content, has_calls = message.get("content") or "", bool(message.get("tool_calls"))
        body_end, stop_end = self._split_stop(text, start, end, content, has_calls)
        if stop_end is None:
            raise no_stop_token(index)
        body = text[start:body_end]
        position = find_content(body, content, has_calls)
        if position is None:
            whole = body_end - len(content.strip())  # the answer opens the thought that its header opens already
            if has_calls or not start - len(self._header) <= whole < start or text[whole:body_end] != content.strip():
                raise changed_answer(index, content, body)
            return Turn(whole, body_end, stop_end)
        prefix = body[:position]
        if not is_answer or (prefix.strip() and not self._is_generated(prefix, message)):
            start += position
        return Turn(start, body_end, stop_end)

    def _split_stop(self, text: str, start: int, end: int, content: str, has_calls: bool) -> tuple[int, int | None]:
        """Return where the answer ends and where its stop tokens end."""
        stripped = start + len(text[start:end].rstrip())
        positions = list(self._before_stops(text, start, stripped))
        for position in reversed(positions):
            if find_content(text[start:position], content, has_calls) is not None:
                return position, self._stops_end(text, position, stripped)
        if positions:
            return positions[0], stripped
        following = self._stop.match(text, skip_space(text, end))
        # A template that closes its generation block before the stop token: the stop token is trained on all the same.
        if following and text[start:stripped].endswith(content.rstrip()):
            return end, following.end()
        found = text.rfind(content.strip(), start, stripped)  # the stop is ordinary text, such as "\n###"
        written = found + len(content.strip())
        return (written, stripped) if found >= 0 and text[written:stripped].strip() else (end, None)

    def _before_stops(self, text: str, start: int, end: int) -> Iterator[int]:
        """Yield the positions before the stop tokens at the end of a span, the last one first."""
        while token := next((token for token in self._stops if text.endswith(token, start, end)), None):
            yield end - len(token)
            end = start + len(text[start : end - len(token)].rstrip())

    def _stops_end(self, text: str, position: int, end: int) -> int:
        """Return the end of the stop tokens at `position`; marked ones may have spaces between them."""
        if self._template.marks_answers:
            return end
        while match := self._stop.match(text, position, end):
            position = match.end()
        return position

    def _is_generated(self, prefix: str, message: Message) -> bool:
        """Whether text before the answer is the model's own: thoughts, channels, calls; else it is a header."""
        thoughts = any(message.get(key) for key in (*REASONING_KEYS, "tool_calls"))
        return thoughts or "think>" in prefix or (bool(self._header) and self._stop.search(prefix) is not None)
