"""Files of prompts: one per line, or objects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arctic_hydra.data.formats.messages import check_chat
from arctic_hydra.errors import DataError
from arctic_hydra.generation import prompt_file
from arctic_hydra.generation.prompt_file import read_prompts


def test_each_line_is_a_prompt(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text('One?\r\n\n{"prompt": 2}\u2028still two\n')
    found = read_prompts(path)
    assert [item.text for item in found] == ["One?", '{"prompt": 2}\u2028still two']
    assert found[1].row == {"prompt": '{"prompt": 2}\u2028still two'} and found[1].place.endswith("prompts.txt:3")


def test_a_byte_order_mark_is_no_part_of_the_first_prompt(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "One?"}', encoding="utf-8-sig")
    assert [item.text for item in read_prompts(tmp_path / "a.jsonl")] == ["One?"]


def test_objects_hold_a_prompt_or_messages(tmp_path):
    path = tmp_path / "prompts.jsonl"
    chat = '[{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]'
    path.write_text(f'{{"prompt": "One?"}}\n{{"id": 7, "messages": {chat}, "tools": [{{"name": "f"}}]}}\n')
    first, second = read_prompts(path)
    assert first.messages == [{"role": "user", "content": "One?"}] and first.tools is None
    assert [message["role"] for message in second.messages] == ["system", "user"] and second.row["id"] == 7
    assert second.tools == [{"type": "function", "function": {"name": "f"}}]
    with pytest.raises(DataError, match=r"prompts.jsonl:2: got messages, but the model has no chat template"):
        assert second.text


def test_messages_reach_the_template_as_those_of_training_do(tmp_path):
    """Parts of a text joined, arguments of calls as an object, no null values, and other spellings of the keys."""
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    said = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": None},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "3"},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        json.dumps({"messages": said}) + "\n" + json.dumps({"messages": [{"from": "human", "value": "hi"}]})
    )
    first, second = read_prompts(path)
    assert first.messages == check_chat([*said, {"role": "assistant", "content": "x"}]).messages[:-1]
    assert first.messages[0] == {"role": "user", "content": "ab"}
    assert first.messages[1]["tool_calls"][0]["function"]["arguments"] == {"x": 1}
    assert second.messages == [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", " \n", "has no prompts; expected one per line"),
        pytest.param("a.jsonl", '{"prompt":' + "[" * 100_000, "a.jsonl:1: JSON nested too deeply to read", id="nested"),
        ("a.jsonl", "{", r"a.jsonl:1 is not valid JSON \(.*\); expected an object with `prompt` or `messages`"),
        ("a.jsonl", "[]", "a.jsonl:1: expected an object with either `prompt`, a text, or `messages`"),
        ("a.jsonl", '{"prompt": "a", "messages": []}', "a.jsonl:1: expected an object with either"),
        ("a.jsonl", '{"prompt": 3}', "a.jsonl:1: prompt is int, expected a text"),
        (
            "a.jsonl",
            '{"messages": [{"role": "robot", "content": "a"}]}',
            "a.jsonl:1: message 0: role 'robot', expected",
        ),
        (
            "a.jsonl",
            '{"messages": [{"role": "assistant", "content": "a"}]}',
            "a.jsonl:1: the last message is an answer",
        ),
        ("absent.txt", None, "absent.txt cannot be read"),
    ],
)
def test_invalid_files_are_refused_with_their_line(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=f"prompts: .*{message}"):
        read_prompts(tmp_path / name)


def test_a_file_is_read_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(prompt_file, "MOST_CHARACTERS", 1000)
    with pytest.raises(DataError, match=r"^prompts: /dev/zero has more than 1,000 characters; expected a smaller file"):
        read_prompts(Path("/dev/zero"))
