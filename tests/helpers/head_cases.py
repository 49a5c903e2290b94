"""Inputs, naive formulas and tolerances for the operations on a linear head.

The truth is the paper's dense definition of the head, in float64, with the same operands. The same
formula in the dtype under test sets the tolerance.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sedd_fast as sf
from helpers.op_cases import BACKENDS, Inputs, make_inputs, naive_score_entropy, worst
from sedd_fast.backends.coefficients import log_expm1

#: Marks of tests of the linear-head operations: run on every backend that has them.
on_heads = [
    pytest.mark.usefixtures("has_heads"),
    pytest.mark.parametrize("backend", BACKENDS, ids=str, indirect=True),
]
#: All defined pairs (graph, scale_by_sigma).
HEADS = ((sf.Absorbing(11), True), (sf.Absorbing(11), False), (sf.Uniform(11), False))
#: Relative to the sum of the absolute terms: rounding of the head's output, of its gradient, and of
#: the result, at outputs of about 8.
TOLERANCE = {
    torch.float32: 1e-5,
    torch.bfloat16: 4e-2,
    torch.float16: 5e-3,
    torch.float64: 1e-13,
}
#: The "little" of the rule: the order of a sum in float32, or the rounding of one output below 8 to
#: a half dtype.
LITTLE = {
    torch.float32: 1e-6,
    torch.bfloat16: 2**-6,
    torch.float16: 2**-9,
    torch.float64: 1e-14,
}


@dataclass(frozen=True)
class Head:
    """A head, the hidden states, and the tokens and noise in ``inputs``."""

    inputs: Inputs  # log_score is not used
    hidden: Tensor  # (B, L, H)
    weight: Tensor  # (dim, H)
    bias: Tensor | None  # (dim,)
    scale_by_sigma: bool

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.hidden, self.weight, self.bias

    def double(self) -> "Head":
        bias = None if self.bias is None else self.bias.detach().double()
        hidden, weight = self.hidden.detach().double(), self.weight.detach().double()
        return replace(self, hidden=hidden, weight=weight, bias=bias)

    def leaves(self) -> "Head":
        """The same operands as leaves that require gradients."""
        hidden, weight = (x.detach().requires_grad_() for x in (self.hidden, self.weight))
        bias = None if self.bias is None else self.bias.detach().requires_grad_()
        return replace(self, hidden=hidden, weight=weight, bias=bias)

    def entropy(self, reduction: str = "none", weighted: bool = True, **rest: Any) -> Tensor:
        """Call linear_score_entropy."""
        i = self.inputs
        row_weight = i.row_weight if weighted else None
        return sf.linear_score_entropy(
            *self.operands, i.sigma, i.x_t, i.x_0, i.graph, self.scale_by_sigma, row_weight,
            reduction, **rest,
        )  # fmt: skip

    def step(self, method: str = "analytic", **rest: Any) -> Tensor:
        """Call linear_reverse_step, with the uniforms of ``inputs`` unless others are given."""
        i, scaled = self.inputs, self.scale_by_sigma
        rest = {"u": i.u, **rest}
        return sf.linear_reverse_step(
            *self.operands, i.x_t, i.sigma, i.dsigma, i.graph, method, scaled, **rest
        )

    def log_score(self, dtype: torch.dtype | None = None) -> Tensor:
        """(B, L, dim) log scores by a plain linear layer, in the dtype of the operands.

        ``dtype`` is that of the operations after the product.
        """
        f = F.linear(*self.operands).to(dtype or self.hidden.dtype)
        if self.scale_by_sigma:
            scale = log_expm1(self.inputs.sigma) + math.log(self.inputs.graph.vocab_size)
            f = f - scale[:, None, None].to(f.dtype)
        return f.scatter(-1, self.inputs.x_t[..., None], 0.0)

    def gradients(self) -> tuple[Tensor | None, ...]:
        return tuple(None if x is None else x.grad for x in self.operands)


def make_head(
    graph: sf.Graph,
    scale_by_sigma: bool = False,
    dtype: torch.dtype = torch.float32,
    shape: tuple[int, int] = (3, 8),
    width: int = 16,
    *,
    bias: bool = True,
    sigma: float | None = None,
    spread: float = 1.5,
    seed: int = 0,
    device: str = "cpu",
) -> Head:
    """A random head whose outputs have about the standard deviation ``spread``."""
    inputs = make_inputs(graph, shape=shape, sigma=sigma, seed=seed, device=device)
    generator = torch.Generator().manual_seed(seed + 1)

    def normal(*size: int) -> Tensor:
        drawn = torch.randn(size, generator=generator, dtype=torch.float64)
        return drawn.to(device=device, dtype=dtype)

    weight = normal(graph.dim, width) * (spread / math.sqrt(width))
    row = normal(graph.dim) * 0.5 if bias else None
    signs = torch.tensor(
        [1.0, 1.0, -1.0, 1.0, 0.0], dtype=torch.float64
    )  # signs of the row weights
    signs = signs[torch.randint(5, shape, generator=generator)].to(device)
    inputs = replace(inputs, row_weight=inputs.row_weight * signs)
    return Head(inputs, normal(*shape, width), weight, row, scale_by_sigma)


@dataclass(frozen=True)
class Results:
    """A loss (B, L) and gradients of hidden, weight and bias."""

    loss: Tensor
    hidden: Tensor
    weight: Tensor
    bias: Tensor

    def named(self) -> dict[str, Tensor]:
        return vars(self)


def naive(head: Head, upstream: Tensor | None = None) -> tuple[Results, Results]:
    """The paper's formula in the dtype of the operands, and the size of its terms.

    ``upstream`` (B, L) is the gradient of the weighted losses, 1 if None.
    """
    i, (h, w, _) = head.inputs, head.operands
    dense = replace(i, log_score=head.log_score().detach())
    loss, g, size = naive_score_entropy(dense)
    scale = i.row_weight * (1 if upstream is None else upstream)
    g = g * scale[..., None].to(g.dtype)
    terms = (gradient_terms(dense) * scale.abs()[..., None]).flatten(0, 1)
    g, h = g.flatten(0, 1), h.detach().flatten(0, 1)
    results = Results(
        loss * i.row_weight.to(loss.dtype), (g @ w.detach()).view(head.hidden.shape), g.T @ h,
        g.sum(0),
    )  # fmt: skip
    sizes = Results(
        size * i.row_weight.abs(),
        (terms @ w.detach().double().abs()).view(head.hidden.shape),
        terms.T @ h.double().abs(),
        terms.sum(0),
    )
    return results, sizes


def gradient_terms(inputs: Inputs) -> Tensor:
    """a exp(l_y) + b + c [y == x_0]: (B, L, dim), float64."""
    double = inputs.double()
    _, gradient, _ = naive_score_entropy(double)
    graph = inputs.graph
    weight = 1.0 if graph.kind == "absorbing" else 1 / graph.vocab_size
    score = weight * double.log_score.exp()
    read = inputs.x_t == graph.mask_index if graph.kind == "absorbing" else inputs.x_t >= 0
    score = torch.where(read[..., None], score, 0).scatter(-1, inputs.x_t[..., None], 0.0)
    return score + (gradient - score).abs()


def run(
    head: Head, reduction: str = "none", upstream: Tensor | None = None, **rest: Any
) -> Results:
    """Loss (by ``reduction``) and gradients of linear_score_entropy under autograd."""
    leaves = head.leaves()
    loss = leaves.entropy(reduction, **rest)
    loss.backward(torch.ones_like(loss) if upstream is None else upstream)
    hidden, weight, bias = leaves.gradients()
    assert hidden is not None
    assert weight is not None
    return Results(loss.detach(), hidden, weight, torch.zeros(0) if bias is None else bias)


def assert_close_to_truth(got: dict[str, Tensor], head: Head, upstream: Tensor | None) -> None:
    """As near to float64 as the naive formula plus a little, and near in every element."""
    truth, size = naive(head.double(), upstream)
    assert_within_the_rule(got, truth, size, naive(head, upstream)[0], head.hidden.dtype)


def tolerance(dtype: torch.dtype, states: int) -> float:
    """TOLERANCE for a product that adds up so many terms."""
    return TOLERANCE[dtype] + _long_sum(dtype, states)


def _long_sum(dtype: torch.dtype, states: int) -> float:
    """What a product of a narrow head loses, which adds up terms one after the other.

    Those that come after a large one lose digits.
    """
    return states / 128 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps


def assert_within_the_rule(
    got: dict[str, Tensor],
    truth: Results,
    size: Results,
    yardstick: Results,
    dtype: torch.dtype,
    states: int = 0,
) -> None:
    """The tolerance rule, for the float64 truth and the naive formula in ``dtype``.

    ``size`` is that of the absolute terms of every number.
    """
    little = tolerance(dtype, states)
    for name, value in got.items():
        true, terms = truth.named()[name], size.named()[name]
        assert value.shape == true.shape, name
        error = (value.double() - true).abs()
        error = torch.where(value == true.to(value.dtype), 0, error)  # both may be infinite
        rounding = torch.finfo(value.dtype).eps / 2 * true.abs()
        rounding = rounding + torch.finfo(value.dtype).tiny
        bad = ~(error <= little * terms + rounding)
        assert not bool(bad.any()), (name, value[bad][0].item(), true[bad][0].item())
        least = (LITTLE[dtype] + _long_sum(dtype, states)) * terms + rounding
        allowed = worst(yardstick.named()[name] - true) + worst(least)
        assert worst(error) <= allowed, (name, worst(error), allowed)
