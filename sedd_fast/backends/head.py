"""The inputs of a linear head's operations, and the rows of the head that noise touched.

An absorbing position that is not masked has no loss and cannot move: its row of outputs is never
formed. ``rows`` names the others (positions b * L + i); an entry of -1 fills a list of fixed length
and means no position.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sedd_fast.backends.coefficients import EntropyCoefficients, head_coefficients
from sedd_fast.backends.dtypes import fp32_or_fp64, gradient_dtype
from sedd_fast.backends.inputs import EntropyInputs, is_token
from sedd_fast.backends.products import product_dtype


def workspace(device: torch.device) -> int:
    """Bytes of workspace on that device by default, besides what an operation returns."""
    return (32 if device.type == "cpu" else 64) << 20


def softmax_workspace(linear: "Linear", keeps: bool) -> int:
    """The same for the operations on softmax(f), of which a cross entropy ``keeps`` what it forms.

    That is on a CPU at most a tenth of the output that is not made, unless that is small.
    """
    if linear.hidden.device.type != "cpu":
        return 256 << 20
    output = linear.hidden.shape[:-1].numel() * len(linear.weight) * linear.hidden.dtype.itemsize
    return min(32 << 20, max(8 << 20, output // 10)) if keeps else 32 << 20


class HasTouched(Protocol):
    """Inputs of an operation that knows which positions carry a loss, or may move."""

    def touched(self) -> Tensor: ...


@dataclass(frozen=True)
class Linear:
    """f = hidden @ weight.T + bias, computed in ``dtype``, for some ``rows`` or all touched ones.

    hidden (B, L, H), weight (dim, H), bias (dim,) or None, rows (R,) int64 or None. A workspace
    of 0 is the default of the operations on softmax(f), which depends on the number of rows: a
    trace may not know it.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    rows: Tensor | None
    dtype: torch.dtype
    workspace: int

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor]:
        """What gradients are of; the hidden states stand for a bias that is absent."""
        return self.hidden, self.weight, self.hidden if self.bias is None else self.bias

    def detach(self) -> "Linear":
        """The same head, of which no gradient is recorded."""
        bias = None if self.bias is None else self.bias.detach()
        operands = self.hidden.detach(), self.weight.detach(), bias
        return Linear(*operands, self.rows, self.dtype, self.workspace)

    def with_workspace(self, keeps: bool = True) -> "Linear":
        """The same head, with the default workspace of the operations on softmax(f) for 0."""
        if self.workspace:
            return self
        return replace(self, workspace=softmax_workspace(self, keeps))

    def for_products(self) -> "Linear":
        """The same head, computed in a dtype whose products are fast on this device."""
        return replace(self, dtype=product_dtype(self.dtype, self.hidden.device))

    def bias_fp32(self) -> Tensor:
        """(dim,) the bias, or zeros, in the dtype of sums, float32 or float64; contiguous."""
        bias = self.weight.new_zeros(len(self.weight)) if self.bias is None else self.bias
        return bias.to(fp32_or_fp64(self.dtype)).contiguous()

    def read(self, inputs: HasTouched) -> Tensor:
        """(R,) the rows listed, else all touched; then it synchronises the device to count them."""
        if self.rows is not None:
            return self.rows
        return inputs.touched().flatten().nonzero().squeeze(-1)

    def listed(self) -> Tensor:
        """(R,) the rows listed, else all."""
        if self.rows is not None:
            return self.rows
        return torch.arange(self.hidden.shape[:2].numel(), device=self.hidden.device)

    def gathered(self, rows: Tensor) -> Tensor:
        """(R, H) hidden states in the dtype of the product; 0 where an entry of rows is -1."""
        hidden = self.hidden.flatten(0, 1)[rows.clamp(min=0)]
        if self.rows is not None:
            # A hidden state read for -1 may be NaN, and would spoil whole products.
            hidden.masked_fill_(rows[:, None] < 0, 0)
        return hidden.to(self.dtype)


@dataclass(frozen=True)
class NeedsGrad:
    """Which gradients are wanted; iterable in this order."""

    hidden: bool = False
    weight: bool = False
    bias: bool = False

    def __iter__(self) -> Iterator[bool]:
        return iter((self.hidden, self.weight, self.bias))


class Gradients(NamedTuple):
    """(B, L, H), (dim, H), (dim,); empty where not wanted.

    In the dtypes of the operands, float32 for float16: a loss scaler has yet to multiply them.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor

    @classmethod
    def of(
        cls, linear: Linear, hidden: Tensor | None, weight: Tensor | None, bias: Tensor | None
    ) -> "Gradients":
        """From tensors of any dtype, None where not wanted."""
        made = []
        for gradient, operand in zip((hidden, weight, bias), linear.operands, strict=True):
            found = operand.new_empty(0) if gradient is None else gradient
            made.append(found.to(gradient_dtype(operand.dtype)))
        return cls(*made)


class EntropyRows:
    """Rows of a head whose loss is computed: tokens, coefficients, and the sums that blocks add to.

    Args:
        entropy: the whole batch.
        rows: (R,) positions, -1 for none.
        grad_scale: factor of every gradient besides the weight, (B, L) or a number; None for no
            gradient.
    """

    def __init__(
        self, entropy: EntropyInputs, rows: Tensor, grad_scale: Tensor | float | None
    ) -> None:
        at = rows.clamp(min=0)
        here = entropy.at(at)
        self.rows = rows
        self.x_t, self.x_0 = here.x_t.squeeze(1), here.x_0.squeeze(1)  # (R,)
        self.valid = (self.x_t >= 0) & (self.x_t < entropy.dim)
        self.valid &= is_token(self.x_0, entropy.vocab_size, entropy.mask_index)
        self.valid &= (here.sigma > 0) & torch.isfinite(here.sigma)
        if here.row_weight is not None:
            self.valid &= torch.isfinite(here.row_weight.squeeze(1))
        here = replace(here, sigma=torch.where(self.valid, here.sigma.double(), 1.0))
        self.terms = EntropyCoefficients(*(term.squeeze(1) for term in head_coefficients(here)))
        self.weight = (rows >= 0).double()
        if here.row_weight is not None:
            self.weight = self.weight * here.row_weight.squeeze(1)
        self.gradient: tuple[Tensor, ...] | None = None
        if grad_scale is not None:  # a, b, c of the gradient a * exp(f_y) - b - c * [y == x_0]
            factor = grad_scale.flatten()[at] if isinstance(grad_scale, Tensor) else grad_scale
            factor = torch.where(self.valid, self.weight * factor, 0)
            self.gradient = tuple(factor * term for term in self.terms[:3])
        self.sums = torch.zeros_like(here.sigma.expand(3, -1))
        self.sum_exp, self.sum_log, self.f_x_0 = self.sums.unbind()

    def loss(self) -> Tensor:
        """(R,) float64, weighted; NaN where a value was out of range."""
        a, b, c, k = self.terms
        large = k + torch.where(a > 0, a * self.sum_exp, 0)  # a term that is absent stays so
        loss = (
            large - torch.where(b > 0, b * self.sum_log, 0) - torch.where(c > 0, c * self.f_x_0, 0)
        )
        loss = torch.where(large == torch.inf, large, loss)  # these terms outgrow the others
        loss = torch.where(self.valid, loss, torch.nan)
        return torch.where(self.weight != 0, self.weight * loss, 0)
