"""The inputs of the operations on p(y) = softmax(f)_y, f the output of a linear head.

    f = hidden @ weight.T + bias,   or softcap * tanh(that / softcap)

States of ``excluded`` have probability 0: f is -inf there, after the softcap.
"""

from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from sedd_fast.backends.dtypes import fp32_or_fp64
from sedd_fast.backends.head import Linear
from sedd_fast.backends.inputs import inverse_temperature


@dataclass(frozen=True)
class CrossEntropyInputs:
    """Inputs of linear_cross_entropy besides the head.

    Attributes:
        target: (B, L) int64; not read where the weight is 0.
        row_weight: (B, L) float64, the factor of every position, that of the reduction included.
        excluded: states of probability 0, in rising order.
        softcap: 0 for none.
        z_loss: the loss has z_loss * (log-sum-exp of f)^2 besides.
    """

    target: Tensor
    row_weight: Tensor
    excluded: list[int]
    softcap: float
    z_loss: float

    def touched(self) -> Tensor:
        """(B, L) bool: the positions that carry a loss."""
        return self.row_weight != 0

    def scaled(self, grad_loss: Tensor) -> "CrossEntropyInputs":
        """With the weights times grad_loss (B, L): those of the gradient."""
        return replace(self, row_weight=self.row_weight * grad_loss.double())


@dataclass(frozen=True)
class DenoiseInputs:
    """Inputs of linear_denoise besides the head.

    Attributes:
        u: (B, L, 2) float64 in [0, 1), of which u[..., 1] draws; None where nothing is drawn.
        temperature, top_p: of the draw.
        excluded, softcap: as in CrossEntropyInputs.
        top: whether the argmax, its log probability and the margin are wanted.
        entropy, embedding: whether these are.
    """

    u: Tensor | None
    temperature: float
    top_p: float
    excluded: list[int]
    softcap: float
    top: bool
    entropy: bool
    embedding: bool

    @property
    def inverse_temperature(self) -> float:
        """One over the temperature, as kernels take it."""
        return inverse_temperature(self.temperature)


def head_bias(linear: Linear, inputs: CrossEntropyInputs | DenoiseInputs) -> Tensor:
    """(dim,) float32 or float64: the bias, and -inf at the excluded states, contiguous.

    With a softcap a bias of -inf, of which tanh is -1, must not pass for an excluded state.
    """
    bias = linear.bias_fp32()
    if inputs.softcap:
        bias = bias.clamp(min=torch.finfo(bias.dtype).min)
    if inputs.excluded:
        bias = bias.clone()
        for part in ranges(inputs.excluded):  # one launch each on a GPU, and no copy to it
            bias[part] = -torch.inf
    return bias


def ranges(states: list[int]) -> list[slice]:
    """Neighbouring states as slices; ``states`` rise."""
    runs = groupby(enumerate(states), lambda pair: pair[1] - pair[0])
    groups = ([state for _, state in run] for _, run in runs)
    return [slice(group[0], group[-1] + 1) for group in groups]


def outputs(linear: Linear, rows: Tensor, inputs: CrossEntropyInputs | DenoiseInputs) -> Tensor:
    """(R, dim) f of these rows, in plain torch; float32 or float64."""
    bias = None if linear.bias is None else linear.bias.to(linear.dtype)
    f = torch.nn.functional.linear(linear.gathered(rows), linear.weight.to(linear.dtype), bias)
    f = softcapped(f.to(fp32_or_fp64(linear.dtype)), inputs)
    for part in ranges(inputs.excluded):
        f[:, part] = -torch.inf
    return f


def softcapped(f: Tensor, inputs: CrossEntropyInputs | DenoiseInputs) -> Tensor:
    """f after the softcap, if there is one."""
    return inputs.softcap * torch.tanh(f / inputs.softcap) if inputs.softcap else f


def finished(scores: Tensor, bias: Tensor, inputs: CrossEntropyInputs | DenoiseInputs) -> Tensor:
    """f of scores of some states and their part of :func:`head_bias`."""
    return torch.where(bias == -torch.inf, -torch.inf, softcapped(scores + bias, inputs))


def check_target(linear: Linear, inputs: CrossEntropyInputs) -> None:
    """Raise a ValueError for the first target that is no state, or one of probability 0.

    Only rows of a weight other than 0 are looked at.
    """
    target, read = inputs.target, inputs.touched()
    states = len(linear.weight)
    bad = read & ((target < 0) | (target >= states))
    for part in ranges(inputs.excluded):
        bad |= read & (target >= part.start) & (target < part.stop)
    if bool(bad.any()):
        where = tuple(int(i) for i in bad.nonzero()[0])
        value = int(target[where])
        kind = "an excluded state" if 0 <= value < states else f"not in 0 .. {states - 1}"
        raise ValueError(
            f"target holds {value} at position {where}, which is {kind}; set it to ignore_index, "
            "or its row_weight to 0, where a position carries no loss"
        )


def at_positions(value: Tensor, rows: Tensor, shape: tuple[int, ...], fill: float = 0.0) -> Tensor:
    """(B, L, ...) of values (R, ...) at positions (R,), -1 for none; ``fill`` elsewhere."""
    positions = shape[0] * shape[1]
    made = value.new_full((positions + 1, *value.shape[1:]), fill)
    made[torch.where(rows < 0, positions, rows)] = value
    return made[:-1].view(*shape, *value.shape[1:])


class Denoised(NamedTuple):
    """What :func:`linear_denoise` returns, each (B, L) or (N,); None where not wanted.

    p = softmax(f) is the model's distribution, at temperature 1 and with every state that is not
    excluded, also where the token is drawn from another one.

    Attributes:
        token: int64, drawn at the temperature and top-p.
        log_prob: ln p(token).
        argmax: int64, the likeliest state, the lowest of equal ones.
        max_log_prob: ln p(argmax).
        margin: p(argmax) less the probability of the second likeliest state, which may be equal.
        entropy: -sum of p ln p, in nats.
        log_sum_exp: ln(sum of exp(f)).
        embedding: (..., H), sum over y of p(y) weight_y.
    """

    token: Tensor | None = None
    log_prob: Tensor | None = None
    argmax: Tensor | None = None
    max_log_prob: Tensor | None = None
    margin: Tensor | None = None
    entropy: Tensor | None = None
    log_sum_exp: Tensor | None = None
    embedding: Tensor | None = None


def empty_results(linear: Linear, inputs: DenoiseInputs) -> tuple[Tensor, ...]:
    """What linear_denoise returns, uninitialised: the fields of Denoised in order, (B, L) each, the
    embedding (B, L, H); those not wanted are empty.
    """
    hidden, draws = linear.hidden, inputs.u is not None
    wanted = {
        "token": draws, "log_prob": draws, "argmax": inputs.top, "max_log_prob": inputs.top,
        "margin": inputs.top, "entropy": inputs.entropy, "log_sum_exp": True,
        "embedding": inputs.embedding,
    }  # fmt: skip
    dtypes = {"token": torch.int64, "argmax": torch.int64, "embedding": hidden.dtype}
    made = []
    for name in Denoised._fields:
        shape = hidden.shape if name == "embedding" else hidden.shape[:2]
        dtype = dtypes.get(name, fp32_or_fp64(linear.dtype))
        made.append(hidden.new_empty(shape if wanted[name] else 0, dtype=dtype))
    return tuple(made)


def new_results(linear: Linear, inputs: DenoiseInputs) -> tuple[Tensor, ...]:
    """The same, and at positions that are not listed the state -1, NaN, an embedding of 0."""
    made = empty_results(linear, inputs)
    if linear.rows is None:
        return made
    for name, value in zip(Denoised._fields, made, strict=True):
        missing = torch.nan if value.is_floating_point() else -1
        value.fill_(0 if name == "embedding" else missing)
    return made


def store(made: tuple[Tensor, ...], found: Denoised, rows: Tensor) -> None:
    """Put results (R, ...) at positions (R,), -1 for none."""
    here = rows >= 0
    for value, of_rows in zip(made, found, strict=True):
        if of_rows is not None:
            value.flatten(0, 1)[rows[here]] = of_rows[here].to(value.dtype)
