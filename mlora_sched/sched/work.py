"""What a piece of training costs, in floating-point operations: what owners are charged and step times are fitted to.

Counted are the products that a device spends its time on, by the plain rule of two operations a weight and row:

- *Frozen linears*, experts of a mixture base by those a token is sent to: forward, and once more backward for the
  gradient of the input; their own gradients are never formed.
- *Attention*: forward it makes two products, scores and values; backward five, since scores are made anew and queries,
  keys, values and probabilities get gradients. A product over a row of L tokens takes 2 · L² · width, of which a
  causal mask leaves half. A sliding window is not taken off: it is computed as a mask.
- *Adapters*: one product with each number that a token meets forward, two backward; routed experts of an FFN by the
  `top_k` of them that a token is sent to, those of single linears all, since all are computed.
- *The head*: of the tokens that carry loss, forward and backward.

Where a base recomputes activations its layers run forward twice. Left out are norms, the optimiser and whatever is
done once a step, such as DoRA's row norms: they are small, and what is charged is to be the same alone and in company.

Pure: a base's shape and sizes in, numbers out. What it takes in seconds is learned in `sched.step_time`.
"""

from __future__ import annotations

from mlora_sched.memory.costs import parameters
from mlora_sched.memory.formula import loose_layer, loose_targets, targets_in
from mlora_sched.spec.adapter import AdapterSpec
from mlora_sched.spec.load import Load
from mlora_sched.spec.memory import BaseShape, LayerShape
from mlora_sched.spec.routed import LlavaMoleSpec, MixLoraSpec

GIGA = 1e9
"""Operations in a unit of work: 1 GFLOP."""

_SCORES_AND_VALUES, _BACKWARD = 2, 5
"""Products of attention, forward and backward."""


class WorkModel:
    """The work of pieces of jobs on the base that has this shape. What depends on an adapter alone is remembered."""

    def __init__(self, shape: BaseShape) -> None:
        self._shape = shape
        self._linear = shape.experts + sum(
            site.outputs * group.inputs
            for layer in (*(shape.kinds[kind] for kind in shape.order), loose_layer(shape))
            for group in layer.groups
            for site in group.sites
        )
        self._met: dict[AdapterSpec, int] = {}

    @classmethod
    def of(cls, shape: BaseShape) -> WorkModel:
        """The model of the base that has this shape."""
        return cls(shape)

    def of_segment(self, adapter: AdapterSpec, tokens: float, squares: float, targets: float, training: bool) -> float:
        """GFLOP of some rows of one job.

        Args:
            tokens: of all rows. squares: Σ L² over them. targets: tokens that carry loss.
            training: with a backward; else the forward of an evaluation.
        """
        shape, forward = self._shape, 2 if training and self._shape.recompute else 1
        gradients = 1 if training else 0
        linear = self._linear * tokens * (forward + gradients)
        adapted = self._of(adapter) * tokens * (forward + 2 * gradients)
        products = _SCORES_AND_VALUES * forward + _BACKWARD * gradients
        attention = shape.attention * squares / 2 * products
        head = shape.vocabulary * shape.hidden * targets * (1 + gradients)
        return 2 * (linear + adapted + attention + head) / GIGA

    def of_load(self, adapter: AdapterSpec, load: Load, training: bool) -> float:
        """GFLOP of a step, or of an evaluation."""
        return self.of_segment(adapter, load.tokens, load.squares, load.targets, training)

    def _of(self, adapter: AdapterSpec) -> int:
        """Numbers of an adapter that a token meets, over all layers."""
        if adapter not in self._met:
            shape, targets = self._shape, targets_in(self._shape, adapter)
            met = _met(adapter, loose_layer(shape), loose_targets(shape, adapter))
            for at, (kind, found) in enumerate(zip(shape.order, targets, strict=True)):
                met += _met(adapter.at_layer(at, len(shape.order)), shape.kinds[kind], found)
            self._met[adapter] = met
        return self._met[adapter]


def _met(adapter: AdapterSpec, layer: LayerShape, targets: frozenset[str]) -> int:
    """Numbers of an adapter in a layer that one token is multiplied with: all routers, but the experts it is sent to.

    Where that is as many as the router likes (`dynamic`), all experts count.
    """
    if not isinstance(adapter, MixLoraSpec | LlavaMoleSpec):
        return parameters(adapter, layer, targets)
    few = adapter.model_copy(update={"num_experts": adapter.most_choices})
    routed = [ffn for ffn in layer.ffns if not targets.isdisjoint(ffn.linears)]
    others = (adapter.num_experts - adapter.most_choices) * sum(ffn.hidden for ffn in routed)
    return parameters(few, layer, targets) + others
