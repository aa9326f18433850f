"""Proof at load that the engine computes what transformers computes: packed logits against `model.forward`, row by row.

A config cannot tell everything: a model may drop keyword arguments, scale its logits in a way of its own, or pass its
attention something that packed attention does not know. So the loaded base runs a pack of two random rows and
padding, and each row alone through transformers' own eager path. What differs is refused.

Windows too long for a quick test are checked by count: every sliding layer of the config must hand its window to the
attention. Not here: whether a row's bits depend on its company (the probe), and anything about adapters.

Legend: T rows of the pack, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from mlora_sched.errors import BaseError
from mlora_sched.model.attention import PACKED_ATTENTION, SpanPlan, packed_attention
from mlora_sched.model.base import FrozenBase
from mlora_sched.model.experts import PACKED_EXPERTS
from mlora_sched.model.rowwise import as_transformers

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest difference allowed, relative to the largest logit, by dtype; other dtypes have bfloat16's."""

MIXTURE_QUANTILE = 0.75
"""Share of a mixture's tokens that must agree. A router near a tie may choose another expert after a rounding, which
changes that token's logits and, a little, those after it in its row; a wrong computation changes nearly all tokens, or
all beyond the window, of which the longer row has more than this leaves out."""

_LONG, _SHORT, _PADDING = 48, 19, 5
_LARGEST_TESTED_WINDOW = 64
_WITNESS = "mlora_packed_witness"


def verify_base(base: FrozenBase) -> float:
    """Compare the engine's packed logits with transformers' eager forward.

    Returns:
        Largest |difference| / largest |logit| (for a mixture: over tokens the `MIXTURE_QUANTILE`).

    Raises:
        BaseError: they differ by more than `TOLERANCE`, or the model does not run packed at all.
    """
    assert not base.slot.placed, "a pack is running"
    assert not base.slot.routed, "a pack is running"
    rows = _random_rows(base)
    groups = {site.group for site in base.sites.values()}
    before = {group: group.runs for group in groups}
    with torch.no_grad():
        packed_TV, windows = _packed_logits(base, rows)
        _check_windows(base, windows)
        _check_runs(base, [group.name for group in groups if group.runs > before[group] + 1])
        eager_TV = _eager_logits(base, rows)
    by_token_T = (packed_TV - eager_TV).abs().amax(dim=1) / eager_TV.abs().max()
    worst = torch.quantile(by_token_T, MIXTURE_QUANTILE) if base.is_mixture else by_token_T.max()
    difference = float(worst)
    limit = TOLERANCE.get(base.dtype, TOLERANCE[torch.bfloat16])
    if not difference <= limit:
        raise BaseError(
            f"base {base.name}: packed logits of {base.model.config.model_type} differ from transformers' own by "
            f"{difference:.1e} of the largest (allowed {limit:.0e}); the engine does not compute this architecture "
            f"faithfully, so it cannot be served"
        )
    return difference


def _random_rows(base: FrozenBase) -> list[Tensor]:
    """Two rows of token ids; the longer one crosses the sliding window where that is short enough to be tested."""
    window = _window(base)
    long = _LONG if window is None or window > _LARGEST_TESTED_WINDOW else max(_LONG, 2 * window)
    generator = torch.Generator().manual_seed(0)
    vocabulary = base.model.get_input_embeddings().weight.shape[0]
    lengths = (min(length, base.longest) for length in (_SHORT, long))
    return [torch.randint(vocabulary, (length,), generator=generator).to(base.device) for length in lengths]


def _packed_logits(base: FrozenBase, rows: Sequence[Tensor]) -> tuple[Tensor, list[int | None]]:
    """Float32 logits of all rows in one pack, and the window that each layer's attention was handed."""
    lengths = [len(row) for row in rows]
    ids_T = nn.functional.pad(torch.cat(list(rows)), (0, _PADDING))
    positions_T = nn.functional.pad(torch.cat([torch.arange(n) for n in lengths]), (0, _PADDING)).to(base.device)
    windows: list[int | None] = []
    base.model.set_attn_implementation(_WITNESS)
    try:
        out = base.model.base_model(
            input_ids=ids_T[None],
            position_ids=positions_T[None],
            use_cache=False,
            pack_spans=SpanPlan.of(lengths, len(ids_T)),
            windows_seen=windows,
        )
    finally:
        base.model.set_attn_implementation(PACKED_ATTENTION)
    return base.head.logits(out.last_hidden_state[0, : sum(lengths)]).float(), windows


def _eager_logits(base: FrozenBase, rows: Sequence[Tensor]) -> Tensor:
    """Float32 logits of each row by itself as transformers computes them, stacked."""
    base.model.set_attn_implementation("eager")
    if base.is_mixture:
        base.model.set_experts_implementation("eager")
    try:
        with as_transformers(base.model):
            return torch.cat([base.model(input_ids=row[None], use_cache=False).logits[0] for row in rows]).float()
    finally:
        base.model.set_attn_implementation(PACKED_ATTENTION)
        if base.is_mixture:
            base.model.set_experts_implementation(PACKED_EXPERTS)


def _check_windows(base: FrozenBase, seen: Sequence[int | None]) -> None:
    """Every sliding layer handed its window to the attention, and no other layer did."""
    config = base.model.config.get_text_config()
    if len(seen) < config.num_hidden_layers:
        raise BaseError(
            f"base {base.name}: only {len(seen)} of the {config.num_hidden_layers} layers of {config.model_type} run "
            f"packed attention; the others would mix the sequences of a pack"
        )
    window = _window(base)
    if window is not None and window >= base.longest:
        return
    expected = 0 if window is None else _sliding_layers(config)
    found = [w for w in seen if w is not None]
    if found != [window] * expected:
        raise BaseError(
            f"base {base.name}: the config of {config.model_type} has {expected} layers with a sliding window"
            f"{'' if window is None else f' of {window}'}, but its attention was handed {found or 'none'}; "
            f"long sequences would see too much or too little"
        )


def _check_runs(base: FrozenBase, repeated: Sequence[str]) -> None:
    """No layer is applied twice: an adapter's op writes the gradient of its step's first chunk once."""
    if repeated:
        raise BaseError(
            f"base {base.name}: {base.model.config.model_type} applies {min(repeated)} more than once in a forward; "
            f"models that share layers cannot be served"
        )


def _window(base: FrozenBase) -> int | None:
    config = base.model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    return int(window) if window and getattr(config, "use_sliding_window", True) else None


def _sliding_layers(config: Any) -> int:
    types = getattr(config, "layer_types", None)
    return int(config.num_hidden_layers) if types is None else list(types).count("sliding_attention")


def _witness(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Packed attention that notes the window it is handed, in the list given as `windows_seen`."""
    options.pop("windows_seen", []).append(options.get("sliding_window"))
    return packed_attention(module, query, key, value, attention_mask, **options)


AttentionInterface.register(_WITNESS, _witness)
