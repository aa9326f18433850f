"""Row-wise pieces of a base in fewer passes over memory: RMS norms, rotary positions, gated products.

Transformers writes them as chains of elementwise operations, whose backward autograd takes apart again; on a CPU they
cost a quarter of what the base's matrix products cost. Here each is one autograd function with its gradient written
down. Which modules are of which kind is found by computing: what gives other numbers than ours stays as it is.

Not here: layer norms, which torch has as one operation, and rotations of interleaved or partial heads.

Legend: T rows of the pack, D width, H heads, E head width, F intermediate width.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

_ROTARY = "apply_rotary_pos_emb"
"""Name under which transformers' attention modules find the function that turns queries and keys."""
Rotary = Callable[..., tuple[Tensor, Tensor]]


class RowNorm(nn.Module):
    """RMS norm (Zhang & Sennrich, 2019, arXiv 1910.07467) with a frozen gain: x / √(mean(x²) + ε) · (gain + shift).

    Attributes:
        weight: (D,) the frozen gain, under the name that the replaced module had for it.
        shift: 1.0 where the model adds one to its gain (Gemma), else 0.0.
        gain_wide: the gain is applied before the cast to the base's dtype (OLMo-2) and not after it (Llama).
        original: the module in whose place this one stands; no part of the tree of modules.
    """

    original: nn.Module

    def __init__(self, original: nn.Module, eps: float, shift: float, gain_wide: bool) -> None:
        super().__init__()
        object.__setattr__(self, "original", original)
        self.weight, self.eps, self.shift, self.gain_wide = original.weight, eps, shift, gain_wide

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D); the mean is taken in float32."""
        y: Tensor = _RowNormFunction.apply(x, self.weight, self.eps, self.shift, self.gain_wide)  # type: ignore[no-untyped-call]
        return y


class _RowNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float, shift: float, gain_wide: bool) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        x_wide = x.to(wide)
        # a norm and not a mean of squares: one pass, and no tensor of squares
        scale_T1 = torch.linalg.vector_norm(x_wide, dim=-1, keepdim=True)
        scale_T1.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, scale_T1, weight_D)
        ctx.shift = shift
        if not gain_wide:
            return torch.mul(x_wide, scale_T1).to(x.dtype).mul_(weight_D)
        return torch.mul(x_wide, scale_T1).mul_(weight_D.to(wide) + shift).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        """dx = r·g − x·r³·⟨g, x⟩/D with g = dy·(gain + shift) and r the row's scale."""
        x, scale_T1, weight_D = ctx.saved_tensors
        x_wide = x.to(scale_T1.dtype)
        gain_D = weight_D.to(scale_T1.dtype) + ctx.shift if ctx.shift else weight_D.to(scale_T1.dtype)
        g = grads[0].to(scale_T1.dtype) * gain_D
        back_T1 = torch.linalg.vecdot(g, x_wide)[..., None]
        back_T1.mul_(scale_T1).mul_(scale_T1).mul_(scale_T1).div_(-x.shape[-1])
        return g.mul_(scale_T1).addcmul_(x_wide, back_T1).to(x.dtype), None, None, None, None


_TRIAL_ROWS, _TRIAL_MISMATCHES = 16, 0.05
"""In bfloat16 a gain applied before the cast and one applied after it differ in a quarter of all numbers."""


def row_norm(module: nn.Module) -> RowNorm | None:
    """The same norm as `module` computes, in fewer passes; None where the module computes something else."""
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    held = [*module.named_parameters(), *module.named_buffers()]
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(eps, float):
        return None
    if [name for name, _ in held] != ["weight"] or held[0][1].dim() != 1:
        return None
    for shift, gain_wide in ((0.0, False), (0.0, True), (1.0, True)):
        ours = RowNorm(module, eps, shift, gain_wide)
        if all(_same_norm(ours, dtype) for dtype in (torch.float32, torch.bfloat16)):
            return ours
    return None


def _same_norm(ours: RowNorm, dtype: torch.dtype) -> bool:
    """Whether it computes what its original does, tried on copies, which may lie on any device, or on none."""
    generator = torch.Generator().manual_seed(0)
    theirs: Any = copy.deepcopy(ours.original).to_empty(device="cpu").to(dtype)
    width = len(theirs.weight)
    x_TD = torch.empty(_TRIAL_ROWS, width).normal_(generator=generator).to(dtype)
    x_TD[0] *= ours.eps**0.5  # small enough for ε to count
    with torch.no_grad():
        theirs.weight.normal_(generator=generator)
        expected_TD = theirs(x_TD)
        found_TD = RowNorm(theirs, ours.eps, ours.shift, ours.gain_wide)(x_TD)
    if not agree(found_TD, expected_TD):
        return False
    return dtype is torch.float32 or float((found_TD != expected_TD).float().mean()) <= _TRIAL_MISMATCHES


class _Turn(torch.autograd.Function):
    """x·cos + rotate_half(x)·sin, with rotate_half([a, b]) = [−b, a] (Su et al., 2021, arXiv 2104.09864)."""

    @staticmethod
    def forward(ctx: Any, x_HTE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
        ctx.save_for_backward(cos_TE, sin_TE)
        y_HTE = x_HTE * cos_TE
        (y_low, y_high), (low, high), (sin_low, sin_high) = (t.chunk(2, dim=-1) for t in (y_HTE, x_HTE, sin_TE))
        y_low.addcmul_(high, sin_low, value=-1.0)
        y_high.addcmul_(low, sin_high)
        return y_HTE

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos_TE, sin_TE = ctx.saved_tensors
        (dy_HTE,) = grads
        dx_HTE = dy_HTE * cos_TE
        (dx_low, dx_high), (low, high), (sin_low, sin_high) = (t.chunk(2, dim=-1) for t in (dx_HTE, dy_HTE, sin_TE))
        dx_low.addcmul_(high, sin_high)
        dx_high.addcmul_(low, sin_low, value=-1.0)
        return dx_HTE, None, None


def half_rotation(original: Rotary) -> Rotary:
    """A function like transformers' own that turns whole heads in fewer passes, and leaves all else to `original`."""

    def turn(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if args or kwargs or cos.shape[-1] != q.shape[-1] or cos.dtype != q.dtype:
            return original(q, k, cos, sin, *args, **kwargs)
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return _Turn.apply(q, cos, sin), _Turn.apply(k, cos, sin)  # type: ignore[no-untyped-call]

    return turn


def turns_halves(original: Rotary) -> bool:
    """True when transformers' function of this model computes what `half_rotation` does."""
    if list(inspect.signature(original).parameters)[:4] != ["q", "k", "cos", "sin"]:
        return False
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.empty(1, 2, 5, 8).normal_(generator=generator) for _ in range(2))
    cos, sin = (torch.empty(1, 5, 8).normal_(generator=generator) for _ in range(2))
    with torch.no_grad():
        try:
            theirs = original(q, k, cos, sin)
        except RuntimeError:  # it wants other shapes
            return False
        ours = half_rotation(original)(q, k, cos, sin)
    return all(agree(a, b) for a, b in zip(ours, theirs, strict=True))


def use_half_rotation(module: nn.Module) -> bool:
    """Let this attention module, and no other of its class, turn its queries and keys in fewer passes.

    Its forward finds the function by its name among the globals of transformers' file; this module gets a forward of
    the same code with that one name bound otherwise. Returns False where that is not how the module works.
    """
    forward = type(module).forward
    if not isinstance(forward, types.FunctionType) or _ROTARY not in forward.__code__.co_names:
        return False
    original = forward.__globals__.get(_ROTARY)
    if original is None or not turns_halves(original):
        return False
    names = {**forward.__globals__, _ROTARY: half_rotation(original)}
    ours = types.FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    ours.__kwdefaults__ = forward.__kwdefaults__
    module.forward = types.MethodType(ours, module)
    return True


@contextlib.contextmanager
def as_transformers(model: nn.Module) -> Iterator[None]:
    """Let norms and rotary positions be the model's own again while the context lasts."""
    norms = [(name, module) for name, module in model.named_modules() if isinstance(module, RowNorm)]
    turning = [module for module in model.modules() if _turns_here(module)]
    forwards = [vars(module).pop("forward") for module in turning]
    for name, norm in norms:
        put(model, name, norm.original)
    try:
        yield
    finally:
        for name, norm in norms:
            put(model, name, norm)
        for module, forward in zip(turning, forwards, strict=True):
            module.forward = forward


def _turns_here(module: nn.Module) -> bool:
    """`use_half_rotation` gave it its forward."""
    forward = vars(module).get("forward")
    return isinstance(forward, types.MethodType) and _ROTARY in forward.__func__.__code__.co_names


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Make `module` the model's module of that dotted name."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def gated_product(act: nn.Module, gate: Tensor, up: Tensor) -> Tensor:
    """act(gate) · up, (…, F), of which backward keeps gate and up alone: the activation is computed again."""
    product: Tensor = _GatedProduct.apply(gate, up, act)  # type: ignore[no-untyped-call]
    return product


class _GatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, act: nn.Module) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.act = act
        activated: Tensor = act(gate)
        # storages and not addresses: what a trace computes with has none
        same = activated.untyped_storage()._cdata == gate.untyped_storage()._cdata
        return activated * up if same else activated.mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        (dproduct,) = grads
        with torch.enable_grad():
            gate = gate.detach().requires_grad_()
            activated: Tensor = ctx.act(gate)
        (dgate,) = torch.autograd.grad(activated, gate, dproduct * up)
        return dgate, activated.detach() * dproduct, None


def agree(ours: Tensor, theirs: Tensor) -> bool:
    """Equal within a few roundings."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    largest = float(theirs.abs().max())
    return float((ours - theirs).abs().max()) <= 4 * torch.finfo(theirs.dtype).eps * largest
