"""`docs/cli.md` has every verb and every option, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click
import pytest

from docs.pages import quoted, rows, section, text_of
from mlora_sched import errors
from mlora_sched.cli.main import cli

PAGE = text_of("cli.md")


def verbs(command: click.Command = cli, path: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, with its words."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        yield from verbs(found, f"{path} {name}".strip())


VERBS = dict(verbs())


def options(command: click.Command) -> set[str]:
    return {opt for param in command.params if isinstance(param, click.Option) for opt in param.opts} - {"--help", "-h"}


def described(path: str) -> dict[str, str]:
    """The options in a verb's table, with what is said of each."""
    return {
        text.split()[0]: cells[1]
        for cells in rows(section(PAGE, path))
        for text in quoted(cells[0])
        if text.startswith("-")
    }


def test_every_verb_has_its_section_and_no_other() -> None:
    assert sorted(re.findall(r"^### (.+)$", PAGE, re.MULTILINE)) == sorted(VERBS)


@pytest.mark.parametrize("path", VERBS)
def test_every_option_is_described_and_no_other(path: str) -> None:
    assert sorted(described(path)) == sorted(options(VERBS[path]))


@pytest.mark.parametrize("path", VERBS)
def test_the_call_names_the_arguments(path: str) -> None:
    arguments = [param for param in VERBS[path].params if isinstance(param, click.Argument)]
    call = " ".join(["mlora-sched", path, *(argument.metavar or str(argument.name).upper() for argument in arguments)])
    assert f"`{call}`" in section(PAGE, path)


@pytest.mark.parametrize("path", VERBS)
def test_required_options_and_plain_defaults_are_named(path: str) -> None:
    for param in VERBS[path].params:
        if not isinstance(param, click.Option) or param.opts[-1] not in described(path):
            continue
        text = described(path)[param.opts[-1]]
        if param.required:
            assert text.startswith("Required."), param.opts
        if param.show_default is True and not text.startswith("As for "):
            assert str(param.default) in text, param.opts


def test_exit_codes_are_those_of_the_errors() -> None:
    table = {int(cells[0]) for cells in rows(section(PAGE, "For all verbs")) if cells[0].isdecimal()}
    tree = [errors.MloraError]
    for kind in tree:
        tree += kind.__subclasses__()
    assert table == {0, errors.EXIT_INTERRUPTED} | {kind.exit_code for kind in tree}
