"""What each adapter method holds and needs, in closed form: parameters of a job, bytes a token of its ops.

One function a method, beside the formula that adds them up. The counts follow the ops in `mlora_sched.adapters` line
by line; a trace of the real step checks them. No torch here.

Legend of sizes: i bytes of a number of the base, w bytes of its float32 copy (0 where the base is float32 already),
D input width, O output widths of a group's sites, R rank, F width of an FFN's product, K choices a token, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlora_sched.spec.adapter import AdapterSpec
from mlora_sched.spec.memory import FfnShape, GroupShape, LayerShape
from mlora_sched.spec.plain import DoraSpec, PlainMethod
from mlora_sched.spec.routed import DynMoleSpec, FfnExpertsSpec, LlavaMoleSpec, LoraMoeSpec, MixLoraSpec, MolaSpec

_WIDE = 4
"""Bytes of float32."""
_DRAW = 4
"""Bytes an element while a dropout mask is drawn: 16 bits of noise and what they compare to, or a float32 on a GPU."""


@dataclass(frozen=True, slots=True)
class OpCost:
    """Bytes a token of one job's op at one group.

    Attributes:
        saved: kept for backward. forward, backward, input: let go again when that part of the op is done.
        held: from its backward until the group's input gradient is complete.
        copied: a token of the whole pack, where the method scales the gradients of the outputs.
    """

    saved: float
    forward: float
    backward: float
    held: float
    input: float
    copied: float


@dataclass(frozen=True, slots=True)
class RoutedCost:
    """Bytes a token of one job's routed experts at one FFN: `saved` for backward, the others while they run."""

    ffn: FfnShape
    saved: float
    forward: float
    backward: float


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One job's adapter in one kind of layer: its ops by place of the group, its routed experts."""

    ops: dict[int, OpCost]
    routed: RoutedCost | None


def layer_cost(
    adapter: AdapterSpec, layer: LayerShape, targets: frozenset[str], itemsize: int, *, training: bool = True
) -> LayerCost:
    """What an adapter costs in a kind of layer.

    Args:
        targets: paths within the layer of the sites that it sits on. training: with a backward to come.
    """
    inside = _inside_experts(adapter, layer)
    ops: dict[int, OpCost] = {}
    for at, group in enumerate(layer.groups):
        outputs = [site.outputs for site in group.sites if site.path in targets - inside]
        if outputs:
            ops[at] = _op_cost(_plain(adapter), group, outputs, itemsize)
    routed = None
    if isinstance(adapter, MixLoraSpec | LlavaMoleSpec) and targets & inside:
        ffn = next(ffn for ffn in layer.ffns if not targets.isdisjoint(ffn.linears))
        activation = ffn.activation if training else 0.0
        routed = _routed_cost(adapter, ffn, _widths(layer, ffn), targets, itemsize, activation)
    return LayerCost(ops, routed)


def _inside_experts(adapter: AdapterSpec, layer: LayerShape) -> frozenset[str]:
    """Paths of the sites that a routed method makes experts of."""
    return layer.in_ffn if isinstance(adapter, FfnExpertsSpec) else frozenset()


def _plain(adapter: AdapterSpec) -> AdapterSpec:
    """What sits on the sites that are no experts."""
    return adapter.plain if isinstance(adapter, FfnExpertsSpec) else adapter


def _widths(layer: LayerShape, ffn: FfnShape) -> dict[str, int]:
    """Outputs of the linears of an FFN, by path."""
    return {site.path: site.outputs for group in layer.groups for site in group.sites if site.path in ffn.linears}


def _op_cost(adapter: AdapterSpec, group: GroupShape, outputs: Sequence[int], i: int) -> OpCost:
    """`LoraOp` at a group, and what `DoraOp` adds; or `MixedOp`."""
    if isinstance(adapter, DynMoleSpec | MolaSpec | LoraMoeSpec):
        return _mixed_cost(adapter, group, outputs, i)
    D, K, w = group.inputs, adapter.r * len(outputs), _WIDE if i < _WIDE else 0
    mask = D * i if adapter.dropout else 0
    drawing = max(_DRAW * D + mask, 2 * mask) if adapter.dropout else 0
    again = max(_DRAW * D - mask, 0) if adapter.dropout else 0
    cost = OpCost(
        saved=K * i,
        forward=drawing,
        backward=max(w * (adapter.r + max(outputs)), w * (K + D), again),
        held=K * i + 2 * mask,
        input=mask,
        copied=0,
    )
    if not isinstance(adapter, DoraSpec):
        return cost
    products = (3 if w else 1) * _WIDE * max(outputs)
    return OpCost(
        saved=cost.saved + i * sum(outputs),
        forward=cost.forward,
        backward=max(cost.backward, products - cost.held),  # before there is anything to hold
        held=cost.held,
        input=cost.input,
        copied=i * sum(site.outputs for site in group.sites),
    )


def _mixed_cost(
    adapter: DynMoleSpec | MolaSpec | LoraMoeSpec, group: GroupShape, outputs: Sequence[int], i: int
) -> OpCost:
    """`MixedOp` at a group; C routers' outputs a token."""
    D, E, w = group.inputs, _experts_of(adapter), _WIDE if i < _WIDE else 0
    C, J = len(outputs) * E, E * adapter.r
    K = J * len(outputs)
    mask = D * i if adapter.dropout else 0
    drawing = max(_DRAW * D + mask - K * i, 2 * mask) if adapter.dropout else 0
    again = max(_DRAW * D - mask, 0) if adapter.dropout else 0
    narrow = C * i if w else 0  # the weights, as the products read them
    held = K * i + C * i + 2 * mask
    routing = 2 * _WIDE * C
    choosing = (5 * _WIDE + 8) * C - K * i  # before A x is there
    return OpCost(
        saved=K * i + (_WIDE * C if isinstance(adapter, LoraMoeSpec) else routing),
        forward=max(drawing, K * i + narrow, choosing, w * D - K * i - _WIDE * C),
        backward=max(
            2 * K * i + max(w * (J + max(outputs)), narrow) - held,
            K * i + K * (2 * w + _WIDE) - held,  # the weights' gradient
            _WIDE * C - C * i + max(w * (K + D), again),
            (6 * _WIDE - i) * C + w * D,  # that of the probabilities
        ),
        held=held,
        input=mask,
        copied=0,
    )


def _routed_cost(
    adapter: MixLoraSpec | LlavaMoleSpec,
    ffn: FfnShape,
    widths: dict[str, int],
    targets: frozenset[str],
    i: int,
    activation: float,
) -> RoutedCost:
    """`FfnExpertsOp`: routed rows are K a token. `activation` is what autograd keeps of it."""
    K, E, R, F, h = adapter.most_choices, adapter.num_experts, adapter.r, ffn.width, ffn.hidden
    w = _WIDE if i < _WIDE else 0
    dora = adapter.expert_method is PlainMethod.DORA
    *inner, outer = ffn.linears
    inside = [widths[path] for path in inner if path in targets]
    has_outer = outer in targets
    masks = 2 if adapter.dropout and has_outer else 0  # the mask and what it leaves
    width = sum(widths[path] for path in inner)
    routing = (_WIDE + 8) * E + (_WIDE + 8 + 8) * K
    pairs = (len(inside) + has_outer) * R + (h if inside else 0) + (h if has_outer else 0)
    directions = (sum(inside) + (h if has_outer else 0)) if dora else 0
    saved = K * i * (width + F * (1 + activation + masks) + pairs + directions) + routing
    drawing = K * F * max(_DRAW - i, i) if masks else 0
    forward = max(2 * F * i, (F + 2 * h) * i, drawing)
    found = K * (F + width) * i  # gradients of the product and of the inner linears, until the end
    let_go = K * F * activation * i  # by autograd, when it has passed the activation
    passing = 0 if ffn.is_gated else 2 * K * F * i * bool(activation)  # an activation of several operations goes back
    widening = w * (F + h)  # of one expert's rows, of which a token has one at most
    scaling = 2 * w + _WIDE if dora else 0
    n = len(inside)
    inwards = max(K * (n + 1) * h * i, K * n * h * i + widening, K * (n - 1) * h * i + scaling * F) if inside else 0
    outwards = K * (h + F * (1 if dora else 2)) * i + max(K * F * i, widening, scaling * h - K * F * i)
    weights = K * ((h if dora and has_outer else F) * (i + (3 if w else 1) * _WIDE))
    steps = (found + passing, found - let_go + max(inwards, (width + h) * i), outwards if has_outer else 0, weights)
    return RoutedCost(ffn, saved, forward, max(steps))


# ---------------------------------------------------------------------- what a job holds

_ALIGN = 16
"""Numbers to a multiple of which every parameter starts."""


def parameters(adapter: AdapterSpec, layer: LayerShape, targets: frozenset[str]) -> int:
    """Trained numbers of an adapter in one layer, with their alignment."""
    inside = _inside_experts(adapter, layer)
    count = sum(_pairs(_plain(adapter), group, targets - inside) for group in layer.groups)
    if isinstance(adapter, FfnExpertsSpec):
        count += sum(_experts(adapter, ffn, _widths(layer, ffn), targets) for ffn in layer.ffns)
    return count


def _pairs(adapter: AdapterSpec, group: GroupShape, targets: frozenset[str]) -> int:
    outputs = [site.outputs for site in group.sites if site.path in targets]
    if isinstance(adapter, DynMoleSpec | MolaSpec | LoraMoeSpec) and outputs:
        E, joined = _experts_of(adapter), group.inputs * len(outputs)
        routers, a = _aligned(E * joined), _aligned(E * adapter.r * joined)
        return routers + a + sum(_aligned(E * adapter.r * width) for width in outputs)
    count = _aligned(adapter.r * group.inputs * len(outputs)) + sum(_aligned(adapter.r * width) for width in outputs)
    return count + (sum(map(_aligned, outputs)) if isinstance(adapter, DoraSpec) else 0)


def _experts(adapter: FfnExpertsSpec, ffn: FfnShape, widths: dict[str, int], targets: frozenset[str]) -> int:
    found = [path for path in ffn.linears if path in targets]
    if not found:
        return 0
    E, R = adapter.num_experts, adapter.r
    count = _aligned(E * ffn.hidden) + (_aligned(E) if isinstance(adapter, LlavaMoleSpec) else 0)
    for path in found:
        inputs = ffn.width if path == ffn.linears[-1] else ffn.hidden
        count += _aligned(E * R * inputs) + _aligned(E * R * widths[path])
        if adapter.expert_method is PlainMethod.DORA:
            count += _aligned(E * widths[path])
    return count


def derived(adapter: AdapterSpec, layer: LayerShape, targets: frozenset[str], itemsize: int) -> int:
    """Bytes that a method keeps beside its parameters in one layer: DoRA's row norms and ratios."""
    inside, count = _inside_experts(adapter, layer), 0
    for group in layer.groups:
        for site in group.sites:
            if site.path not in targets:
                continue
            if site.path in inside and _has_dora_experts(adapter):
                count += site.outputs * (_WIDE + (_WIDE + itemsize) * _experts_of(adapter))
            elif site.path not in inside and isinstance(_plain(adapter), DoraSpec):
                count += site.outputs * (2 * _WIDE + itemsize)
    return count


def step_work(adapter: AdapterSpec, layer: LayerShape, targets: frozenset[str], itemsize: int) -> int:
    """Bytes that beginning a step takes for a moment: DoRA takes the row norms of one site after another."""
    inside, most = _inside_experts(adapter, layer), 0
    wide = _WIDE if itemsize < _WIDE else 0
    for group in layer.groups:
        for site in group.sites:
            if site.path not in targets:
                continue
            if site.path in inside and _has_dora_experts(adapter):
                own = wide * group.inputs + 3 * _WIDE * adapter.r + 2 * _WIDE * _experts_of(adapter)
            elif site.path not in inside and isinstance(_plain(adapter), DoraSpec):
                own = wide * group.inputs + 3 * _WIDE * _plain(adapter).r
            else:
                continue
            most = max(most, site.outputs * own)
    return most


def _has_dora_experts(adapter: AdapterSpec) -> bool:
    return isinstance(adapter, FfnExpertsSpec) and adapter.expert_method is PlainMethod.DORA


def _experts_of(adapter: AdapterSpec) -> int:
    """Experts of an FFN or of a linear; those of MoLA in one layer."""
    if isinstance(adapter, MolaSpec):
        (count,) = adapter.counts
        return count
    assert isinstance(adapter, FfnExpertsSpec | DynMoleSpec | LoraMoeSpec), "the method has no experts"
    return adapter.num_experts


def _aligned(count: int) -> int:
    return -(-count // _ALIGN) * _ALIGN
