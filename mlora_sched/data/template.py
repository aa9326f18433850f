"""One row → text, and which of its characters carry loss.

A *layout* is what `data.template` asks for: the tokenizer's chat template, the Alpaca prompt, plain concatenation, or a
Jinja file of the user. Tokens are `encode`'s business.

Where a chat template marks no answers itself (`{% generation %}`), an assistant turn is located by two renders: the
conversation before it with the generation prompt, and the conversation up to it. Both must be prefixes of the whole
text, else what the model would see at that turn differs from what it is trained on, and the row is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlora_sched.data.jinja import Rendered, Span, Template, TemplateFault
from mlora_sched.data.plain import AlpacaLayout, LaidOut, Layout, PlainLayout, chosen
from mlora_sched.data.shapes import Conversation, Message, Shape, conversation
from mlora_sched.data.source import Record
from mlora_sched.errors import DataError
from mlora_sched.spec.data import DataSpec, TrainOn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK_OR_ALL = "wrap what the model is to write in {% generation %} … {% endgeneration %}, or set data.train_on: all"
_UNSTABLE_REMEDY = (
    "train_on: last, a template file with {% generation %} blocks, or one row for each answer would make it trainable"
)


def choose_layout(data: DataSpec, files: Mapping[str, Path], tokenizer: PreTrainedTokenizerBase) -> Layout:
    """The layout that a spec asks for.

    Args:
        data: the job's data section.
        files: local path of each file by its name in the spec; needed for a template file only.
        tokenizer: the base's.

    Raises:
        DataError: the template file is missing or is no template, or there is no chat template to use.
    """
    if data.template_file is not None:
        return _file_layout(data.template_file, files[data.template_file], tokenizer, data.train_on)
    if data.template == "alpaca":
        return AlpacaLayout(data.train_on)
    if data.template == "none":
        return PlainLayout(data.train_on)
    if tokenizer.chat_template:
        chat = _base_chat_layout(tokenizer, data.train_on)
        return chat if data.template == "chat" else AutoLayout(chat, data.train_on)
    if data.template == "chat":
        raise DataError(
            "data.template: chat, but the base's tokenizer has no chat template; "
            "use alpaca or none, or name a .jinja file that lays out messages"
        )
    return AutoLayout(None, data.train_on)


def _file_layout(name: str, path: Path, tokenizer: PreTrainedTokenizerBase, train_on: TrainOn) -> Layout:
    try:
        template = Template(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError("there is no such template file", file=name) from None
    except UnicodeDecodeError:
        raise DataError("the template is not UTF-8", file=name) from None
    except TemplateFault as fault:
        raise DataError(str(fault), file=name) from None
    if "messages" in template.variables:
        return ChatLayout(template, tokenizer, train_on)
    if train_on != "all" and not template.marks_answers:
        raise DataError(f"prints columns but marks no answer; {_MARK_OR_ALL}", file=name)
    return ColumnsLayout(template, name, tokenizer.special_tokens_map, train_on)


def _base_chat_layout(tokenizer: PreTrainedTokenizerBase, train_on: TrainOn) -> ChatLayout:
    try:
        source = tokenizer.get_chat_template()
        return ChatLayout(Template(source), tokenizer, train_on)
    except ValueError as error:  # several named templates and none is the default
        raise DataError(f"the base's tokenizer offers no default chat template: {error}") from None
    except TemplateFault as fault:
        raise DataError(f"the base's chat template {fault}") from None


class AutoLayout:
    """The chat template where there is one and the row has roles, else by shape."""

    needs_shape = True

    def __init__(self, chat: ChatLayout | None, train_on: TrainOn) -> None:
        self._chat = chat
        self._alpaca = AlpacaLayout(train_on)
        self._plain = PlainLayout(train_on)

    def lay_out(self, shape: Shape | None, record: Record, /) -> LaidOut:
        if self._chat is not None and shape is not Shape.TEXT:
            return self._chat.lay_out(shape, record)
        if shape in (Shape.MESSAGES, Shape.SHAREGPT):
            raise record.error(
                "a conversation needs a chat template and the base's tokenizer has none; "
                "name a .jinja file that lays out messages in data.template"
            )
        return (self._alpaca if shape is Shape.ALPACA else self._plain).lay_out(shape, record)


class ColumnsLayout:
    """A user's Jinja file that prints the row's columns and marks its answers."""

    needs_shape = False

    def __init__(self, template: Template, name: str, special_tokens: Mapping[str, Any], train_on: TrainOn) -> None:
        self._template = template
        self._name = name
        self._special_tokens = dict(special_tokens)
        self._train_on = train_on
        self._required = template.variables - template.optional_variables - self._special_tokens.keys()

    def lay_out(self, _shape: Shape | None, record: Record, /) -> LaidOut:
        missing = sorted(self._required - record.values.keys())
        if missing:
            raise record.error(
                f"lacks the column {' and '.join(missing)} that {self._name} prints; add it to the row, "
                f"or guard it with {{% if {missing[0]} is defined %}}"
            )
        try:
            rendered = self._template.render({**self._special_tokens, **record.values})
        except TemplateFault as fault:
            raise record.error(f"{self._name}: {fault}") from None
        return LaidOut(rendered.text, chosen(rendered.answers, self._train_on), complete=False)


class ChatLayout:
    """A chat template over the row's messages: the tokenizer's own, or a user's file that reads `messages`."""

    needs_shape = True

    def __init__(self, template: Template, tokenizer: PreTrainedTokenizerBase, train_on: TrainOn) -> None:
        self._template = template
        self._special_tokens: dict[str, Any] = dict(tokenizer.special_tokens_map)
        self._end_tokens = tuple(tokenizer.get_added_vocab())
        self._train_on = train_on

    def lay_out(self, shape: Shape | None, record: Record, /) -> LaidOut:
        assert shape is not None
        chat = conversation(shape, record)
        rendered = self._render(chat, chat.messages, record)
        _require_all_shown(chat.messages, rendered.text, record)
        return LaidOut(rendered.text, self._answers(chat, rendered, record), complete=True)

    def _answers(self, chat: Conversation, rendered: Rendered, record: Record) -> tuple[Span, ...] | None:
        if self._train_on == "all":
            return None
        turns = [index for index, message in enumerate(chat.messages) if message["role"] == "assistant"]
        if not turns:
            raise record.error("no assistant turn, so no token carries loss; add one, or set data.train_on: all")
        if self._train_on == "last":
            turns = turns[-1:]
        if self._template.marks_answers:
            return self._marked_since(turns[0], chat, rendered, record)
        return tuple(self._turn(index, chat, rendered.text, record) for index in turns)

    def _marked_since(self, first: int, chat: Conversation, rendered: Rendered, record: Record) -> tuple[Span, ...]:
        """The marked answers of the turns from `first` on; a turn may hold several blocks, or none."""
        if self._train_on == "answers" or first == 0:
            return rendered.answers
        before = self._render(chat, chat.messages[:first], record)
        return rendered.answers[len(before.answers) :]

    def _turn(self, index: int, chat: Conversation, text: str, record: Record) -> Span:
        """What the model writes at an assistant turn: from the generation prompt's end through the end token."""
        if index == 0:
            raise record.error(
                "begins with an assistant turn, which no prompt leads to; begin with a user or system message"
            )
        prompt = self._text(chat, chat.messages[:index], record, prompting=True)
        through = self._text(chat, chat.messages[: index + 1], record)
        if not text.startswith(through):
            # Some formats (Phi-3) close every conversation with EOS, and so this one that was cut short.
            through = through.removesuffix(self._special_tokens.get("eos_token", ""))
        if not text.startswith(prompt) or not text.startswith(through):
            raise record.error(
                f"the chat template is not prefix-stable: at message {index + 1} (assistant) it writes other text when "
                f"the conversation ends there than when it goes on; {_UNSTABLE_REMEDY}"
            )
        return self._through_end_token(text, Span(len(prompt), max(len(prompt), len(through))))

    def _through_end_token(self, text: str, span: Span) -> Span:
        """Leave out the line break that a template writes after the end token: the model stops before it."""
        answer = text[span.start : span.stop].rstrip()
        return Span(span.start, span.start + len(answer)) if answer.endswith(self._end_tokens) else span

    def _text(self, chat: Conversation, messages: Sequence[Message], record: Record, *, prompting: bool = False) -> str:
        try:
            return self._template.text(self._variables(chat, messages, prompting=prompting))
        except TemplateFault as fault:
            raise record.error(str(fault)) from None

    def _render(self, chat: Conversation, messages: Sequence[Message], record: Record) -> Rendered:
        try:
            return self._template.render(self._variables(chat, messages, prompting=False))
        except TemplateFault as fault:
            raise record.error(str(fault)) from None

    def _variables(self, chat: Conversation, messages: Sequence[Message], *, prompting: bool) -> dict[str, Any]:
        return {
            **self._special_tokens,
            "messages": list(messages),
            "tools": chat.tools,
            "documents": None,
            "add_generation_prompt": prompting,
        }


def _require_all_shown(messages: Sequence[Message], text: str, record: Record) -> None:
    """Templates pass over roles they do not know; an instruction that the model never sees must not go unnoticed.

    Assistant and tool messages are exempt: templates rewrite them (reasoning, JSON) on purpose.
    """
    for index, message in enumerate(messages):
        shown = message["role"] in ("assistant", "tool") or message.get("content", "").strip() in text
        if not shown:
            raise record.error(
                f"the chat template leaves out message {index + 1} ({message['role']}); "
                "use a role that it knows, or another template"
            )
