"""Job specs on a command line: several, globs, `-` for standard input, and `--set`.

Shared by every verb that reads specs. What a spec means is `spec.job`'s; sending one is the verb's.
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mlora_sched.errors import SpecError
from mlora_sched.spec.job import JobSpec, load_job, local_files, read_bytes, read_job
from mlora_sched.spec.override import Override, parse_override

if TYPE_CHECKING:
    from mlora_sched.spec.sweep import Sweep, TrialSpec

_Function = TypeVar("_Function", bound=Callable[..., Any])

STANDARD_INPUT = Path("-")


class SpecPaths(tuple[Path, ...]):
    """The specs that a command line means, and whether it means a `single` one whatever files there are: one path."""

    single: bool = False


@dataclass(frozen=True)
class GivenSpec:
    """A spec as it was read.

    Attributes:
        path: of its file, or `STANDARD_INPUT`.
        folder: where the files that it names are looked for.
    """

    path: Path
    spec: JobSpec
    folder: Path

    def files(self) -> dict[str, Path]:
        """See `spec.job.local_files`."""
        return local_files(self.spec, self.folder)


@dataclass(frozen=True)
class GivenSweep:
    """A sweep as it was read; `path` and `folder` as in `GivenSpec`."""

    path: Path
    sweep: Sweep
    trials: tuple[TrialSpec, ...]
    folder: Path

    @property
    def spec(self) -> JobSpec:
        """The job without what varies."""
        return self.sweep.spec

    def files(self) -> dict[str, Path]:
        """Those of all trials; see `spec.job.local_files`."""
        found: dict[str, Path] = {}
        for trial in self.trials:
            if not found.keys() >= set(trial.spec.files):
                found |= local_files(trial.spec, self.folder)
        return found


def spec_arguments(verb: _Function) -> _Function:
    """Add `SPEC...` (`specs`, a `SpecPaths` with globs expanded) and `--set` (`overrides`) to a verb."""
    setting = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="FIELD=VALUE",
        callback=_read_overrides,
        help="Set a field of every spec, such as training.epochs=2.",
    )
    argument = click.argument("specs", nargs=-1, required=True, metavar="SPEC...", callback=_expand)
    return argument(setting(verb))


def read_spec(path: Path, overrides: Sequence[Override]) -> GivenSpec:
    """Read one spec; one from standard input names its files relative to the working directory.

    Raises:
        SpecError: it cannot be read or is no valid spec.
    """
    if path != STANDARD_INPUT:
        return GivenSpec(path, load_job(path, overrides), path.parent)
    spec = read_job(sys.stdin.buffer.read(), "standard input", overrides)
    return GivenSpec(path, spec, Path())


def read_given(path: Path, overrides: Sequence[Override]) -> GivenSpec | GivenSweep:
    """Read a spec or a sweep; see `read_spec`."""
    from mlora_sched.spec.sweep import Sweep, read_document

    standard = path == STANDARD_INPUT
    where, folder = ("standard input", Path()) if standard else (str(path), path.parent)
    found = read_document(sys.stdin.buffer.read() if standard else read_bytes(path), where, overrides)
    if isinstance(found, Sweep):
        return GivenSweep(path, found, found.trials(where), folder)
    return GivenSpec(path, found, folder)


def _read_overrides(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> tuple[Override, ...]:
    return tuple(parse_override(text) for text in texts)


def _expand(_context: click.Context, _argument: click.Parameter, patterns: tuple[str, ...]) -> SpecPaths:
    """The specs that are meant, in the order given; a glob stands for those of its files that nothing else names.

    Raises:
        SpecError: a glob matches nothing, or a directory is named.
    """
    paths: list[Path] = []
    taken = {Path(pattern) for pattern in patterns}
    for pattern in patterns:
        if not _is_glob(pattern):
            paths.append(Path(pattern))
            continue
        found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207 (may be absolute)
        if not found:
            raise SpecError(f"{pattern}: matches no file")
        paths += [path for path in found if path not in taken]
        taken.update(found)
    for path in paths:
        if path.is_dir():
            raise SpecError(f"{path}: is a directory; write '{path}/*.yaml' for all specs in it")
    expanded = SpecPaths(paths)
    expanded.single = len(patterns) == 1 and not _is_glob(patterns[0])
    return expanded


def _is_glob(pattern: str) -> bool:
    """A file may have the characters of a glob in its name."""
    return glob.has_magic(pattern) and not Path(pattern).exists()
