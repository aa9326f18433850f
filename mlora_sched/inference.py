"""Run an exported adapter on an ordinary transformers model: what `mlora_sched.load_adapter` does.

No method is written down a second time. The model's linears are replaced by the engine's sites and its FFNs by the
engine's, the adapter is built from the spec that its config means, and for every forward its ops are placed on one
segment that holds all rows of the input, as in an evaluation of the job. Attention, norms, positions, masks and caches
stay transformers' own, so padding and `generate` work as they do without an adapter: whatever the rows are, what the
adapter does to one does not depend on the others.

This stands beside `engine`, which knows packs of many jobs and trains; nothing of that is needed here, and nothing
here is part of the daemon. Gradients are not for this: an adapter is trained by a job.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from mlora_sched.adapters.base import Adapter, AdapterFiles
from mlora_sched.adapters.part import SegmentPart
from mlora_sched.adapters.registry import build_adapter, spec_of
from mlora_sched.artifacts.adapter_files import CONFIG, MODEL, PICKLED, read_adapter
from mlora_sched.errors import BaseError, SpecError, UserError
from mlora_sched.model.base import FrozenBase, lay_out
from mlora_sched.model.layers import decoder_layers
from mlora_sched.model.rowwise import put
from mlora_sched.model.site import PackSlot, Placed, Site
from mlora_sched.spec.adapter import AdapterSpec
from mlora_sched.spec.adapter_common import layer_of, layers_in
from mlora_sched.spec.placement import placed
from mlora_sched.spec.routed import DynMoleSpec, FfnExpertsSpec, LoraMoeSpec, MolaSpec

Model = TypeVar("Model")

_LOADED = "_mlora_sched_loaded"
"""Attribute of a model under which its `_Loaded` lies."""
_JOB = "loaded"


def load_adapter(model: Model, directory: str | PathLike[str]) -> Model:
    """See `mlora_sched.load_adapter`."""
    folder = Path(directory)
    files = _read(folder)
    of_model: Any = model
    device, dtype = _check_model(of_model)
    originals = dict(of_model.named_modules())
    base = _sites_of(of_model, device, dtype)
    with contextlib.ExitStack() as undo:
        undo.callback(_put_back, of_model, base, originals)
        adapter = _adapter_of(files, base, folder)
        undo.pop_all()
    of_model.requires_grad_(False)
    of_model.eval()
    running = _Running(base, adapter)
    setattr(model, _LOADED, _Loaded(base, originals, running.hook_on(_decoder(of_model))))
    return model


def unload_adapter(model: Model) -> Model:
    """See `mlora_sched.unload_adapter`."""
    loaded: _Loaded | None = getattr(model, _LOADED, None)
    if loaded is None:
        raise BaseError("the model carries no adapter of load_adapter's")
    for handle in loaded.hooks:
        handle.remove()
    _put_back(model, loaded.base, loaded.originals)
    for name, site in loaded.base.sites.items():
        _hand_over(site, loaded.originals[name])
    delattr(model, _LOADED)
    return model


@dataclass(frozen=True)
class _Loaded:
    """What is remembered of a model that carries an adapter.

    Attributes:
        originals: its modules by dotted name, as they were before.
    """

    base: FrozenBase
    originals: Mapping[str, nn.Module]
    hooks: tuple[RemovableHandle, ...]


def _read(folder: Path) -> AdapterFiles:
    missing = [name for name in (CONFIG, MODEL) if not (folder / name).is_file()]
    if MODEL in missing and (folder / PICKLED).is_file():
        raise UserError(
            f"{folder} holds {PICKLED} and no {MODEL}; the former is a pickle, which is never read: save the adapter "
            f"again as safetensors"
        )
    if missing:
        raise UserError(
            f"{folder} is no adapter's directory: it has no {missing[0]}; give one that `mlora-sched pull` or "
            f"`mlora-sched run` has made"
        )
    return read_adapter(folder / CONFIG, folder / MODEL, str(folder))


def _check_model(model: Any) -> tuple[torch.device, torch.dtype]:
    """Refuse what cannot carry an adapter; return where its linears' weights are, and their dtype."""
    from transformers import PreTrainedModel
    from transformers.pytorch_utils import Conv1D

    if hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False):
        raise BaseError("the model carries an adapter of PEFT's; load the base anew with from_pretrained")
    if hasattr(model, _LOADED):
        raise BaseError("the model carries an adapter already; take it off with mlora_sched.unload_adapter(model)")
    if not isinstance(model, PreTrainedModel) or model.get_output_embeddings() is None:
        raise BaseError(
            f"{type(model).__name__} is no causal language model of transformers; give what "
            f"AutoModelForCausalLM.from_pretrained returns"
        )
    head = model.get_output_embeddings()
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    if getattr(model.config, "quantization_config", None) or any(type(w) is not nn.Parameter for w in weights):
        raise BaseError(
            "the model is quantised, so its weights are not what the adapter's ops read; load it without "
            "quantization_config, in bfloat16 if float32 is too large"
        )
    kinds = {(weight.device, weight.dtype) for weight in weights}
    if len(kinds) != 1 or any(device.type == "meta" for device, _ in kinds):
        found = ", ".join(sorted(f"{dtype} on {device}" for device, dtype in kinds)) or "none that an adapter sits on"
        raise BaseError(f"the model's weights are {found}; load it in one dtype, onto one device, with no offload")
    return kinds.pop()


def _sites_of(model: Any, device: torch.device, dtype: torch.dtype) -> FrozenBase:
    name = model.config.name_or_path or model.config.model_type
    base = lay_out(model, PackSlot(), name=name, longest=2**31)
    return dataclasses.replace(base, device=device, dtype=dtype)


def _put_back(model: Any, base: FrozenBase, originals: Mapping[str, nn.Module]) -> None:
    for name in (*base.ffns, *base.sites):  # the sites of an FFN are modules of what it replaced
        put(model, name, originals[name])


def _hand_over(site: Site, original: Any) -> None:
    """Give a linear the weights of the site that stood in its place: the model may have been moved meanwhile."""
    weight = site.weight.detach()
    original.weight = nn.Parameter(weight.T if site.stored_transposed else weight, requires_grad=False)
    original.bias = site.bias


def _adapter_of(files: AdapterFiles, base: FrozenBase, folder: Path) -> Adapter:
    try:
        spec = spec_of(files.config)
        needed, held = _numbers_of(spec, base), sum(tensor.numel() for tensor in files.tensors.values())
        if needed > held:  # before so much is made: a config of a few bytes can ask for terabytes
            raise UserError(
                f"{folder} does not fit this {base.model.config.model_type} model: its {CONFIG} asks for {needed} "
                f"numbers or more, its tensors have {held}"
            )
        adapter = build_adapter(spec, base, seed=0)
    except SpecError as error:
        raise UserError(f"{folder}: {error}") from None
    expected = adapter.files().tensors
    wrong = sorted(expected.keys() ^ files.tensors.keys()) or [
        name for name, value in expected.items() if value.shape != files.tensors[name].shape
    ]
    if wrong:
        raise UserError(
            f"{folder} does not fit this {base.model.config.model_type} model, by its tensor {wrong[0]}; it was "
            f"trained on {files.config.get('base_model_name_or_path')!r}"
        )
    adapter.read(files)
    if not adapter.params.finite:
        raise UserError(f"{folder} holds weights that are not finite, as of a training that diverged")
    adapter.params.drop_grads()
    return adapter


def _numbers_of(spec: AdapterSpec, base: FrozenBase) -> int:
    """How many numbers the low-rank pairs of such an adapter have; there may be others beside them.

    Raises:
        SpecError: it cannot sit on this base.
    """
    paths, linears = placed(spec, base.places), base.places.linears
    if isinstance(spec, FfnExpertsSpec):
        inside = set(spec.expert_targets(linears))
        pairs = {path: spec.num_experts * spec.r if path in inside else spec.plain.r for path in paths}
    elif isinstance(spec, MolaSpec):
        layers = layers_in(base.sites)
        pairs = {path: spec.experts_in(layer_of(path) or 0, layers) * spec.r for path in paths}
    else:
        experts = spec.num_experts if isinstance(spec, DynMoleSpec | LoraMoeSpec) else 1
        pairs = dict.fromkeys(paths, experts * spec.r)
    return sum(rows * (base.sites[path].in_features + base.sites[path].out_features) for path, rows in pairs.items())


def _decoder(model: Any) -> nn.Module:
    """The module that calls the decoder layers, whoever calls it: some heads pass their `base_model` by."""
    path, _ = decoder_layers(model)
    found: nn.Module = model.base_model.get_submodule(path.rpartition(".")[0])
    return found


class _Running:
    """Places the adapter's ops for each forward of the decoder, and takes them away after it."""

    def __init__(self, base: FrozenBase, adapter: Adapter) -> None:
        self._base, self._adapter = base, adapter
        self._thread: int | None = None

    def hook_on(self, decoder: nn.Module) -> tuple[RemovableHandle, ...]:
        """Called around the decoder's forward from now on, however that ends."""
        self._signature = inspect.signature(decoder.forward)
        before = decoder.register_forward_pre_hook(self._before, with_kwargs=True)
        return before, decoder.register_forward_hook(self._after, always_call=True)

    def _before(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # where it is this one, a forward was interrupted from the keyboard, which skips even the hooks of failures
        if self._thread not in (None, threading.get_ident()):
            raise BaseError("another thread runs this model; a model with an adapter takes one forward at a time")
        base, adapter = self._base, self._adapter
        weight = next(iter(base.sites.values())).weight
        if (weight.device, weight.dtype) != (base.device, base.dtype):
            raise BaseError(
                f"the model was moved from {base.dtype} on {base.device} after its adapter was loaded; take it off "
                f"with mlora_sched.unload_adapter(model), and load it again"
            )
        if torch.is_autocast_enabled(base.device.type):
            raise BaseError("autocast would mix dtypes inside the adapter; load the model in the dtype it is to run in")
        given = self._signature.bind_partial(*args, **kwargs).arguments
        inputs = given["input_ids"] if given.get("input_ids") is not None else given.get("inputs_embeds")
        if inputs is None:
            raise BaseError(f"{type(decoder).__name__} was given neither input_ids nor inputs_embeds")
        rows, length = inputs.shape[:2]
        part = SegmentPart(_JOB, 0, rows * length, lengths=(length,) * rows)
        self._thread = threading.get_ident()
        slot = base.slot
        slot.sizes = (rows * length, 0)
        slot.placed = {group: [Placed(op, part, 0)] for group, op in adapter.site_ops.items()}
        slot.routed = {ffn: [Placed(op, part, 0)] for ffn, op in adapter.routed_ops.items()}

    def _after(self, *_: object) -> None:
        if self._thread == threading.get_ident():
            self._base.slot.clear()
            self._thread = None
