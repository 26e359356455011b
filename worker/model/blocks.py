"""The arithmetic both halves of the network share: a transformer block over a packed row. Knows tensors only.

Reads the weights of the stock modules it is made from, in place: joined where one multiplication does for several,
the stock modules keeping views of them. Where the row is wider than the weights, the weights are widened in passing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from worker.model.segments import Segments, attend

__all__ = ["EAGER", "Block", "Dense", "Steps", "compiled", "joined", "norm", "rotated"]


class Dense:
    """A linear layer: the stock layer's weight (and bias), taken when made."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._weight = weight
        self._bias = bias

    @classmethod
    def of(cls, layer: nn.Linear) -> "Dense":
        """Return the same layer."""
        return cls(layer.weight.data, None if layer.bias is None else layer.bias.data)

    def __call__(self, states: Tensor) -> Tensor:
        """Return the layer's output, of the type of `states`."""
        bias = None if self._bias is None else _as(self._bias, states)
        return functional.linear(states, _as(self._weight, states), bias)

    def add_to(self, row: Tensor, states: Tensor) -> None:
        """Add the layer's output to `row`, without a tensor in between where that costs no precision."""
        if row.dtype != torch.float32 and not row.is_cuda:
            row.add_(self(states))  # a CPU rounds the sums of a narrow addmm_ several times
            return
        row.addmm_(states, _as(self._weight, states).t())
        if self._bias is not None:
            row.add_(_as(self._bias, states))


def joined(*layers: nn.Linear) -> Dense:
    """Return one layer whose output is those of `layers` side by side; they go on with views of its weights."""
    weight = torch.cat([layer.weight.data for layer in layers])
    bias = None if layers[0].bias is None else torch.cat([layer.bias.data for layer in layers])
    start = 0
    for layer in layers:
        end = start + layer.out_features
        layer.weight.data = weight[start:end]
        if bias is not None:
            layer.bias.data = bias[start:end]
        start = end
    return Dense(weight, bias)


def norm(states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return the RMS norm of each of `states`, in fewer passes than the stock one."""
    return functional.rms_norm(states, weight.shape, _as(weight, states), epsilon)


def rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return `heads` (n_tokens x heads x width), turned.

    `cos` and `sin` of the angles are float32 (n_tokens x 1 x width); so is the computation.
    """
    half = heads.shape[-1] // 2
    turned = heads * cos
    turned[..., :half].addcmul_(heads[..., half:], sin[..., :half], value=-1)
    turned[..., half:].addcmul_(heads[..., :half], sin[..., half:])
    return _as(turned, heads)


def gated(gate_up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the activated first half of each row times its second half."""
    gate, up = gate_up.chunk(2, dim=-1)
    return activation(gate).mul_(up)


@dataclass(frozen=True, slots=True)
class Steps:
    """What lies between the matrix products: each reads and writes the whole row, so memory is what it costs."""

    norm: Callable[[Tensor, Tensor, float], Tensor]
    rotated: Callable[[Tensor, Tensor, Tensor], Tensor]
    gated: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]


EAGER = Steps(norm, rotated, gated)


def compiled() -> Steps:
    """Return the same steps, each one kernel, for rows of any length; compiled when first run, which takes a while.

    The regions are small on purpose: attention's list of segments would otherwise be compiled in, batch by batch.
    """
    return Steps(*(torch.compile(step, dynamic=True) for step in (norm, rotated, gated)))


class Block:
    """Attention and gated MLP, each behind its norm and added to the row."""

    def __init__(  # noqa: PLR0913 - the parts of a block
        self,
        *,
        steps: Steps,
        norms: tuple[Any, Any],
        qkv: Dense,
        out: Dense,
        heads: int,
        key_heads: int,
        mlp: Any,
        causal: bool,
    ) -> None:
        self._steps = steps
        self._norms = [(module.weight.data, module.variance_epsilon) for module in norms]
        self._qkv, self._out = qkv, out
        self._heads, self._key_heads = heads, key_heads
        self._gate_up, self._down = joined(mlp.gate_proj, mlp.up_proj), Dense.of(mlp.down_proj)
        # The function, which all blocks share, in place of a module each: compiled, they would be told apart.
        self._activation = functional.silu if isinstance(mlp.act_fn, nn.SiLU) else mlp.act_fn
        self._causal = causal

    def __call__(self, row: Tensor, cos: Tensor, sin: Tensor, segments: Segments) -> None:
        """Run the block on `row` (n_tokens x hidden), in place."""
        turning = self._heads + self._key_heads
        heads = self._qkv(self._steps.norm(row, *self._norms[0])).view(len(row), turning + self._key_heads, -1)
        turned = self._steps.rotated(heads[:, :turning], cos, sin)
        query, key, value = turned[:, : self._heads], turned[:, self._heads :], heads[:, turning:]
        self._out.add_to(row, attend(query, key, value, segments, causal=self._causal))
        gate_up = self._gate_up(self._steps.norm(row, *self._norms[1]))
        self._down.add_to(row, self._steps.gated(gate_up, self._activation))


def _as(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor if tensor.dtype == like.dtype else tensor.to(like.dtype)
