"""The data sets of an Axolotl config: files, how their rows become text, and what has to be renamed in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any

from pydantic import JsonValue

from mlora_sched.convert import reasons
from mlora_sched.convert.files import is_data_file, to_fill_in
from mlora_sched.convert.table import (
    Key,
    Outcome,
    Rule,
    by_reason,
    changed,
    drop,
    dropped,
    mapped,
    number,
    refuse,
    text,
    texts,
)

_LISTS = ("datasets", "test_datasets")
_LOADERS = ("json", "csv", "parquet")
"""Names that stand for a format where `path` is asked for, and the file is in `data_files`."""


class Kind(StrEnum):
    """How rows become text, as `data.template` calls it."""

    CHAT = "chat"
    ALPACA = "alpaca"
    TEXT = "none"


def nested(document: Mapping[str, Any]) -> Mapping[str, Sequence[tuple[Key, Rule]]]:
    """The inner keys of `datasets` and `test_datasets`, where they are lists of records."""
    return {
        name: list(_inner_keys(name, document))
        for name in _LISTS
        if (records := document.get(name)) and isinstance(records, list) and all(isinstance(it, dict) for it in records)
    }


def no_datasets(key: Key) -> Outcome:
    """`datasets` that are no list of records."""
    return key.refuse("is no list of data sets; write - path: rows.jsonl and its type")


def _inner_keys(name: str, document: Mapping[str, Any]) -> Iterator[tuple[Key, Rule]]:
    for place, record in enumerate(document[name]):
        for inner, value in record.items():
            rule = _RULES.get(inner, _unknown)
            yield Key(f"{name}.{place}.{inner}", value, document), rule


def _unknown(key: Key) -> Outcome:
    return dropped(f"{key.name.rpartition('.')[2]} is no key of a data set that is known here")


def _record(key: Key) -> tuple[str, Mapping[str, Any]]:
    """The list in which an inner key stands, and its record."""
    name, place, _ = key.name.split(".", 2)
    return name, key.document[name][int(place)]


# ---------------------------------------------------------------------- files


def _files(name: str, record: Mapping[str, Any], document: Mapping[str, Any]) -> list[str]:
    """Files of one data set as the spec will name them."""
    path = text(Key(f"{name}.path", record.get("path"), document))
    data_files = record.get("data_files")
    if not data_files:
        return [path]
    names = texts(Key(f"{name}.data_files", data_files, document))
    local = path.startswith((".", "/", "~"))
    return [str(PurePosixPath(path) / file) if local else file for file in names]


def _all_files(name: str, document: Mapping[str, Any]) -> list[str]:
    found = [_files(f"{name}.{place}", record, document) for place, record in enumerate(document[name])]
    return list(dict.fromkeys(file for files in found for file in files))


def _path(key: Key) -> Outcome:
    name, record = _record(key)
    files = _files(key.name.rpartition(".")[0], record, key.document)
    fields, more = _file_fields(name, key.document)
    reason = to_fill_in(file for file in files if not is_data_file(file))
    if record.get("data_files") and record["path"] not in _LOADERS and not record["path"].startswith((".", "/", "~")):
        reason = f"files of the repository {record['path']}: fetch them, the daemon does not"
    reason = "; ".join(filter(None, (reason, more)))
    if files == [record["path"]] and not reason:
        return mapped(fields)
    return changed(fields, reason or "the files are named in data_files")


def _file_fields(name: str, document: Mapping[str, Any]) -> tuple[dict[str, JsonValue], str]:
    files = _all_files(name, document)
    if name == "datasets":
        return {"data.train": list[JsonValue](files)}, ""
    more = "data.validation is one file, and this is the first: join them" if len(files) > 1 else ""
    return {"data.validation": files[0]}, more


def _data_files(key: Key) -> Outcome:
    name, _ = _record(key)
    return mapped(_file_fields(name, key.document)[0])


# ---------------------------------------------------------------------- templates


def _kind(key: Key) -> Kind:
    """What a data set's type means.

    Raises:
        SpecError: it is a prompt of Axolotl's own, or of the config's author.
    """
    name = key.value
    if isinstance(name, dict):
        key.refuse("prompts of one's own are not read; write a Jinja file, name it as data.template, and drop the type")
    if name == "chat_template" or (isinstance(name, str) and name.startswith("sharegpt")):
        return Kind.CHAT
    if name == "alpaca":
        return Kind.ALPACA
    if name == "completion":
        return Kind.TEXT
    return key.refuse(
        "is a prompt of Axolotl's own; rewrite the rows as messages, alpaca, or prompt and completion "
        "(docs/spec.md), with type chat_template or alpaca"
    )


def _kinds(document: Mapping[str, Any]) -> list[Kind]:
    """The kinds of all data sets to train on that say theirs, in order."""
    records = enumerate(document.get("datasets") or [])
    keys = [
        Key(f"datasets.{place}.type", record["type"], document)
        for place, record in records
        if isinstance(record, dict) and record.get("type") is not None
    ]
    return list(dict.fromkeys(_kind(key) for key in keys))


def _template(document: Mapping[str, Any]) -> str:
    """`data.template` for a document: a Jinja file that it names, or what its data sets' types ask for."""
    jinja = document.get("chat_template_jinja")
    if isinstance(jinja, str) and _is_jinja_file(jinja):
        return jinja
    kinds = _kinds(document)
    if len(kinds) > 1:
        return "auto"
    return kinds[0].value if kinds else "chat" if document.get("chat_template") else "auto"


def _is_jinja_file(value: str) -> bool:
    return "\n" not in value and value.endswith((".jinja", ".jinja2", ".j2"))


def _type(key: Key) -> Outcome:
    kind, template = _kind(key), _template(key.document)
    fields: dict[str, JsonValue] = {"data.template": template}
    if template == "auto" and kind is not Kind.TEXT:
        return changed(
            fields, "one template serves all files: alpaca rows get the base's chat template where it has one"
        )
    if kind is Kind.CHAT and key.value != "chat_template":
        return changed(fields, "the base's chat template; rows with conversations are read as they are")
    return mapped(fields) if template == kind.value else changed(fields, "chat_template_jinja decides")


def chat_template(key: Key) -> Outcome:
    """The top level's template, which chat data sets use."""
    fields: dict[str, JsonValue] = {"data.template": _template(key.document)}
    if key.value == "tokenizer_default":
        return mapped(fields)
    if key.value == "jinja":
        return changed(fields, "chat_template_jinja names it")
    return changed(
        fields, f"chat rows get the base's own chat template; if that is not {key.value}, name a Jinja file instead"
    )


def chat_template_jinja(key: Key) -> Outcome:
    """A Jinja file becomes ours; a template written into the config needs a file first."""
    if not _is_jinja_file(text(key)):
        return dropped("write it into a .jinja file and name that as data.template")
    return mapped({"data.template": _template(key.document)})


def _column(expected: str) -> Rule:
    def rule(key: Key) -> Outcome:
        if key.value == expected:
            return dropped("this is what the column is called here")
        return dropped(f"columns have fixed names: rename {key.value} to {expected} in the files")

    return rule


def _messages_column(key: Key) -> Outcome:
    if key.value in ("messages", "conversations"):
        return dropped("this is a name that is looked for")
    return dropped(f"columns have fixed names: rename {key.value} to messages in the files")


def _roles_to_train(key: Key) -> Outcome:
    if key.value == ["assistant"]:
        return dropped("answers carry loss here, too (data.train_on)")
    return dropped("only answers can be chosen, or everything: see data.train_on")


def _train_on_eos(key: Key) -> Outcome:
    if key.value == "turn":
        return dropped("the end token of an answer carries loss here, too")
    return dropped("the end token of every answer that is trained carries loss, and no other")


def _shards(key: Key) -> Outcome:
    return dropped("is the whole file") if number(key) <= 1 else dropped("every row is used; cut the file")


_RULES: dict[str, Rule] = {
    **by_reason(
        drop,
        {
            "the suffix of a file says its format": "ds_type",
            "export this part of the data set to the file": "split name revision",
            "every row is used; cut the file": "shards_idx preprocess_shards",
            reasons.REMOTE_CODE: "trust_remote_code",
            "one template serves all files: see data.template": "chat_template chat_template_jinja conversation",
            "roles have fixed names (user, assistant, system, tool; or human, gpt): rename them in the files": """
                roles message_property_mappings message_field_role message_field_content field_human field_model
            """,
            "loss is on answers (data.train_on), not on marked turns or parts": """
                message_field_training message_field_training_detail
            """,
            "what a template does with thinking is its own business": """
                field_thinking template_thinking_key split_thinking
            """,
            "an option of a training that is not there": "temperature logprobs_field input_transform input_format",
        },
    ),
    **by_reason(refuse, {"write the rows without their system messages": "drop_system_message"}),
    "path": _path,
    "data_files": _data_files,
    "type": _type,
    "field": _column("text"),
    "field_messages": _messages_column,
    "field_tools": _column("tools"),
    "field_instruction": _column("instruction"),
    "field_input": _column("input"),
    "field_output": _column("output"),
    "field_system": _column("system"),
    "roles_to_train": _roles_to_train,
    "train_on_eos": _train_on_eos,
    "train_on_eot": _train_on_eos,
    "shards": _shards,
}
