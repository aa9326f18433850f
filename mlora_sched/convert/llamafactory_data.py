"""The data sets of a LLaMA-Factory config: names that its `dataset_info.json` explains, and its chat templates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from pydantic import JsonValue

from mlora_sched.convert.files import is_data_file, to_fill_in
from mlora_sched.convert.table import Key, Outcome, Rule, changed, dropped, mapped, text, texts

INFO_FILE = "dataset_info.json"
DEFAULT_FOLDER = "data"
"""Where LLaMA-Factory looks for it, unless `dataset_dir` says otherwise."""

_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "system": "system", "tools": "tools"}
_SHAREGPT = {
    "messages": "conversations",
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
"""Names of and in a conversation, as they are where nothing is said, and as they are read here."""
_MESSAGES = {
    "messages": "messages",
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "system_tag": "system",
}
"""The other names that are read here."""


def rules(info: Mapping[str, Any] | None) -> dict[str, Rule]:
    """The rules that need to know what the names of data sets mean; with None they are kept as they are."""

    def dataset(key: Key) -> Outcome:
        files, notes = _files(key, info)
        return (
            changed({"data.train": list[JsonValue](files)}, "; ".join(notes))
            if notes
            else mapped({"data.train": list[JsonValue](files)})
        )

    def eval_dataset(key: Key) -> Outcome:
        files, notes = _files(key, info)
        if len(files) > 1:
            notes = [*notes, "data.validation is one file, and this is the first: join them"]
        fields: dict[str, JsonValue] = {"data.validation": files[0]}
        return changed(fields, "; ".join(notes)) if notes else mapped(fields)

    def dataset_dir(_: Key) -> Outcome:
        found = f"{INFO_FILE} is not there" if info is None else f"{INFO_FILE} was read"
        return dropped(f"file names in data.train are made with it; {found}")

    return {"dataset": dataset, "eval_dataset": eval_dataset, "dataset_dir": dataset_dir, "template": _template}


def folder_of(document: Mapping[str, Any]) -> str:
    """Where the document's data sets lie, as it names the folder."""
    folder = document.get("dataset_dir")
    return folder if isinstance(folder, str) and folder else DEFAULT_FOLDER


def _files(key: Key, info: Mapping[str, Any] | None) -> tuple[list[str], list[str]]:
    """File names for the spec, and what has to be said of them."""
    folder = folder_of(key.document)
    files, notes = [], []
    for name in dict.fromkeys(texts(key)):
        entry = None if info is None else info.get(name)
        if entry is None:
            where = PurePosixPath(folder) / INFO_FILE
            files.append(name)
            notes.append(f"{name} is not explained by {where}; {to_fill_in([name])}" if not is_data_file(name) else "")
            continue
        if not isinstance(entry, dict):
            key.refuse(f"{INFO_FILE} has no record of {name}")
        if entry.get("ranking"):
            key.refuse(f"{name} holds preferences ({INFO_FILE}: ranking); only supervised fine-tuning is there")
        file = entry.get("file_name")
        local = isinstance(file, str) and bool(file)
        files.append(str(PurePosixPath(folder) / str(file)) if local else name)
        notes += _renames(name, entry)
        if not is_data_file(files[-1]):
            notes.append(to_fill_in([files[-1]]))
    told = f"as {INFO_FILE} says" if info is not None and files != texts(key) else ""
    return files, [note for note in (told, *notes) if note]


def _renames(name: str, entry: Mapping[str, Any]) -> list[str]:
    """What has to be renamed in a data set's file, because columns and roles have fixed names here."""
    columns, tags = entry.get("columns") or {}, entry.get("tags") or {}
    if not isinstance(columns, dict) or not isinstance(tags, dict):
        return []
    if entry.get("formatting", "alpaca") == "alpaca":
        wrong = [f"{own} to {_COLUMNS[role]}" for role, own in columns.items() if _COLUMNS.get(role, own) != own]
    else:
        named = _SHAREGPT | {role: own for role, own in (columns | tags).items() if role in _SHAREGPT}
        expected = _MESSAGES if named["content_tag"] == "content" else _SHAREGPT
        wrong = [f"{named[role]} to {name}" for role, name in expected.items() if named[role] != name]
    lost = [own for role, own in columns.items() if role in ("images", "videos", "audios", "history") and own]
    return [f"rename in {name}: {', '.join(wrong)}"] * bool(wrong) + [f"{name}: {own} is not read" for own in lost]


def _template(key: Key) -> Outcome:
    name = text(key)
    if name == "empty":
        return mapped({"data.template": "none"})
    if name == "alpaca":
        return mapped({"data.template": "alpaca"})
    return changed(
        {"data.template": "chat"},
        f"the base's own chat template; if that is not what {name} writes, name a Jinja file instead",
    )
