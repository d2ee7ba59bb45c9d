"""Locates the text that the model generates in a rendered chat: each turn from the end of its header to its stop token."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from arctic_hydra.data.encode.completeness import (
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
from arctic_hydra.data.encode.skeleton import (
    PROBE,
    Skeleton,
    before_partial_tag,
    constant_header,
    is_plain,
    reasoning_key,
    roles_key,
    shared_prefix,
    with_placeholders,
)
from arctic_hydra.data.encode.spans import Span
from arctic_hydra.data.encode.template import ChatTemplate, suppress_template_errors
from arctic_hydra.data.formats.messages import REASONING_KEYS, Chat, Message, RowProblem

_MAX_SKELETONS = 4096


@dataclass(frozen=True)
class Turn:
    """One turn, as positions in the characters of a rendered chat."""

    start: int
    body_end: int
    """End of the content: the start of the stop token, or of the white space before it."""
    stop_end: int


class TurnFinder:
    """Finds the turns in chats that one template rendered."""

    def __init__(self, template: ChatTemplate, stops: Sequence[str], eot_tokens: Sequence[str]) -> None:
        """Take the tokens that may end a turn (`stops`), and those among them that come from `data.eot_tokens`."""
        self._template = template
        self._stops = sorted(stops, key=lambda token: (-len(token), token))
        self._stop = re.compile("|".join(map(re.escape, self._stops)) or r"(?!)")
        self._eot_tokens = frozenset(eot_tokens)
        self._skeletons: dict[Any, Skeleton] = {}
        self._trailing_header = ""  # written after every chat, by some templates
        self._header = self._generation_header()
        if not self._header:
            asked, answered = self._try_render(PROBE[:1], None), self._try_render(PROBE, None)
            self._header = self._trailing_header = constant_header(asked or "", answered or "", self._stop)

    def find(self, chat: Chat, text: str, tagged: list[Span], selected: Sequence[int]) -> list[Turn]:
        """Return the selected turns of a rendered chat; raises RowProblem if one is missing or cannot be located."""
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
        """Return what `add_generation_prompt` adds to a chat; empty if the template ignores it or cannot be probed."""
        plain, prompt = self._try_render(PROBE[:1], None, False), self._try_render(PROBE[:1], None, True)
        return prompt[len(plain) :] if plain is not None and prompt is not None and prompt.startswith(plain) else ""

    def _try_render(self, messages: list[Message], tools: list[Any] | None, generate: bool = False) -> str | None:
        """Return the rendered messages; None if the template raises, as some do for a chat without an answer."""
        with suppress_template_errors():
            text = self._template.render([messages], tools, generate)[0].text
            return text if generate else text.removesuffix(self._trailing_header)
        return None

    def _match_skeleton(self, chat: Chat, text: str) -> tuple[Skeleton, list[Span]]:
        """Return a skeleton that matches the rendered chat, with as many placeholders as possible, and the spans of its slots."""
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
        if not self._template.marks_answers:
            # A template may render some contents differently, such as empty ones: these get no placeholder.
            plain = [index for index in every if is_plain(chat.messages[index])]
            attempts = [every, plain] if key is None and len(plain) < len(every) else [plain]
            for attempt in attempts:
                skeleton = self._make_skeleton(chat, attempt)
                if (slot_spans := skeleton.fill(text, chat.messages)) is not None:
                    return skeleton, slot_spans
        return Skeleton(chat.messages, text, placeholders=False), []

    def _make_skeleton(self, chat: Chat, indices: Sequence[int]) -> Skeleton:
        messages = list(chat.messages)
        for index in indices:
            messages[index] = with_placeholders(messages[index], index)
        skeleton = Skeleton(messages, self._try_render(messages, chat.tools) or "")
        return skeleton if skeleton.is_unambiguous else Skeleton(messages, "", placeholders=False)

    def _tagged_turns(
        self, chat: Chat, text: str, tagged: list[Span], skeleton: Skeleton, content_spans: dict[int, Span]
    ) -> dict[int, Turn]:
        """Return the turn of each assistant message, by index, from the spans of `{% generation %}`."""
        answers = [index for index, message in enumerate(chat.messages) if message["role"] == "assistant"]
        blocks: list[Span] = []
        for first, last in tagged:  # a turn may consist of adjacent blocks
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
            if stop_end == content[1]:  # the block ends before the stop token, which is supervised all the same
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
        """Return a turn without `{% generation %}`."""
        message = chat.messages[index]
        is_answer = message["role"] == "assistant"
        start_position = self._turn_start(chat, skeleton, index) if is_answer or index not in content_spans else None
        if index not in content_spans or message.get("tool_calls"):
            end_position = None if start_position is None else self._turn_end(chat, skeleton, index, start_position)
            if start_position is None or end_position is None:
                raise unlocated_turn(index, message)
            span = (skeleton.map_position(start_position, slot_spans), skeleton.map_position(end_position, slot_spans))
            return self._turn_in_span(text, span, message, index)
        content = content_spans[index]
        stop_end = self._stop_after(chat, text, skeleton, content[1], index)
        if not is_answer:
            return Turn(content[0], content[1], stop_end)
        if start_position is None:
            if self._header or reasoning_key(message):
                raise unlocated_turn(index, message)
            return Turn(content[0], content[1], stop_end)
        start = self._after_header(text, skeleton.map_position(start_position, slot_spans), content[0])
        prefix = text[start : content[0]]
        is_header = prefix.strip() and not self._is_generated(prefix, message)
        return Turn(content[0] if is_header else start, content[1], stop_end)

    def _turn_start(self, chat: Chat, skeleton: Skeleton, index: int) -> int | None:
        """Return the position in the skeleton at which generation of message `index` starts; None if unknown."""
        if index not in skeleton.starts:
            skeleton.starts[index] = self._find_start(chat, skeleton, index)
        return skeleton.starts[index]

    def _find_start(self, chat: Chat, skeleton: Skeleton, index: int) -> int | None:
        is_answer = skeleton.messages[index]["role"] == "assistant"
        if not index:  # the template may write a default system message first
            return self._after_last_header(skeleton, index) if is_answer and self._header else 0
        before = skeleton.messages[:index]
        prompt = self._try_render(before, chat.tools, is_answer)
        if prompt is None or not is_answer:
            return len(prompt) if prompt is not None and skeleton.text.startswith(prompt) else None
        if skeleton.text.startswith(prompt):
            return len(prompt)
        # Some templates open a thinking block in the generation prompt, but render answers without one.
        shared = shared_prefix(prompt, skeleton.text)
        slot = self._first_slot(skeleton, index)
        if slot is None or slot[0] != shared:
            shared = before_partial_tag(prompt, shared)
        unprompted = self._try_render(before, chat.tools) or ""
        if unprompted and shared > len(unprompted) and prompt.startswith(unprompted) and not prompt[shared].isalnum():
            thought = prompt.find("<think", len(unprompted), shared)
            return shared if thought < 0 else thought  # the prompt opens an empty thinking block, the answer has none
        return self._after_last_header(skeleton, index)

    def _after_last_header(self, skeleton: Skeleton, index: int) -> int | None:
        """Return the end of the header of message `index`, searched for between it and the message before.

        For templates that render the turns before an answer differently in its generation prompt.
        """
        previous, slot = skeleton.spans.get(("c", index - 1)), self._first_slot(skeleton, index)
        for header in (self._header, self._header.split("<think>")[0]):
            if not header.strip():
                continue
            if slot is not None:
                low = max((end for (_, other), (_, end) in skeleton.spans.items() if other < index), default=0)
                found = skeleton.text.rfind(header, low, slot[0])
            else:
                previous_end = 0 if not index else previous and previous[1]
                found = skeleton.text.find(header, previous_end) if previous_end is not None else -1
            if found >= 0:
                return found + len(header)
        return None

    @staticmethod
    def _first_slot(skeleton: Skeleton, index: int) -> Span | None:
        """Return the span of the first slot of a message."""
        return skeleton.spans.get(("t", index)) or skeleton.spans.get(("c", index))

    def _turn_end(self, chat: Chat, skeleton: Skeleton, index: int, start: int) -> int | None:
        """Return the end of message `index`, which starts at `start`, in the skeleton; None if unknown."""
        if index + 1 == len(skeleton.messages):
            return len(skeleton.text)
        as_last = self._try_render(skeleton.messages[: index + 1], chat.tools)
        if as_last is None or skeleton.text.startswith(as_last):
            return None if as_last is None else len(as_last)
        # Some templates write a thinking block in the last turn only: compare what follows it.
        if as_last[:start] == skeleton.text[:start]:
            turn = as_last[start:]
        elif self._header and self._header in as_last:
            turn = as_last[as_last.rfind(self._header) + len(self._header) :]
        else:
            return None
        for first in range(len(turn.rstrip())):
            if skeleton.text.startswith(turn[first:], start):
                return start + len(turn) - first
        return None

    def _stop_after(self, chat: Chat, text: str, skeleton: Skeleton, position: int, index: int) -> int:
        """Return the end of the stop tokens after an answer that ends at `position`; raises RowProblem if there are none.

        Text belongs to the turn if it also follows the answer when the chat ends with this turn; other text opens the
        next turn.
        """
        if index not in skeleton.ends:
            skeleton.ends[index] = self._find_closing(chat, skeleton, index)
        shared, closing = skeleton.ends[index]
        first = self._stop.match(text, skip_space(text, position))
        if first is None:
            stop_text = closing.rstrip()  # the turn ends in ordinary text, such as "\n###"
            if stop_text and shared >= len(stop_text) and self._is_stop(stop_text):
                return position + len(stop_text)
            if stop_text:
                raise changed_answer(
                    index, chat.messages[index]["content"], text[position - 20 : position + len(stop_text)]
                )
            raise no_stop_token(index)
        if not self._stop.match(closing, skip_space(closing, 0)) and first[0] not in self._eot_tokens:
            raise no_stop_token(index)  # it opens the next turn
        end = first.end()
        while (more := self._stop.match(text, end)) and more.end() <= position + shared:
            end = more.end()
        return end

    def _find_closing(self, chat: Chat, skeleton: Skeleton, index: int) -> tuple[int, str]:
        """Return how many characters follow a content here as they do when its message ends the chat, and what follows then."""
        rest = skeleton.text[skeleton.spans["c", index][1] :]
        if index + 1 == len(skeleton.messages):
            return len(rest), rest
        as_last = self._try_render(skeleton.messages[: index + 1], chat.tools)
        if as_last is None:
            return 0, rest
        closing = as_last.rpartition(skeleton.messages[index]["content"])[2]
        return shared_prefix(rest, closing), closing

    def _is_stop(self, text: str) -> bool:
        """Whether a text consists of stop tokens only, or contains none, as ordinary text that ends a turn."""
        return not self._stop.sub("", text).strip() or self._stop.search(text) is None

    def _after_header(self, text: str, start: int, end: int) -> int:
        """Return the end of the header at `start`; `start` itself if there is none."""
        header = self._header
        if not header:
            return start
        if text.startswith(header, start) and start + len(header) <= end:
            return start + len(header)
        space = header[len(header.rstrip()) :]  # a generation block may start before this white space
        if space and text.startswith(space, start, end) and text.endswith(header.rstrip(), 0, start):
            return start + len(space)
        # The header may open a thinking block that this answer does not have.
        shared = before_partial_tag(header, shared_prefix(header, text[start : min(start + len(header), end)]))
        first = self._stop.match(header)
        return start + shared if first is not None and first.end() <= shared else start

    def _turn_in_span(self, text: str, span: Span, message: Message, index: int) -> Turn:
        """Return the turn within a span, for a message whose content is not located yet."""
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
            early = body_end - len(content.strip())  # header and answer open the same thinking block
            if has_calls or not start - len(self._header) <= early < start or text[early:body_end] != content.strip():
                raise changed_answer(index, content, body)
            return Turn(early, body_end, stop_end)
        prefix = body[:position]
        if not is_answer or (prefix.strip() and not self._is_generated(prefix, message)):
            start += position
        return Turn(start, body_end, stop_end)

    def _split_stop(self, text: str, start: int, end: int, content: str, has_calls: bool) -> tuple[int, int | None]:
        """Return the end of the answer and the end of its stop tokens; None for the latter if there are none."""
        stripped = start + len(text[start:end].rstrip())
        positions = list(self._before_stops(text, start, stripped))
        for position in reversed(positions):
            if find_content(text[start:position], content, has_calls) is not None:
                return position, self._stops_end(text, position, stripped)
        if positions:
            return positions[0], stripped
        following = self._stop.match(text, skip_space(text, end))
        # The generation block ends before the stop token, which is supervised all the same.
        if following and text[start:stripped].endswith(content.rstrip()):
            return end, following.end()
        found = text.rfind(content.strip(), start, stripped)  # the turn ends in ordinary text, such as "\n###"
        written = found + len(content.strip())
        return (written, stripped) if found >= 0 and text[written:stripped].strip() else (end, None)

    def _before_stops(self, text: str, start: int, end: int) -> Iterator[int]:
        """Yield the start of each stop token at the end of a span, from the last to the first."""
        while token := next((token for token in self._stops if text.endswith(token, start, end)), None):
            yield end - len(token)
            end = start + len(text[start : end - len(token)].rstrip())

    def _stops_end(self, text: str, position: int, end: int) -> int:
        """Return the end of the run of stop tokens at `position`; within a generation block, white space may separate them."""
        if self._template.marks_answers:
            return end
        while match := self._stop.match(text, position, end):
            position = match.end()
        return position

    def _is_generated(self, prefix: str, message: Message) -> bool:
        """Whether text before the answer is generated (reasoning, channels, tool calls) rather than a header."""
        has_more = any(message.get(key) for key in (*REASONING_KEYS, "tool_calls"))
        return has_more or "think>" in prefix or (bool(self._header) and self._stop.search(prefix) is not None)
