"""Fuzz cases of the operations on softmax(f), f the exact output of a linear head."""

import math
from dataclasses import replace
from typing import Any

import torch
from fuzz.draws import DTYPES, VOCABULARIES, Draws, TokenFilter
from fuzz.heads import STORED
from fuzz.operations import Case, rounding
from torch import Tensor

from helpers.head_cases import tolerance
from helpers.softmax_cases import SoftmaxHead, filtered, naive
from sedd_fast.backends.dtypes import fp32_or_fp64
from sedd_fast.names import WANTED
from sedd_fast.ops import TouchedRows

Shape = tuple[int, ...]


def head_of(draws: Draws) -> SoftmaxHead:
    """Operands are small multiples of 1/4, so that every dtype holds the outputs exactly."""
    states, dtype = draws.choice((1, *VOCABULARIES)), draws.choice(DTYPES)
    shape: Shape = draws.shape()
    shape = (shape[0] * shape[1],) if draws.happens(0.3) else shape
    width = draws.choice((1, 2, 3, 4))
    excluded = _excluded(draws, states)

    def operand(largest: int, *size: int) -> Tensor:
        quarters = torch.randint(-largest, largest + 1, size, generator=draws.torch)
        return draws.laid_out((quarters / 4).to(dtype))

    bias = operand(8, states) if draws.happens(0.7) else None
    if bias is not None and draws.happens(0.3):
        bias = bias.contiguous()
        draws.scatter(bias, (-math.inf, -1e4, -120.0, 30.0, 1e4), 1)
    left = torch.tensor([y for y in range(states) if y not in excluded])
    target = left[torch.randint(len(left), shape, generator=draws.torch)]
    u = torch.rand((*shape, 2), generator=draws.torch, dtype=torch.float64)
    for end in (0.0, 1 - 2**-53):
        u[torch.rand(u.shape, generator=draws.torch) < 0.1] = end
    return SoftmaxHead(
        operand(2, *shape, width),
        operand(4, states, width),
        bias,
        draws.laid_out(target),
        None,
        draws.laid_out(u),
        excluded,
        draws.choice((None, None, 30.0, 1.5)),
    )


def _excluded(draws: Draws, states: int) -> tuple[int, ...]:
    """None, one, neighbours, or any states; at least one is left."""
    if states == 1 or draws.happens(0.4):
        return ()
    if draws.happens(0.4):
        return (draws.choice((0, states - 1, draws.randrange(states))),)
    first, count = draws.randrange(states), draws.randint(1, states - 1)
    some = range(first, min(first + count, states))
    if draws.happens(0.5):
        some = sorted(draws.sample(range(states), min(count, 5)))
    return tuple(some)[: states - 1]


def _listed(draws: Draws, head: SoftmaxHead) -> TouchedRows | None:
    """Perhaps every row, among entries that stand for none; in any order."""
    count = head.target.numel()
    rows = [*range(count), *[-1] * (draws.randint(0, 2) if count else 0)]
    draws.shuffle(rows)
    return TouchedRows.at(torch.tensor(rows, dtype=torch.int64)) if draws.happens(0.3) else None


def _text(head: SoftmaxHead, *rest: object) -> str:
    sizes = f"{tuple(head.hidden.shape)} {head.hidden.stride()} {head.weight.shape}"
    bias = "no bias" if head.bias is None else "bias"
    excluded = f"excluded {head.excluded[:4]} ({len(head.excluded)})"
    given = " ".join(map(str, rest))
    return f"{head.hidden.dtype} {sizes} {head.weight.stride()} {bias} {excluded} {given}"


def cross_entropy(draws: Draws) -> Case:
    """linear_cross_entropy and the gradients of hidden states, weight and bias."""
    head, reduction = head_of(draws), draws.choice(("none", "sum", "mean"))
    shape = tuple(head.target.shape)
    if draws.happens(0.6):
        weight = draws.normal(*shape)
        draws.scatter(weight, (0.0, 0.0, 1.0, 1e-30, -1e4), 3)
        head = replace(head, row_weight=draws.laid_out(weight))
    if draws.happens(0.4):
        target = head.target.contiguous().clone()
        draws.scatter(target, (-100,), 2)
        head = replace(head, target=target)
    head = replace(head, z_loss=draws.choice((0.0, 0.0, 0.01, -0.3)))
    rows, workspace = _listed(draws, head), draws.choice((None, None, 1, 4000, 20000))
    upstream = draws.normal(*shape) if reduction == "none" else draws.normal()
    unread = head.factor() == 0
    spoilt = replace(head, hidden=head.hidden.masked_fill(unread[..., None], math.nan))

    def run(exact: bool) -> dict[str, Tensor]:
        leaves = (spoilt.to(torch.float64) if exact else spoilt).leaves()
        loss = leaves.entropy(reduction, rows=rows, workspace=workspace)
        loss.backward(upstream.to(loss.dtype))
        names = zip(("hidden", "weight", "bias"), leaves.operands, strict=True)
        return {"loss": loss.detach(), **{k: x.grad for k, x in names if x is not None}}

    def allowed(exact: dict[str, Tensor]) -> dict[str, Tensor]:
        scale = 1 / max(head.count(), 1) if reduction == "mean" else 1
        _, size = naive(head.to(torch.float64), upstream.expand(shape) * scale)
        loss = size.loss.nan_to_num(math.inf)
        dtype = head.hidden.dtype
        # A product may add its terms one after the other.
        few = tolerance(dtype, 0) / 10 if dtype.itemsize > 2 else 2e-6
        eps = torch.finfo(fp32_or_fp64(dtype)).eps
        little = 2 * STORED[dtype] + max(len(head.weight), head.target.numel()) * eps
        room = {"loss": few * (loss if reduction == "none" else scale * loss.sum())}
        for name in ("hidden", "weight", "bias"):
            room[name] = little * getattr(size, name).nan_to_num(math.inf)
        stored = {"loss": fp32_or_fp64(dtype)}
        return {
            name: room[name] + rounding(value, stored.get(name, dtype))
            for name, value in exact.items()
        }

    text = _text(head, reduction, f"softcap {head.softcap} z {head.z_loss} {workspace}", rows)
    return Case(f"linear_cross_entropy {text}", run, allowed)


def denoise(draws: Draws) -> Case:
    """linear_denoise."""
    head, shares = head_of(draws), TokenFilter.drawn(draws)
    rows, workspace = _listed(draws, head), draws.choice((None, None, 1, 4000, 20000))
    want = WANTED if draws.happens(0.5) else tuple(draws.sample(WANTED, draws.randint(1, 4)))
    given: dict[str, Any] = {"temperature": shares.temperature, "top_p": shares.top_p}
    f = head.to(torch.float64).logits()
    log_p = f.log_softmax(-1)

    def run(exact: bool) -> dict[str, Tensor]:
        on = head.to(torch.float64) if exact else head
        out = on.denoise(want=want, rows=rows, workspace=workspace, **given)._asdict()
        made = {name: value for name, value in out.items() if value is not None}
        if "log_prob" in made:  # whichever token it is
            log_prob = made.pop("log_prob")
            if "token" in made:
                own = log_p.gather(-1, made["token"][..., None]).squeeze(-1)
                made["error of log_prob"] = log_prob.double() - own
        return made

    def allowed(exact: dict[str, Tensor]) -> dict[str, Tensor]:
        dtype, p = head.hidden.dtype, log_p.exp()
        little = 1e-12 if dtype == torch.float64 else 1e-5
        finite = torch.where(f.isfinite(), f, 0).abs()
        size = little * (1 + (p * finite).sum(-1) + finite.amax(-1))
        room = dict.fromkeys(("log_sum_exp", "max_log_prob", "margin", "entropy"), size)
        terms = p @ head.weight.double().abs()
        room["embedding"] = (little + 2 * STORED[dtype]) * terms
        room["error of log_prob"] = 10 * size
        return {name: room.get(name, torch.zeros(())) for name in exact}

    def drawn(token: Tensor) -> str | None:
        """Up to 2e-5 in u, but never a state of probability 0."""
        probs = filtered(log_p, shares.temperature, shares.top_p)
        upper = probs.cumsum(-1).gather(-1, token[..., None]).squeeze(-1)
        own = log_p.gather(-1, token[..., None]).squeeze(-1)
        low = upper - probs.gather(-1, token[..., None]).squeeze(-1)
        u = head.u[..., 1]
        right = (u >= low - 2e-5) & (u <= upper + 2e-5) & (own > -math.inf)
        if bool(right.all()):
            return None
        at = tuple((~right).nonzero()[0].tolist())
        return f"at {at} {int(token[at])} for u {float(u[at])!r}"

    text = _text(head, shares, f"softcap {head.softcap} want {want} {workspace}", rows)
    return Case(f"linear_denoise {text}", run, allowed, drawn)
