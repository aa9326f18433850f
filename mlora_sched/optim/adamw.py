"""AdamW of one job: one fused call for each of its flat groups, with its own rate, decay, clip and step count.

A job that takes no step is not touched: no decay, no moment update. The mathematics is torch's
(`torch.optim.adamw.adamw`, Loshchilov & Hutter, arXiv 1711.05101); clipping is torch's `clip_grad_norm_`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from mlora_sched.adapters.params import Params

BETAS = (0.9, 0.999)
EPS = 1e-8


class JobAdamW:
    """Optimiser state and step of one job.

    Args:
        lr_scales: factor on the learning rate by group; 1 where not named.
        weight_decay: decoupled. max_grad_norm: global over all groups, 0 for none.
    """

    def __init__(
        self, params: Params, lr_scales: Mapping[str, float], weight_decay: float, max_grad_norm: float
    ) -> None:
        self.params, self.lr_scales = params, dict(lr_scales)
        self.weight_decay, self.max_grad_norm = weight_decay, max_grad_norm
        self.exp_avg = {name: torch.zeros_like(flat.value) for name, flat in params.groups.items()}
        self.exp_avg_sq = {name: torch.zeros_like(flat.value) for name, flat in params.groups.items()}
        self.steps = 0
        self._device = next(iter(params.groups.values())).value.device

    def grad_norm(self) -> float:
        """Global 2-norm of the job's gradient."""
        squares = [torch.dot(flat.grad, flat.grad) for flat in self.params.groups.values()]
        return math.sqrt(float(sum(squares[1:], start=squares[0])))

    def step(self, lr: float, grad_norm: float) -> None:
        """Clip by `grad_norm` (as `grad_norm()` gave it), update the values, refresh the compute copies.

        The gradients are clipped while the kernel reads them, not in a pass of their own; by a float32 factor, as the
        kernel wants it, also where the parameters are float64.
        """
        clip: Tensor | None = None
        if self.max_grad_norm and grad_norm > self.max_grad_norm:
            clip = torch.tensor((grad_norm + 1e-6) / self.max_grad_norm, device=self._device)
        for name, flat in self.params.groups.items():
            adamw(
                [flat.value],
                [flat.grad],
                [self.exp_avg[name]],
                [self.exp_avg_sq[name]],
                [],
                [torch.tensor(float(self.steps), device=flat.value.device)],
                fused=True,
                amsgrad=False,
                beta1=BETAS[0],
                beta2=BETAS[1],
                lr=lr * self.lr_scales.get(name, 1.0),
                weight_decay=self.weight_decay,
                eps=EPS,
                maximize=False,
                grad_scale=clip,
            )
        self.steps += 1
        self.params.refresh()

    def may_overflow(self, lr: float) -> bool:
        """Whether a step at this rate can turn finite values and gradients into values that are not finite.

        An update is at most 8 rates long (Cauchy-Schwarz on the two moments, with these betas), so that at a rate of
        at most 1, with decay that shrinks, no number of steps leads out of float32.
        """
        rate = lr * max((self.lr_scales.get(name, 1.0) for name in self.params.groups), default=0.0)
        return rate > 1.0 or rate * self.weight_decay > 1.0

    def state(self) -> dict[str, Tensor]:
        """Moments by name, for a checkpoint; `steps` is kept beside them."""
        avg = {f"exp_avg/{name}": value for name, value in self.exp_avg.items()}
        return avg | {f"exp_avg_sq/{name}": value for name, value in self.exp_avg_sq.items()}

    def load_state(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Take back what `state` gave."""
        for name in self.exp_avg:
            self.exp_avg[name].copy_(state[f"exp_avg/{name}"])
            self.exp_avg_sq[name].copy_(state[f"exp_avg_sq/{name}"])
        self.steps = steps
