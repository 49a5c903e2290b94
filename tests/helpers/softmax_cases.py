"""Inputs, naive formulas and tolerances for the operations on p = softmax(f) of a linear head.

The truth is the dense definition in float64, with the same operands. The same formula in the dtype
under test sets the tolerance, as for the other linear heads.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import sedd_fast as sf
from helpers.head_cases import TOLERANCE, Results, assert_within_the_rule, tolerance
from helpers.op_cases import Backend, assert_near
from sedd_fast.backends.dtypes import fp32_or_fp64
from sedd_fast.names import WANTED
from sedd_fast.ops import Denoised

#: The last number below 1.
LAST_U = 1 - 2**-53
TOKEN_FILTERS = (
    {},
    {"temperature": 0.1},
    {"temperature": 3.0},
    {"top_p": 0.3},
    {"temperature": 0.7, "top_p": 0.9},
)


@dataclass(frozen=True)
class SoftmaxHead:
    """A head, the hidden states, and what both operations take besides."""

    hidden: Tensor  # (B, L, H) or (N, H)
    weight: Tensor  # (states, H)
    bias: Tensor | None  # (states,)
    target: Tensor  # (B, L) or (N,)
    row_weight: Tensor | None  # the same
    u: Tensor  # (B, L, 2) or (N, 2)
    excluded: tuple[int, ...] = ()
    softcap: float | None = None
    z_loss: float = 0.0
    ignore_index: int = -100

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.hidden, self.weight, self.bias

    @property
    def loss_dtype(self) -> torch.dtype:
        return fp32_or_fp64(self.hidden.dtype)

    def with_operands(self, operands: Sequence[Tensor | None]) -> "SoftmaxHead":
        hidden, weight, bias = operands
        assert hidden is not None
        assert weight is not None
        return replace(self, hidden=hidden, weight=weight, bias=bias)

    def to(self, dtype: torch.dtype) -> "SoftmaxHead":
        detached = (None if x is None else x.detach().to(dtype) for x in self.operands)
        return self.with_operands(list(detached))

    def leaves(self) -> "SoftmaxHead":
        """The same operands as leaves that require gradients."""
        leaves = (None if x is None else x.detach().requires_grad_() for x in self.operands)
        return self.with_operands(list(leaves))

    def entropy(self, reduction: str = "none", **rest: Any) -> Tensor:
        """Call linear_cross_entropy."""
        terms = {"z_loss": self.z_loss, "ignore_index": self.ignore_index, **self._of_both()}
        rest = {"reduction": reduction, **terms, **rest}
        return sf.linear_cross_entropy(*self.operands, self.target, self.row_weight, **rest)

    def denoise(self, **rest: Any) -> Denoised:
        """Call linear_denoise, with the uniforms of the head unless others are given."""
        return sf.linear_denoise(*self.operands, **{"u": self.u, **self._of_both(), **rest})

    def _of_both(self) -> dict[str, Any]:
        return {"excluded": self.excluded or None, "softcap": self.softcap}

    def logits(self) -> Tensor:
        """(..., states) f by a plain linear layer, in the dtype of the operands."""
        f = F.linear(*self.operands)
        if self.softcap is not None:
            f = self.softcap * torch.tanh(f / self.softcap)
        return f.index_fill(
            -1, torch.tensor(self.excluded, dtype=torch.int64).to(f.device), -torch.inf
        )

    def factor(self) -> Tensor:
        """The weight of every loss before a reduction, float64; 0 where the target is ignored."""
        weight = torch.ones_like(self.target) if self.row_weight is None else self.row_weight
        return weight.double().masked_fill(self.target == self.ignore_index, 0)

    def count(self) -> int:
        """The rows that a mean is over."""
        return int((self.target != self.ignore_index).sum())


def make_softmax_head(
    states: int = 11,
    dtype: torch.dtype = torch.float32,
    shape: tuple[int, ...] = (3, 8),
    width: int = 16,
    *,
    bias: bool = True,
    excluded: tuple[int, ...] = (),
    exact: bool = False,
    spread: float = 1.5,
    device: str = "cpu",
    seed: int = 0,
    **rest: Any,
) -> SoftmaxHead:
    """A random head, of whose rows about a third has no loss and some have a negative weight.

    The outputs have about the standard deviation ``spread``. With ``exact`` the operands are small
    multiples of 1/4 instead, so that every dtype holds the outputs exactly, and many are equal.
    """
    generator = torch.Generator().manual_seed(seed)

    def operand(*size: int, scale: float) -> Tensor:
        if exact:
            return (torch.randint(-3, 4, size, generator=generator) / 4).to(device, dtype)
        numbers = torch.randn(size, generator=generator, dtype=torch.float64)
        return (scale * numbers).to(device, dtype)

    hidden = operand(*shape, width, scale=1.0)
    weight = operand(states, width, scale=spread / math.sqrt(max(width, 1)))
    row = operand(states, scale=0.5) if bias else None
    allowed = torch.tensor([y for y in range(states) if y not in excluded])
    target = allowed[torch.randint(len(allowed), shape, generator=generator)]
    row_weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    row_weight[torch.rand(shape, generator=generator) < 0.2] = 0
    target[torch.rand(shape, generator=generator) < 0.15] = rest.get("ignore_index", -100)
    if target.numel():  # the first row always counts
        target.view(-1)[0], row_weight.view(-1)[0] = allowed[-1], 1.25
    u = torch.rand((*shape, 2), generator=generator, dtype=torch.float64)
    others = (x.to(device) for x in (target, row_weight, u))
    return SoftmaxHead(hidden, weight, row, *others, excluded, **rest)


def head_on(
    backend: Backend, states: int = 40, dtype: torch.dtype = torch.float32, **rest: Any
) -> SoftmaxHead:
    """A head on the backend's device, of few rows in the interpreter unless ``shape`` is given."""
    rest = {"shape": (3, backend.some(8, 2)), **rest}
    return make_softmax_head(states, dtype, device=backend.device, **rest)


def of_bias(
    backend: Backend, bias: Sequence[float], rows: int, dtype: torch.dtype = torch.float32
) -> SoftmaxHead:
    """A head whose every row of outputs is exactly ``bias``."""
    head = head_on(backend, len(bias), dtype, shape=(rows,), width=2)
    row = torch.tensor(bias, dtype=torch.float64).to(backend.device, dtype)
    return replace(head, weight=torch.zeros_like(head.weight), bias=row)


def with_u(head: SoftmaxHead, u: Tensor) -> SoftmaxHead:
    """With these u1 of every row; u0, which is not read, is such that reading it would show."""
    return replace(head, u=torch.stack([1 - u - 2**-53, u], -1))


def naive(head: SoftmaxHead, upstream: Tensor | None = None) -> tuple[Results, Results]:
    """The formula in the dtype of the operands, and the size of its terms.

    ``upstream`` is the gradient of the weighted losses, 1 if None.
    """
    factor = head.factor()
    read = (factor != 0).flatten().nonzero().squeeze(-1)
    rows = head.hidden.detach().flatten(0, -2)[read]
    f = replace(head, hidden=rows).logits().detach()  # (R, states)
    own = head.target.flatten()[read][:, None]
    factor = factor.flatten()[read]
    up = factor if upstream is None else factor * upstream.double().flatten()[read]
    log_sum = f.logsumexp(-1, keepdim=True)
    at, p = f.gather(-1, own), (f - log_sum).exp()
    loss = (log_sum - at + head.z_loss * log_sum**2).squeeze(-1) * factor.to(f.dtype)
    here = F.one_hot(own.squeeze(-1), f.shape[-1]).to(f.dtype)
    share = 1 + 2 * head.z_loss * log_sum
    finite = torch.where(f.isfinite(), f, 0)
    bend = torch.zeros_like(f) if head.softcap is None else (finite / head.softcap) ** 2
    g = (share * p - here) * (1 - bend) * up.to(f.dtype)[:, None]
    log_sum, p, bend, finite = (x.double() for x in (log_sum, p, bend, finite))
    ahead = 1 + 2 * abs(head.z_loss) * log_sum.abs()
    size = ahead * (log_sum.abs() + at.double().abs() + (p * finite.abs()).sum(-1, keepdim=True))
    terms = (ahead * p + here) * (1 + bend) * up.abs()[:, None]
    results = _chain(head, read, rows, loss, g, head.weight.detach())
    fp64 = rows.double().abs(), size.squeeze(-1) * factor.abs(), terms
    return results, _chain(head, read, *fp64, head.weight.detach().double().abs())


def _chain(
    head: SoftmaxHead, read: Tensor, rows: Tensor, loss: Tensor, g: Tensor, weight: Tensor
) -> Results:
    """Losses at their positions, and the gradients of the operands from those of f."""

    def placed(value: Tensor) -> Tensor:
        whole = value.new_zeros(head.target.numel(), *value.shape[1:])
        return whole.index_copy(0, read, value).view(*head.target.shape, *value.shape[1:])

    return Results(placed(loss), placed(g @ weight), g.T @ rows, g.sum(0))


def run(
    head: SoftmaxHead, reduction: str = "none", upstream: Tensor | None = None, **rest: Any
) -> Results:
    """Loss (by ``reduction``) and gradients of linear_cross_entropy under autograd."""
    leaves = head.leaves()
    loss = leaves.entropy(reduction, **rest)
    loss.backward(torch.ones_like(loss) if upstream is None else upstream)
    hidden, weight, bias = (None if x is None else x.grad for x in leaves.operands)
    assert hidden is not None
    assert weight is not None
    return Results(loss.detach(), hidden, weight, torch.zeros(0) if bias is None else bias)


def named(results: Results, head: SoftmaxHead) -> dict[str, Tensor]:
    """The results by name, without the bias where the head has none."""
    return {k: v for k, v in results.named().items() if k != "bias" or head.bias is not None}


def check(head: SoftmaxHead, **rest: Any) -> None:
    """Every reduction against the float64 formula, with upstream gradients other than 1."""
    upstream = torch.linspace(-1, 2, head.target.numel(), dtype=torch.float64)
    upstream = upstream.view(head.target.shape).to(head.hidden.device)
    each = run(head, "none", upstream.to(head.loss_dtype), **rest)
    _check(named(each, head), head, upstream)
    for reduction, factor in (("sum", 0.5), ("mean", 3.0)):
        scalar = run(head, reduction, torch.tensor(factor, dtype=head.loss_dtype), **rest)
        scale = factor / (head.count() if reduction == "mean" else 1)
        gradients = named(scalar, head)
        del gradients["loss"]
        _check(gradients, head, torch.full_like(upstream, scale))
        total = each.loss.double().sum() * scale / factor
        little = 1e-6 * float(each.loss.abs().sum()) * scale / factor
        torch.testing.assert_close(scalar.loss.double(), total, rtol=1e-6, atol=little)


def _check(got: dict[str, Tensor], head: SoftmaxHead, upstream: Tensor) -> None:
    truth, size = naive(head.to(torch.float64), upstream)
    yardstick, states = naive(head, upstream)[0], len(head.weight)
    assert_within_the_rule(got, truth, size, yardstick, head.hidden.dtype, states)


# linear_denoise


def filtered(log_p: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """(..., states) the probabilities that a token is drawn with, from float64 logarithms."""
    powers = ((log_p - log_p.amax(-1, keepdim=True)) / temperature).exp()
    if top_p < 1:
        order = log_p.argsort(dim=-1, descending=True)
        running = powers.gather(-1, order).cumsum(-1)
        needed = (running < top_p * powers.sum(-1, keepdim=True)).sum(-1, keepdim=True)
        least = log_p.gather(-1, order).gather(-1, needed)
        powers = powers.masked_fill(log_p < least, 0)
    return powers / powers.sum(-1, keepdim=True)


def slack(head: SoftmaxHead) -> float:
    """What u may lie outside its token's interval of the float64 inverse CDF."""
    return 1e-12 if head.hidden.dtype == torch.float64 else 1e-5


def assert_drawn(token: Tensor, u: Tensor, probs: Tensor, room: float) -> None:
    """Every token is the one that u (...) picks of probs (..., states), up to ``room`` in u."""
    upper = probs.cumsum(-1).gather(-1, token[..., None]).squeeze(-1)
    own = probs.gather(-1, token[..., None]).squeeze(-1)
    inside = (own > 0) & (u >= upper - own - room) & (u <= upper + room)
    at = (~inside).nonzero()[:1].tolist()
    assert not at, f"token {int(token[tuple(at[0])])} at {at[0]} is outside its interval"


def check_denoised(
    out: Denoised,
    head: SoftmaxHead,
    want: Sequence[str] = WANTED,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> None:
    """Every field of every row against its float64 formula; None where it is not wanted.

    The head must be exact, or of float32 or float64: its outputs may have no other rounding.
    """
    assert {name for name in out._fields if getattr(out, name) is not None} == set(want)
    exact = head.to(torch.float64)
    f = exact.logits()
    log_sum = f.logsumexp(-1)
    log_p = f - log_sum[..., None]
    p, room = log_p.exp(), TOLERANCE[head.loss_dtype]
    finite = torch.where(p > 0, f.abs(), 0)
    size = 1 + log_sum.abs() + (p * finite).sum(-1)
    top = p.topk(min(2, p.shape[-1]), dim=-1).values
    truth = {
        "log_sum_exp": log_sum,
        "max_log_prob": log_p.amax(-1),
        "margin": top[..., 0] - top[..., 1:].sum(-1),
        "entropy": -torch.where(p > 0, p * log_p, 0).sum(-1),
    }
    if out.token is not None:
        drawn = filtered(log_p, temperature, top_p)
        assert_drawn(out.token, head.u[..., 1], drawn, slack(head))
    if out.log_prob is not None and out.token is not None:
        truth["log_prob"] = log_p.gather(-1, out.token[..., None]).squeeze(-1)
    for name, true in truth.items():
        if (value := getattr(out, name)) is not None:
            assert value.dtype == head.loss_dtype, name
            assert_near(value, true, size + true.abs(), room)
    if out.argmax is not None:
        largest = log_p.gather(-1, out.argmax[..., None]).squeeze(-1)
        assert_near(largest, log_p.amax(-1), size, room)
        first = (log_p == log_p.amax(-1, keepdim=True)).int().argmax(-1)
        clear = truth["margin"] > 10 * room * size
        tied = truth["margin"] == 0
        assert torch.equal(out.argmax[clear | tied], first[clear | tied])
    if out.embedding is not None:
        assert out.embedding.dtype == head.hidden.dtype
        terms = p @ exact.weight.abs()
        little = tolerance(head.hidden.dtype, p.shape[-1])
        assert_near(out.embedding, p @ exact.weight, terms, little)
