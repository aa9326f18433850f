"""Render Jinja templates in a sandbox and find which characters `{% generation %}` blocks wrote.

The sandbox offers what transformers' chat templates may use (loop controls, `tojson`, `raise_exception`,
`strftime_now`, `namespace`, `dict`), with one difference: the clock stands still, so that the same data gives the same
tokens on any day. Python's sandbox keeps a template from the interpreter; it does not bound time or memory.
"""

from __future__ import annotations

import datetime
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.utils
from jinja2.sandbox import ImmutableSandboxedEnvironment

TEMPLATE_DATE = datetime.datetime(2024, 7, 26)
"""What `strftime_now` tells: the date that the Llama-3 templates themselves fall back to."""

_RENDER_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError)


class Span(NamedTuple):
    """Characters [start, stop) of a rendered text."""

    start: int
    stop: int


@dataclass(frozen=True)
class Rendered:
    """A text and the characters that the model is to learn to write, in order, not overlapping."""

    text: str
    answers: tuple[Span, ...]


class TemplateFault(Exception):
    """A template does not compile or cannot render a row; the caller adds file and line."""


class Template:
    """A compiled template.

    Args:
        source: Jinja text.

    Attributes:
        marks_answers: whether it has `{% generation %}` blocks.
        variables: names it reads and does not set itself.
        optional_variables: those it asks for with `is defined` or `is undefined`.

    Raises:
        TemplateFault: the text is no valid template.
    """

    def __init__(self, source: str) -> None:
        nonce = secrets.token_hex(8)  # no row can hold the marks, and they never leave `render`
        self._open, self._close = f"\x02{nonce}(", f"\x02{nonce})"
        plain = _environment("", "")
        try:
            tree = plain.parse(source)
            self._plain = plain.from_string(source)
            self._marked = _environment(self._open, self._close).from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise TemplateFault(f"is no valid template: {error}") from None
        self.marks_answers = any(
            node.name == _Generation.method for node in tree.find_all(jinja2.nodes.ExtensionAttribute)
        )
        self.variables = frozenset(jinja2.meta.find_undeclared_variables(tree)) - plain.globals.keys()
        self.optional_variables = _tested_for_definedness(tree)

    def text(self, variables: Mapping[str, Any]) -> str:
        """Render without looking for answers.

        Raises:
            TemplateFault: the template cannot be filled with these variables.
        """
        return _render(self._plain, variables)

    def render(self, variables: Mapping[str, Any]) -> Rendered:
        """Render and locate what `{% generation %}` blocks wrote.

        Raises:
            TemplateFault: as `text`; or filters of the template took a marked block apart.
        """
        text = _render(self._plain, variables)
        if not self.marks_answers:
            return Rendered(text, ())
        stripped, answers = self._take_out_marks(_render(self._marked, variables))
        if stripped != text:
            raise TemplateFault("changes the text of a {% generation %} block after writing it; move the filter inside")
        return Rendered(text, answers)

    def _take_out_marks(self, marked: str) -> tuple[str, tuple[Span, ...]]:
        text, answers = "", []
        before, *blocks = marked.split(self._open)
        text = before
        for block in blocks:
            answer, mark, after = block.partition(self._close)
            if not mark or self._close in after:
                raise TemplateFault("nests {% generation %} blocks, or cuts one; each answer needs one block")
            answers.append(Span(len(text), len(text) + len(answer)))
            text += answer + after
        return text, tuple(answers)


def _render(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    try:
        return template.render(variables)
    except RecursionError:
        raise TemplateFault("the template recurses without end") from None
    except _RENDER_ERRORS as error:
        raise TemplateFault(f"the template refuses this row: {error}") from None


def _tested_for_definedness(tree: jinja2.nodes.Template) -> frozenset[str]:
    tests = (test for test in tree.find_all(jinja2.nodes.Test) if test.name in ("defined", "undefined"))
    return frozenset(test.node.name for test in tests if isinstance(test.node, jinja2.nodes.Name))


class _Generation(jinja2.ext.Extension):
    """The `{% generation %}` tag: writes its body between the environment's two marks."""

    tags = {"generation"}  # noqa: RUF012 (the base class declares it so)
    method = "_between_marks"

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method(self.method), [], [], body).set_lineno(line)

    def _between_marks(self, caller: jinja2.runtime.Macro) -> str:
        return f"{self.environment.globals[_OPEN]}{caller()}{self.environment.globals[_CLOSE]}"


_OPEN, _CLOSE = "generation mark (", "generation mark )"  # no identifiers: a template cannot name them


class _Namespace(jinja2.utils.Namespace):
    """Jinja's `namespace()` without underscored names, which could reach into the interpreter."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"namespace attribute {name!r} begins with an underscore")
        super().__setitem__(name, value)


def _environment(open_mark: str, close_mark: str) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_raise, strftime_now=TEMPLATE_DATE.strftime, dict=_make_dict, namespace=_namespace
    )
    environment.globals[_OPEN] = open_mark
    environment.globals[_CLOSE] = close_mark
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter it escapes nothing for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _make_dict(*args: Any, **items: Any) -> dict[Any, Any]:
    return dict(*args, **items)


def _namespace(*args: Any, **items: Any) -> _Namespace:
    names = [str(name) for name in dict(*args, **items)]
    if any(name.startswith("_") for name in names):
        raise jinja2.exceptions.SecurityError("namespace attributes must not begin with an underscore")
    return _Namespace(*args, **items)
