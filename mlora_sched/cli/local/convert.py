"""`convert`: another trainer's config as a job spec, with an account of every key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlora_sched.cli.output import print_json
from mlora_sched.cli.remote.options import json_option
from mlora_sched.cli.style import one_line, say
from mlora_sched.errors import Refused, SpecError, UserError

if TYPE_CHECKING:
    from mlora_sched.convert.result import Conversion, Entry

_SOURCES = ("axolotl", "llamafactory")
_UNUSABLE = re.compile(r"[^A-Za-z0-9._-]+")


@click.command()
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="OUT", help="Write the spec here; a new file.")
@click.option("--from", "source", type=click.Choice(_SOURCES), help="Whose config it is, when its keys do not tell.")
@click.option("--name", metavar="NAME", help="What the job is called; else as the file is.")
@json_option
def convert(file: Path, output: Path | None, source: str | None, name: str | None, as_json: bool) -> None:
    """Write the job spec for a config of Axolotl or LLaMA-Factory.

    The spec goes to standard output or to OUT. What became of every key of the config is told on standard error.
    """
    from mlora_sched.convert import build
    from mlora_sched.convert.result import Source

    raw = _read_config(file)
    result = build.convert(
        raw,
        _job_name(file) if name is None else name,
        source=None if source is None else Source(source),
        dataset_info=_read_dataset_info(raw, file.parent),
        where=str(file),
    )
    text = spec_yaml(result)
    if output is not None:
        _write_new(output, text)
    if as_json:
        print_json(result)
        return
    if output is None:
        click.echo(text, nl=False)
    for line in account(result, str(file)):
        say(line, err=True)
    if output is not None:
        click.echo(f"written to {output}; check it with `mlora-sched validate {output}`", err=True)


def spec_yaml(result: Conversion) -> str:
    """The spec as its file holds it."""
    import yaml

    return yaml.safe_dump(result.spec, sort_keys=False, allow_unicode=True, width=120)


def account(result: Conversion, where: str) -> list[str]:
    """What became of every key, for people; one line a key."""
    kinds = {"mapped": result.mapped, "changed": result.changed, "dropped": result.dropped, "filled in": result.filled}
    keys = len(result.mapped) + len(result.changed) + len(result.dropped)
    counts = ", ".join(f"{len(entries)} {kind}" for kind, entries in kinds.items())
    lines = [f"{where}: {keys} keys of {result.source.label}: {counts}"]
    for kind, entries in kinds.items():
        lines += [f"{kind}:", *_lines(entries)] if entries else []
    return [*lines, "paths in the spec are relative to its file"]


def _lines(entries: Sequence[Entry]) -> list[str]:
    lines = []
    for entry in entries:
        arrow = f" → {', '.join(entry.fields)}" if entry.fields and entry.fields != (entry.key,) else ""
        lines.append("  " + one_line(f"{entry.key}{arrow}" + (f": {entry.reason}" if entry.reason else "")))
    return lines


def _job_name(file: Path) -> str:
    """The file's name without its suffix, as a job may be called."""
    return _UNUSABLE.sub("-", file.stem).strip("-._")[:100] or "job"


def _read_config(file: Path) -> Any:
    from mlora_sched.spec.strict_yaml import load_yaml

    try:
        return load_yaml(file.read_text(encoding="utf-8"), str(file))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{file}: is not YAML: {error}") from None


def _read_dataset_info(raw: Any, folder: Path) -> Mapping[str, Any] | None:
    """What LLaMA-Factory's list of data sets says, looked for from here, as it does, and from the config's folder."""
    import json

    from mlora_sched.convert.llamafactory_data import INFO_FILE, folder_of

    if not isinstance(raw, dict) or "dataset" not in raw:
        return None
    place = Path(folder_of(raw)) / INFO_FILE
    found = next((path for path in (place, folder / place) if path.is_file()), None)
    if found is None:
        return None
    try:
        info = json.loads(found.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{found}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{found}: is not JSON: {error}") from None
    if not isinstance(info, dict):
        raise UserError(f"{found}: is no object of data sets by name")
    return info


def _write_new(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise Refused(f"{path}: is there already; choose another file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; choose another place") from None
