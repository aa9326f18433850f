"""Disks that fail at an operation, that remember their operations, and what a crash may leave of those.

The model of a crash is pessimistic and small. Names of a directory are on the disk up to any point between its last
sync and now, each directory for itself; a change of names is there or not, a rename in one directory both of its
names. A file that was not synced since it was written is as it was, or half written, or whole.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mlora_sched.files import Disk

Tree = Mapping[str, "bytes | Tree"]
Fate = Literal["lost", "torn", "whole"]


class FaultyDisk(Disk):
    """Refuses `count` operations from number `first` (1-based) on; none with `first` 0."""

    def __init__(self, first: int = 0, error: int = errno.EIO, count: int = 1) -> None:
        self.done = 0
        self._refused = range(first, first + count) if first else range(0)
        self._error = error

    def _next(self, path: Path) -> None:
        self.done += 1
        if self.done in self._refused:
            raise OSError(self._error, os.strerror(self._error), str(path))

    def make(self, folder: Path, mode: int = 0o777) -> None:
        self._next(folder)
        super().make(folder, mode)

    def draft(self, folder: Path, prefix: str) -> Path:
        self._next(folder)
        return super().draft(folder, prefix)

    def write(self, path: Path, writer: Callable[[Path], object]) -> None:
        """A write that is refused has written a part already."""
        refused = self.done + 1 in self._refused
        if refused:
            path.write_bytes(b"a part")
        self._next(path)
        super().write(path, writer)

    def sync(self, path: Path) -> None:
        self._next(path)
        super().sync(path)

    def rename(self, source: Path, target: Path) -> None:
        self._next(target)
        super().rename(source, target)

    def exchange(self, one: Path, other: Path) -> None:
        self._next(other)
        super().exchange(one, other)

    def remove(self, path: Path) -> None:
        self._next(path)
        super().remove(path)


@dataclass
class _File:
    """Contents one after another with the operation that wrote them; `synced` are the operations that synced it."""

    contents: list[tuple[int, bytes]]
    synced: list[int] = field(default_factory=list)

    def after(self, crash: int, fate: Fate) -> bytes:
        written = [(at, content) for at, content in self.contents if at <= crash]
        last_sync = max((at for at in self.synced if at <= crash), default=-1)
        safe = next((content for at, content in reversed(written) if at <= last_sync), b"")
        newest = written[-1][1] if written else b""
        if newest == safe or fate == "lost":
            return safe
        return newest if fate == "whole" else newest[: len(newest) // 2]


@dataclass
class _Folder:
    """Changes of names one after another, each with its operation."""

    changes: list[tuple[int, dict[str, _File | _Folder | None]]] = field(default_factory=list)
    synced: list[int] = field(default_factory=list)

    def now(self) -> dict[str, _File | _Folder]:
        return self.names(len(self.changes))

    def names(self, cut: int) -> dict[str, _File | _Folder]:
        found: dict[str, _File | _Folder | None] = {}
        for _, change in self.changes[:cut]:
            found |= change
        return {name: inode for name, inode in found.items() if inode is not None}

    def cuts(self, crash: int) -> range:
        """How many of the changes may be on the disk after a crash that follows operation `crash`."""
        last_sync = max((at for at in self.synced if at <= crash), default=-1)
        least = sum(at < last_sync for at, _ in self.changes)
        return range(least, sum(at <= crash for at, _ in self.changes) + 1)


class RecordingDisk(FaultyDisk):
    """Does everything for real below `root`, and remembers it. What lies there at first counts as on the disk.

    `first` and what follows: what it refuses, see `FaultyDisk`.
    """

    def __init__(self, root: Path, first: int = 0, error: int = errno.EIO, count: int = 1) -> None:
        super().__init__(first, error, count)
        self.root = root
        self.operations: list[str] = []
        self._top = _load(root)

    # ---------------------------------------------------------------- what is done

    def make(self, folder: Path, mode: int = 0o777) -> None:
        super().make(folder, mode)
        self._change(f"make {folder.name}", folder.parent, {folder.name: _Folder()})

    def draft(self, folder: Path, prefix: str) -> Path:
        made = super().draft(folder, prefix)
        self._change("draft", folder, {made.name: _Folder()})
        return made

    def write(self, path: Path, writer: Callable[[Path], object]) -> None:
        try:
            super().write(path, writer)
        finally:
            self._written(path)

    def _written(self, path: Path) -> None:
        file = self._folder(path.parent).now().get(path.name)
        if file is None:
            file = _File([])
            self._change(f"create {path.name}", path.parent, {path.name: file})
        assert isinstance(file, _File)
        file.contents.append((len(self.operations), path.read_bytes()))
        self.operations.append(f"write {path.name}")

    def sync(self, path: Path) -> None:
        super().sync(path)
        self._inode(path).synced.append(len(self.operations))
        self.operations.append(f"sync {path.name}")

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        inode = self._inode(source)
        if source.parent == target.parent:
            self._change("rename", target.parent, {source.name: None, target.name: inode})
        else:
            self._folder(target.parent).changes.append((len(self.operations), {target.name: inode}))
            self._change("rename", source.parent, {source.name: None})

    def exchange(self, one: Path, other: Path) -> None:
        super().exchange(one, other)
        assert one.parent == other.parent
        swapped: dict[str, _File | _Folder | None] = {one.name: self._inode(other), other.name: self._inode(one)}
        self._change("exchange", one.parent, swapped)

    def remove(self, path: Path) -> None:
        super().remove(path)
        inode = self._folder(path.parent).now().get(path.name)
        if isinstance(inode, _Folder):
            self._empty(inode)
        if inode is not None:
            self._change(f"remove {path.name}", path.parent, {path.name: None})

    def _empty(self, folder: _Folder) -> None:
        for name, inode in folder.now().items():
            if isinstance(inode, _Folder):
                self._empty(inode)
            folder.changes.append((len(self.operations), {name: None}))
            self.operations.append(f"remove {name}")

    def _change(self, what: str, folder: Path, change: dict[str, _File | _Folder | None]) -> None:
        self._folder(folder).changes.append((len(self.operations), change))
        self.operations.append(what)

    def _inode(self, path: Path) -> _File | _Folder:
        inode: _File | _Folder = self._top
        for part in path.relative_to(self.root).parts:
            assert isinstance(inode, _Folder)
            inode = inode.now()[part]
        return inode

    def _folder(self, path: Path) -> _Folder:
        inode = self._inode(path)
        assert isinstance(inode, _Folder)
        return inode

    # ---------------------------------------------------------------- what a crash leaves

    def states_after(self, crash: int) -> Iterator[Tree]:
        """Every tree that may lie below `root` when the machine ends right after operation `crash`; -1 before all."""
        fates: tuple[Fate, ...] = ("lost", "torn", "whole")
        for fate in fates:
            yield from _folder_states(self._top, crash, fate)

    def crashes(self) -> range:
        """What to give to `states_after`; the last one is a crash after everything."""
        return range(-1, len(self.operations))


def _load(folder: Path) -> _Folder:
    made = _Folder(synced=[0])
    for path in folder.iterdir():
        inode = _load(path) if path.is_dir() else _File([(-2, path.read_bytes())], [-1])
        made.changes.append((-2, {path.name: inode}))
    made.synced = [-1]
    return made


def _folder_states(folder: _Folder, crash: int, fate: Fate) -> Iterator[Tree]:
    for cut in folder.cuts(crash):
        names = folder.names(cut)
        choices = [
            [inode.after(crash, fate)] if isinstance(inode, _File) else list(_folder_states(inode, crash, fate))
            for inode in names.values()
        ]
        for chosen in itertools.product(*choices):
            yield dict(zip(names, chosen, strict=True))


def build(tree: Tree, folder: Path) -> Path:
    """Make the tree for real."""
    folder.mkdir()
    for name, content in tree.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            build(content, folder / name)
    return folder


def visible(tree: Tree) -> Tree:
    """Without what readers do not look at."""
    return {
        name: content if isinstance(content, bytes) else visible(content)
        for name, content in tree.items()
        if not name.startswith(".")
    }


def distinct(trees: Iterator[Tree]) -> list[Tree]:
    """Each visible tree once."""
    found: dict[str, Tree] = {}
    for tree in trees:
        shown = visible(tree)
        found.setdefault(repr(shown), shown)
    return list(found.values())
