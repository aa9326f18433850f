"""Turn pydantic's validation errors into sentences a user can act on: field, value, remedy, nearest right key.

Keys of Axolotl and LLaMA-Factory are recognised so that their users are told where ours stands.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ValidationError

from mlora_sched.errors import shown

_FOREIGN: dict[str, str] = {
    # Axolotl (docs.axolotl.ai) and LLaMA-Factory (its examples/train_lora), key → ours
    "lora_r": "adapter.r",
    "lora_rank": "adapter.r",
    "rank": "adapter.r",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "lora_target": "adapter.target_modules",
    "lora_target_modules": "adapter.target_modules",
    "lora_target_linear": "adapter.target_modules: all-linear",
    "lora_model_dir": "adapter.init_from",
    "adapter_name_or_path": "adapter.init_from",
    "peft_use_rslora": "adapter.method: rslora",
    "peft_use_dora": "adapter.method: dora",
    "use_rslora": "adapter.method: rslora, of experts adapter.expert_method: rslora",
    "use_dora": "adapter.method: dora, of experts adapter.expert_method: dora",
    "loraplus_lr_ratio": "adapter.lr_ratio with adapter.method: loraplus",
    "finetuning_type": "adapter.method",
    # MoE-PEFT and the mixlora package
    "peft_type": "adapter.method",
    "routing_strategy": "adapter.method; of mixlora also adapter.routing",
    "expert_lora": "adapter.r, adapter.alpha and adapter.expert_method; adapter.attention has its own",
    "router_loss": "adapter.router_aux_loss_coef, with 0 for none",
    "blc_alpha": "adapter.balance_shift",
    "blc_weight": "adapter.router_aux_loss_coef",
    "entropy_type": "adapter.entropy_index, with 1 for Shannon's entropy",
    "act_fn": "leave it out: the activation belongs to the base",
    "jitter_noise": "leave it out: no router is jittered",
    "expert_capacity": "leave it out: no expert turns tokens away",
    "router_z_loss_coef": "leave it out: switch routing is not implemented",
    "stage": "objective.type",
    "model_name_or_path": "base_model (the name under which the daemon serves the base)",
    "datasets": "data.train",
    "dataset": "data.train",
    "train_file": "data.train",
    "val_size": "data.validation",
    "val_set_size": "data.validation",
    "test_datasets": "data.validation",
    "eval_dataset": "data.validation",
    "chat_template": "data.template",
    "cutoff_len": "data.max_length",
    "sequence_len": "data.max_length",
    "max_seq_length": "data.max_length",
    "train_on_inputs": "data.train_on: all",
    "train_on_prompt": "data.train_on: all",
    "mask_history": "data.train_on: last",
    "num_epochs": "training.epochs",
    "num_train_epochs": "training.epochs",
    "micro_batch_size": "training.batch_size (micro_batch_size × gradient_accumulation_steps)",
    "per_device_train_batch_size": "training.batch_size (× gradient_accumulation_steps)",
    "gradient_accumulation_steps": "training.batch_size (the whole batch; the scheduler cuts it)",
    "lr": "training.learning_rate",
    "lr_scheduler_type": "training.lr_scheduler",
    "warmup_steps": "training.warmup_ratio",
    "max_grad_norm": "training.max_grad_norm",
    "evals_per_epoch": "training.eval_every (e.g. 0.25ep)",
    "eval_steps": "training.eval_every",
    "eval_strategy": "training.eval_every",
    "save_steps": "training.save_every",
    "saves_per_epoch": "training.save_every",
    "save_strategy": "training.save_every",
    "loss_watchdog_threshold": "guards.loss_spike (a factor on the usual loss, not a loss)",
    "loss_watchdog_patience": "guards.patience",
    "early_stopping_patience": "early_stopping.patience",
    "early_stopping_threshold": "early_stopping.min_delta",
    "early_stopping_steps": "early_stopping.patience (counted in evaluations)",
    "metric_for_best_model": "early_stopping.metric",
    "output_dir": "leave it out: `run --out DIR` and `pull ID DIR` say where results go",
    "bf16": "leave it out: the precision belongs to the base (`serve --dtype`)",
    "fp16": "leave it out: the precision belongs to the base (`serve --dtype`)",
    "load_in_4bit": "leave it out: quantisation belongs to the base",
    "load_in_8bit": "leave it out: quantisation belongs to the base",
    "flash_attention": "leave it out: attention belongs to the engine",
    "gradient_checkpointing": "leave it out: recomputation belongs to the daemon",
    "sample_packing": "leave it out: rows are always packed, without padding",
    "modules_to_save": "leave it out: the base is shared and frozen, only adapters are trained",
    "lora_modules_to_save": "leave it out: the base is shared and frozen, only adapters are trained",
    "additional_target": "leave it out: the base is shared and frozen, only adapters are trained",
    "deepspeed": "leave it out: the daemon places jobs itself",
}
_LEAVE_OUT = "leave it out: "
"""How answers begin to keys that have no counterpart."""
_LONGEST_KEY = 100
"""Characters of a key that is compared with ours; a longer one is none of them misspelt."""
_SHAPES = {"sweep.parameters.": "{values: [...]} or {log_uniform: [..., ...]}", "sweep.stop": "{rule: asha}"}
"""How sections are written that people have as a list or a word."""
_MAIN_KEYS = {"adapter": "method", "data": "train", "objective": "type"}
_SETTINGS_OF = {"mixdora": "mixlora with expert_method: dora", "qlora": "lora, on a base that is served in 4 bits"}
"""What other programs call a method of its own, and here is a setting of another."""


def explain(error: ValidationError, raw: object, model: type[BaseModel], where: str) -> str:
    """One line per problem, each starting with `where` and the dotted field."""
    return explain_items(error.errors(include_url=False), raw, model, where)


def explain_items(items: Iterable[Any], raw: object, model: type[BaseModel], where: str) -> str:
    """`explain` for the items of a validation error (each with type, loc, msg, input) that came without the error."""
    problems: dict[str, list[str]] = {}
    for item in items:
        field, problem = _problem(item, raw, model)
        problems.setdefault(field, []).append(problem)
    return "\n".join(f"{where}: {_joined(field, texts)}" for field, texts in problems.items())


def _joined(field: str, texts: list[str]) -> str:
    """One sentence for a field: the members of a union complain one by one about the same value."""
    sentence = texts[0] + "".join(
        f" or {text.rpartition(': ')[2].removeprefix('should be ')}" for text in dict.fromkeys(texts[1:])
    )
    return f"{field}: {sentence}" if field else sentence


def _problem(item: Any, raw: object, model: type[BaseModel]) -> tuple[str, str]:
    """The dotted field of one problem, and what is wrong with it."""
    path = _real_path(item["loc"], raw, keep_last=item["type"] == "missing")
    field = ".".join(str(part) for part in path)
    kind = item["type"]
    if kind == "extra_forbidden":
        return field, f"unknown key; {_suggest(str(path[-1]), field, raw, model)}"
    if kind == "missing":
        return field, "is missing; it is required"
    if kind == "value_error":
        return field, item["msg"].removeprefix("Value error, ")
    if kind == "union_tag_invalid":
        tags, key = (item["ctx"][name].replace("'", "") for name in ("expected_tags", "discriminator"))
        return f"{field}.{key}", f"{item['ctx']['tag']!r} is no {key}; {_meant(item['ctx']['tag'], tags)}"
    if kind in ("model_type", "model_attributes_type"):
        return field, f"{shown(item['input'])}: is no section of keys{_section_remedy(field, item['input'], model)}"
    message = item["msg"][:1].lower() + item["msg"][1:]
    return field, f"{shown(item['input'])}: {message.removeprefix('input ')}"


def _meant(tag: str, tags: str) -> str:
    """The method, or the like, that was meant by a word that is none."""
    plain = tag[:_LONGEST_KEY].lower().replace("-", "").replace("_", "")
    if plain in _SETTINGS_OF:
        return f"here it is {_SETTINGS_OF[plain]}"
    same = [known for known in tags.split(", ") if known.replace("_", "") == plain]
    return f"did you mean {same[0]}?" if same else f"choose one of {tags}"


def _section_remedy(field: str, value: object, model: type[BaseModel]) -> str:
    """How to write a section for which only its main key's value was given, as other trainers have it."""
    shape = next((shape for begins, shape in _SHAPES.items() if field.startswith(begins)), None)
    if shape is not None:
        return f"; write {shape}"
    key = _MAIN_KEYS.get(field)
    if key is None:
        return ""
    keys = [inner.model_fields[key].annotation for inner in _models(model.model_fields[field].annotation)]
    choices = [choice for annotation in keys for choice in typing.get_args(annotation) if isinstance(choice, str)]
    fits = isinstance(value, str) and (value in choices or not choices)
    return f"; write {field}: {{{key}: {value if fits else ' | '.join(choices) or '...'}}}"


def _real_path(loc: tuple[int | str, ...], raw: object, *, keep_last: bool) -> list[int | str]:
    """Drop the parts of a location that pydantic adds for unions: only keys that the document holds are kept.

    `keep_last` is for a missing key, which is not in the document.
    """
    path: list[int | str] = []
    here: Any = raw
    for position, part in enumerate(loc):
        last = position == len(loc) - 1
        in_list = isinstance(here, list) and isinstance(part, int) and part < len(here)
        if in_list or (isinstance(here, dict) and part in here):
            path.append(part)
            here = here[part]
        elif last and keep_last:
            path.append(part)
    return path


def _suggest(key: str, field: str, raw: object, model: type[BaseModel]) -> str:
    known = dict(_fields(model))
    if field in known:  # another member of a union has it: the adapter's method decides
        if field.startswith("sweep."):
            return "it does not go with this rule; leave it out or choose another rule"
        return f"it does not go with {_method(raw)}; leave it out or choose another method"
    parent = field.rpartition(".")[0]
    if key in _FOREIGN:
        return _ours(_FOREIGN[key], parent, known)
    elsewhere = [path for path, name in known.items() if name == key]
    if elsewhere:
        highest = min(path.count(".") for path in elsewhere)
        return f"did you mean {' or '.join(path for path in elsewhere if path.count('.') == highest)}?"
    for path in _of_other_methods(raw, model):
        known.pop(path, None)
    beside = [path for path in known if path.rpartition(".")[0] == parent]
    for known_paths in (beside, list(known)) if len(key) <= _LONGEST_KEY else ():
        by_name = {path.rpartition(".")[2]: path for path in reversed(known_paths)}
        if near := difflib.get_close_matches(key, by_name, n=1, cutoff=0.7):
            return f"did you mean {by_name[near[0]]}?"
    keys = ", ".join(sorted(path.rpartition(".")[2] for path in beside))
    return f"known keys here are {keys}" if keys else "leave it out"


def _method(raw: object) -> str:
    adapter = raw.get("adapter") if isinstance(raw, dict) else None
    return f"method {adapter.get('method', 'lora') if isinstance(adapter, dict) else 'lora'}"


def _ours(answer: str, parent: str, known: Mapping[str, str]) -> str:
    """What `_FOREIGN` has of a key, or the field of that name in the section where the key stands."""
    if answer.startswith(_LEAVE_OUT):
        return answer
    beside = f"{parent}.{answer.rpartition('.')[2]}"
    return f"here it is {beside if answer in known and beside in known else answer}"


def _of_other_methods(raw: object, model: type[BaseModel]) -> set[str]:
    """Paths of the adapter's fields that the spec's method does not have."""
    section = model.model_fields.get("adapter")
    members = [] if section is None else list(_models(section.annotation))
    chosen = _method(raw).removeprefix("method ")
    mine, others = set[str](), set[str]()
    for member in members:
        tags = typing.get_args(member.model_fields["method"].annotation)
        (mine if chosen in tags else others).update(path for path, _ in _fields(member, "adapter."))
    return others - mine if mine else set()


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every (dotted path, key) of a model and the models inside it."""
    for name, info in model.model_fields.items():
        yield prefix + name, name
        for inner in _models(info.annotation):
            yield from _fields(inner, f"{prefix}{name}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType, Annotated):
        for part in typing.get_args(annotation):
            yield from _models(part)
