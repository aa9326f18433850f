"""The pages below `docs/` as their tests read them: sections, table rows, fenced blocks, words in backquotes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CHANGELOG.md"]

_CELL_BORDER = re.compile(r"(?<!\\)\|")


def text_of(name: str) -> str:
    """The text of a page of `docs/`."""
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    """What stands below the heading `title`, up to the next heading of its level or a higher one."""
    start = re.search(rf"^(#+) {re.escape(title)}$", text, re.MULTILINE)
    assert start is not None, f"no heading {title!r}"
    rest = text[start.end() :]
    end = re.search(rf"^#{{1,{len(start[1])}}} ", rest, re.MULTILINE)
    return rest if end is None else rest[: end.start()]


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every table row, headings and rules left out."""
    lines = text.splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        is_row = line.startswith("|") and not set(line) <= set("|-: ")
        is_heading = is_row and not above.startswith("|")
        if is_row and not is_heading:
            yield [cell.strip() for cell in _CELL_BORDER.split(line)[1:-1]]


def quoted(text: str) -> list[str]:
    """The words in backquotes, in order."""
    return re.findall(r"`([^`\n]+)`", text)


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
