"""What a row's columns mean: recognise the shape, check the values, and turn rows into chat messages.

Shapes are told by columns alone, in the order of `Shape`: a file with `instruction`, `output` and a ready-made `text`
is alpaca. Columns that a shape does not know are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mlora_sched.data.source import Record, parse_json
from mlora_sched.errors import shown

Message = dict[str, Any]


class Shape(StrEnum):
    """The row shapes, in the order in which they are looked for."""

    MESSAGES = "messages"
    SHAREGPT = "sharegpt"
    ALPACA = "alpaca"
    PROMPT_COMPLETION = "prompt/completion"
    TEXT = "text"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns a row of this shape must have."""
        return _COLUMNS[self]


_COLUMNS = {
    Shape.MESSAGES: ("messages",),
    Shape.SHAREGPT: ("conversations",),
    Shape.ALPACA: ("instruction", "output"),
    Shape.PROMPT_COMPLETION: ("prompt", "completion"),
    Shape.TEXT: ("text",),
}
_ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
_FUNCTION_CALL = "function_call"
_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class Conversation:
    """A row as a chat template takes it."""

    messages: tuple[Message, ...]
    tools: list[Any] | None


def recognise(records: Iterable[Record]) -> Iterator[tuple[Shape, Record]]:
    """Pair each record of one file with the file's shape, which its first row decides.

    Raises:
        DataError: unknown columns, or a row without a column of the shape.
    """
    shape: Shape | None = None
    for record in records:
        if shape is None:
            shape, first = _shape_of(record), record
        missing = [column for column in shape.columns if column not in record.values]
        if missing:
            found = ", ".join(sorted(record.values)) or "none"
            raise record.error(
                f"lacks the column {' and '.join(missing)} (columns here: {found}); the file is read as "
                f"{shape} like its line {first.line}, and every row of a file must have the same shape"
            )
        yield shape, record


def _shape_of(record: Record) -> Shape:
    for shape in Shape:
        if all(column in record.values for column in shape.columns):
            return shape
    known = "; ".join(f"{' + '.join(shape.columns)} ({shape})" for shape in Shape)
    found = ", ".join(sorted(record.values)) or "none"
    raise record.error(f"the columns {found} are of no known shape; known are {known}")


def text_of(record: Record, column: str) -> str:
    """The text of a column, empty when the row has none.

    Raises:
        DataError: the value is no text.
    """
    value = record.values.get(column, "")
    if not isinstance(value, str):
        raise record.error(f"{column}: {shown(value)} is {type(value).__name__}, not text; write it as a string")
    return value


def conversation(shape: Shape, record: Record) -> Conversation:
    """Turn a row of any shape but text into messages.

    Raises:
        DataError: the row is text, or a message is malformed.
    """
    if shape is Shape.ALPACA:
        question = "\n\n".join(filter(None, (text_of(record, "instruction"), text_of(record, "input"))))
        return _one_exchange(question, text_of(record, "output"))
    if shape is Shape.PROMPT_COMPLETION:
        return _one_exchange(text_of(record, "prompt"), text_of(record, "completion"))
    if shape is Shape.TEXT:
        raise record.error("plain text has no roles to fill a chat template with; set data.template: none")
    tools = _json_list(record, "tools") if record.values.get("tools") else None
    turns = _json_list(record, shape.columns[0])
    messages = [_message(record, index, turn) for index, turn in enumerate(turns)]
    if shape is Shape.SHAREGPT and text_of(record, "system"):
        messages.insert(0, {"role": "system", "content": text_of(record, "system")})
    if not messages:
        raise record.error(f"{shape.columns[0]} is empty; a conversation needs at least one turn")
    return Conversation(tuple(messages), tools)


def _one_exchange(question: str, answer: str) -> Conversation:
    return Conversation(({"role": "user", "content": question}, {"role": "assistant", "content": answer}), None)


def _json_list(record: Record, column: str) -> list[Any]:
    """A list, also when it is written as JSON text (csv has nothing else)."""
    value = record.values[column]
    if isinstance(value, str):
        value = _json(record, column, value)
    if not isinstance(value, list):
        raise record.error(f"{column}: is {type(value).__name__}, not a list")
    return value


def _json(record: Record, where: str, text: str) -> Any:
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        raise record.error(f"{where}: {shown(text)} is not JSON: {error.msg}") from None
    except RecursionError:
        raise record.error(f"{where}: is nested too deeply") from None


def _message(record: Record, index: int, turn: object) -> Message:
    where = f"message {index + 1}"
    if not isinstance(turn, dict):
        raise record.error(f"{where}: is {type(turn).__name__}, not an object with role and content")
    given = {key: value for key, value in turn.items() if value is not None}
    role_key, content_key = ("role", "content") if "role" in given else ("from", "value")
    if role_key not in given:
        raise record.error(f"{where}: names no speaker; it needs role and content, or from and value")
    role = given.pop(role_key)
    content = given.pop(content_key, None)
    if role == _FUNCTION_CALL:
        return _function_call(record, where, content)
    if role not in _ROLES:
        raise record.error(f"{where}: the role {role!r} is none of {', '.join([*_ROLES, _FUNCTION_CALL])}")
    message: Message = {"role": _ROLES[role], **given}
    if content is not None:
        message["content"] = _content(record, where, content)
    if "tool_calls" in message:
        message["tool_calls"] = _tool_calls(record, where, message["tool_calls"])
    if "content" not in message and not message.get("tool_calls"):
        raise record.error(f"{where} ({role}): has neither {content_key} nor tool_calls")
    return _with_reasoning(message)


def _content(record: Record, where: str, content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    if len(texts) != len(parts) or not all(isinstance(text, str) for text in texts):
        raise record.error(f"{where}: content {shown(content)} is not text; images and other media cannot be trained")
    return "".join(str(text) for text in texts)


def _tool_calls(record: Record, where: str, calls: object) -> list[Message]:
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise record.error(f"{where}: tool_calls is not a list of objects")
    return [_tool_call(record, where, call) for call in calls]


def _tool_call(record: Record, where: str, call: Mapping[str, Any]) -> Message:
    """Arguments may come as JSON text (OpenAI's form); templates print objects, so text would be quoted twice."""
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise record.error(f"{where}: the tool call {shown(call)} has no function name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _json(record, f"{where}: tool call {function['name']}: arguments", arguments)
    function = {**function, "arguments": arguments}
    return {**call, "function": function} if "function" in call else function


def _function_call(record: Record, where: str, content: object) -> Message:
    call = _json(record, where, content) if isinstance(content, str) else content
    if not isinstance(call, dict):
        raise record.error(f"{where}: a {_FUNCTION_CALL} is a JSON object with name and arguments")
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": _tool_call(record, where, call)}],
    }


def _with_reasoning(message: Message) -> Message:
    """Reasoning goes by three names; templates read one of two. Give it under both, as transformers does."""
    reasoning = next((message[name] for name in _REASONING if name in message), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}
