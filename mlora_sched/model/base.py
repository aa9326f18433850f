"""Load a base model once, freeze it, and lay out the sites that adapters attach to.

Any decoder of transformers loads through `AutoModelForCausalLM`. `trust_remote_code` stays off.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlora_sched.errors import BaseError
from mlora_sched.model.attention import PACKED_ATTENTION, SpanPlan
from mlora_sched.model.device import is_hollow
from mlora_sched.model.experts import PACKED_EXPERTS, SLOT
from mlora_sched.model.ffn import FORMS, FfnForm, PackedFfn
from mlora_sched.model.head import Head, head_of
from mlora_sched.model.quantize import Nf4Site, check_bitsandbytes
from mlora_sched.model.rowwise import agree, put, row_norm, use_half_rotation
from mlora_sched.model.site import PackSlot, Site, SiteGroup
from mlora_sched.model.support import check_config
from mlora_sched.settings import source_of
from mlora_sched.spec.numerics import Quantize
from mlora_sched.spec.placement import FfnParts, Places

_SHARED_INPUT = (("qkv", ("q_proj", "k_proj", "v_proj")), ("gate_up", ("gate_proj", "up_proj")))


@dataclass(frozen=True)
class FrozenBase:
    """One base model, frozen, with its sites.

    Attributes:
        name: the name jobs ask for. location: directory or REPO[@REV] it came from.
        model: the transformers model, in eval mode, its linears replaced by sites.
        sites: by dotted name, in forward order of definition.
        ffns: FFNs by dotted name, where routed adapters can sit.
        slot: the running pack, shared by all sites.
        longest: most tokens of one sequence.
        is_mixture: the base routes tokens to experts of its own.
    """

    name: str
    location: str
    model: Any
    sites: dict[str, Site]
    ffns: dict[str, PackedFfn]
    slot: PackSlot
    head: Head
    longest: int
    is_mixture: bool
    device: torch.device
    dtype: torch.dtype

    def hidden(self, input_ids_1T: Tensor, position_ids_1T: Tensor, spans: SpanPlan) -> Tensor:
        """Last hidden states (T, D) of a pack."""
        out = self.model.base_model(
            input_ids=input_ids_1T, position_ids=position_ids_1T, use_cache=False, pack_spans=spans
        )
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    @property
    def places(self) -> Places:
        """Where adapters can sit."""
        ffns = [FfnParts(name, ffn.form.inner, ffn.form.outer) for name, ffn in self.ffns.items()]
        return Places(self.name, self.model.config.model_type, self.sites, ffns, self.is_mixture)

    @property
    def portable_name(self) -> str:
        """What an adapter names as its base: the hub repository where it is known, else the served name.

        A directory of this machine means nothing elsewhere, and is nobody's business.
        """
        if not Path(self.location).expanduser().is_dir():
            return source_of(self.location).place or self.name
        cached = next((part for part in Path(self.location).parts if part.startswith("models--")), None)
        return self.name if cached is None else cached.removeprefix("models--").replace("--", "/")

    @property
    def parameters(self) -> int:
        """Number of frozen parameters, a tied head counted once."""
        packed = (site for site in self.sites.values() if isinstance(site, Nf4Site))
        plain: int = sum(p.numel() for p in self.model.parameters())
        return plain + sum(site.in_features * site.out_features for site in packed)


def load_base(
    name: str, location: str, dtype: torch.dtype, device: torch.device, quantize: Quantize = "none"
) -> FrozenBase:
    """Load, check, freeze and lay out a base.

    Args:
        location: a directory, or a hub repository with an optional "@revision".
        quantize: how the linears' weights are kept.

    Raises:
        BaseError: nothing loadable there, or a model the engine cannot serve faithfully.
    """
    from transformers import AutoModelForCausalLM

    if quantize == "nf4":
        check_bitsandbytes()
    config = load_config(name, location)
    longest = check_config(config, name)
    where, options = source_of(location)
    with telling_of(name, location):
        model = AutoModelForCausalLM.from_pretrained(
            where, config=config, dtype=dtype, attn_implementation=PACKED_ATTENTION, trust_remote_code=False, **options
        )
    return adopt(model, name=name, location=location, longest=longest, device=device, quantize=quantize)


def load_config(name: str, location: str) -> Any:
    """The transformers config of a base.

    Args:
        location: as for `load_base`, or a config's own file.

    Raises:
        BaseError: nothing loadable there.
    """
    from transformers import AutoConfig

    where, options = source_of(location)
    with telling_of(name, location):
        return AutoConfig.from_pretrained(where, trust_remote_code=False, **options)


@contextlib.contextmanager
def telling_of(name: str, location: str) -> Iterator[None]:
    """What transformers raises in this context about a base is raised as what it means."""
    try:
        yield
    except BaseError:
        raise
    except (OSError, ValueError, KeyError) as error:
        why = str(error).strip().partition("\n")[0]  # the next lines may list all that transformers knows
        raise BaseError(f"base {name}: {location} cannot be loaded: {why}") from error


def adopt(
    model: Any,
    *,
    name: str,
    location: str = "",
    longest: int | None = None,
    device: torch.device | None = None,
    quantize: Quantize = "none",
) -> FrozenBase:
    """Freeze a loaded transformers model and replace its linears by sites, in place.

    Args:
        device: where it shall be; where it is when None.

    Raises:
        BaseError: a model the engine cannot serve faithfully, or cannot quantise.
    """
    longest = check_config(model.config, name) if longest is None else longest
    model.set_attn_implementation(PACKED_ATTENTION)
    model.eval()
    model.requires_grad_(False)
    slot = PackSlot()
    experts = experts_of(model)
    is_mixture = bool(experts)
    if is_mixture and quantize != "none":
        raise BaseError(
            f"--quantize {quantize}: base {name} is a mixture of experts ({model.config.model_type}), and its experts, "
            f"most of its weights, would not be quantised; serve it without --quantize"
        )
    if is_mixture:
        model.set_experts_implementation(PACKED_EXPERTS)
    for module in experts:
        setattr(module, SLOT, slot)
    base = lay_out(model, slot, name=name, location=location, longest=longest, device=device, quantize=quantize)
    _shorten_rows(model)
    return base


def experts_of(model: Any) -> list[nn.Module]:
    """The modules that hold the experts of a mixture base; none of a dense one."""
    return [module for module in model.modules() if type(module).__name__.endswith("Experts")]


def lay_out(
    model: Any,
    slot: PackSlot,
    *,
    name: str,
    longest: int,
    location: str = "",
    device: torch.device | None = None,
    quantize: Quantize = "none",
) -> FrozenBase:
    """Replace the linears of a model by sites and its FFNs by `PackedFfn`s, in place; nothing else of it is changed."""
    sites = _replace_linears(model, slot, quantize, device)
    if device is not None:
        model.to(device)  # after the linears: what is quantised comes to the device one by one
    ffns = _replace_ffns(model, slot, sites)
    first = next(model.parameters())
    is_mixture = bool(experts_of(model))
    return FrozenBase(
        name, location, model, sites, ffns, slot, head_of(model), longest, is_mixture, first.device, first.dtype
    )


def _replace_linears(model: Any, slot: PackSlot, quantize: Quantize, device: torch.device | None) -> dict[str, Site]:
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    names = [name for name, m in model.named_modules() if m is not head and isinstance(m, nn.Linear | Conv1D)]
    sites: dict[str, Site] = {}
    kind = Site if quantize == "none" else Nf4Site
    for name in names:
        module = model.get_submodule(name)
        weight = module.weight.detach()
        if quantize != "none" and device is not None:
            weight = weight.to(device)
        weight_OD = weight if isinstance(module, nn.Linear) else weight.T
        bias = None if module.bias is None else module.bias.detach()
        sites[name] = kind(name, weight_OD, bias, isinstance(module, Conv1D))
        put(model, name, sites[name])
    _group(sites, slot)
    return sites


def _group(sites: dict[str, Site], slot: PackSlot) -> None:
    """Put the sites that read the same input into groups; every other one is a group by itself."""
    for name, site in sites.items():
        parent, _, leaf = name.rpartition(".")
        for suffix, members in _SHARED_INPUT:
            together = [sites[f"{parent}.{member}"] for member in members if f"{parent}.{member}" in sites]
            if leaf in members and len(together) == len(members):
                if leaf == members[0]:
                    SiteGroup(f"{parent}.{suffix}", together, slot)
                break
        else:
            SiteGroup(name, [site], slot)


def _replace_ffns(model: nn.Module, slot: PackSlot, sites: dict[str, Site]) -> dict[str, PackedFfn]:
    ffns: dict[str, PackedFfn] = {}
    same: dict[type, bool] = {}
    for name, module in list(model.named_modules()):
        form = _form_of(name, module, sites)
        if form is None:
            continue
        packed = PackedFfn(name, form, sites, getattr(module, form.act), slot)
        if type(module) not in same:
            same[type(module)] = _same_function(module, packed)
            slot.clear()
        if same[type(module)]:
            put(model, name, packed)
            ffns[name] = packed
    return ffns


def _form_of(name: str, module: nn.Module, sites: dict[str, Site]) -> FfnForm | None:
    """The form that a module has the parts of, and nothing else that it could compute with."""
    if len(inspect.signature(module.forward).parameters) != 1:
        return None
    for form in FORMS:
        parts = {*form.inner, form.outer, form.act}
        others = [child for part, child in module.named_children() if part not in parts]
        linears = all(f"{name}.{part}" in sites for part in (*form.inner, form.outer))
        known = all(isinstance(child, nn.Dropout | nn.Identity) for child in others)
        if linears and known and isinstance(getattr(module, form.act, None), nn.Module):
            return form
    return None


def _same_function(module: nn.Module, packed: PackedFfn) -> bool:
    """A module with an FFN's parts may do something else with them: compare both on a few rows."""
    dense_OD = packed.inner[0].dense()
    if is_hollow(dense_OD):
        return True
    generator = torch.Generator().manual_seed(0)
    x = torch.empty(1, 3, dense_OD.shape[1]).normal_(generator=generator).to(dense_OD.device, dense_OD.dtype)
    with torch.no_grad():
        try:
            theirs = module(x)
        except (RuntimeError, TypeError, ValueError):  # it wants other shapes or arguments
            return False
        return isinstance(theirs, Tensor) and agree(packed(x), theirs)


def _shorten_rows(model: nn.Module) -> None:
    """Put norms and rotary positions that take fewer passes where they compute the same."""
    for name, module in list(model.named_modules()):
        norm = row_norm(module)
        if norm is not None:
            put(model, name, norm)
        else:
            use_half_rotation(module)


def hash_base(base: FrozenBase) -> str:
    """sha256 over the base's weights: names, shapes, dtypes and bytes, in the model's own order."""
    digest = hashlib.sha256()
    for name, tensor in base.model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
