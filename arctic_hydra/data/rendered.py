"""A rendered chat beside its messages: whether all of them are there, and where an answer begins."""

from __future__ import annotations

import json

from arctic_hydra.data.messages import Chat, RowProblem


def check_complete(chat: Chat, text: str) -> None:
    """Raise RowProblem when the template left a turn or the tools out, or wrote the user's turns in another order."""
    place = 0
    for index, message in enumerate(chat.messages):
        role, calls = message["role"], message.get("tool_calls") or ()
        if role == "assistant" and not calls:
            continue  # its answer is located and compared
        content = (message.get("content") or "").strip()
        found = text.find(content, place if role == "user" else 0) if role != "assistant" else 0
        if found < 0 and role == "tool":  # some templates write a tool's answer as JSON
            found = text.find(json.dumps(content, ensure_ascii=False)[1:-1])
        if found < 0 or (calls and not all(call.get("function", call).get("name", "") in text for call in calls)):
            raise RowProblem(
                "template",
                f"message {index}: the chat template leaves this {role} turn out, or changes or moves it; got "
                f"{short(content)}, expected it in the rendered chat; pass tokenizer.chat_template=<file>",
            )
        if role == "user":
            place = found + len(content)
    if chat.tools and not all(str(tool.get("function", tool).get("name", "")) in text for tool in chat.tools):
        raise RowProblem(
            "template",
            "the chat template leaves the tools out, so the model would be trained on calls that it cannot know of; "
            "pass tokenizer.chat_template=<file> with a template that writes `tools`",
        )


def answer_place(body: str, content: str, has_calls: bool) -> int | None:
    """Return where `content` begins in what was rendered, spaces around it aside; None if it is not there."""
    if body.endswith(content):
        return len(body) - len(content)
    for answer, rendered in ((content.strip(), body.rstrip()), (content.lstrip(), body)):
        if rendered.endswith(answer):
            return len(rendered) - len(answer)
    if has_calls:  # calls follow the text
        place = body.find(content.strip())
        return place if place >= 0 else None
    return None


def skip_space(text: str, place: int) -> int:
    """Return the first place from `place` on that is no white space, or the end."""
    while place < len(text) and text[place].isspace():
        place += 1
    return place


def short(text: str) -> str:
    """Return a text for an error: quoted, and without its middle where it is long."""
    return repr(text if len(text) <= 60 else f"{text[:40]}...{text[-15:]}")
