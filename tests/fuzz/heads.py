"""Fuzz cases of the operations on a linear head, whose products are exact in every dtype."""

import math

import torch
from fuzz.draws import BAD, DTYPES, Draws, TokenFilter
from fuzz.operations import Case, rounding, sizes, wrong_tokens
from torch import Tensor

import sedd_fast as sf
from helpers.op_cases import METHODS
from sedd_fast.backends.coefficients import head_coefficients
from sedd_fast.backends.inputs import EntropyInputs, ReverseInputs
from sedd_fast.ops._arguments import process

#: Relative to the absolute terms of a gradient: a block of them is stored in the dtype.
STORED = {
    torch.float32: 3e-6,
    torch.bfloat16: 2**-7,
    torch.float16: 2**-10,
    torch.float64: 1e-13,
}


class Head:
    """A head with operands that are small multiples of 1/4, so that all its outputs are exact.

    Args:
        edges: what one or two numbers of the bias may be.
    """

    def __init__(self, draws: Draws, edges: tuple[float, ...]) -> None:
        self.graph, self.dtype = draws.graph(2049), draws.choice(DTYPES)
        self.shape = draws.shape()
        self.scaled = self.graph.mask_index is not None and draws.happens(0.6)
        self.x_t, self.x_0 = draws.tokens(self.shape, self.graph)
        width = draws.choice((1, 2, 3, 4))
        self.hidden = self._operand(draws, 2, *self.shape, width)
        if draws.happens(0.3):  # what is not read may be anything
            mask = self.graph.mask_index
            unread = None if mask is None else self.x_t != mask
            if unread is not None:
                self.hidden = self.hidden.masked_fill(unread[..., None], math.nan)
        self.weight = self._operand(draws, 4, self.graph.dim, width)
        self.bias = None
        if draws.happens(0.7):
            self.bias = self._operand(draws, 8, self.graph.dim)
            if draws.happens(0.3):  # a banned token, or scores beyond float32
                self.bias = self.bias.contiguous()
                several = self.dtype.itemsize > 2 and draws.happens(0.3)  # 16 bits round them
                draws.scatter(self.bias, edges, 1 + several)
        self.workspace = draws.choice((None, None, 1, 4000, 20000))

    def _operand(self, draws: Draws, largest: int, *size: int) -> Tensor:
        quarters = torch.randint(-largest, largest + 1, size, generator=draws.torch)
        return draws.laid_out((quarters / 4).to(self.dtype))

    def operands(self, exact: bool) -> list[Tensor | None]:
        every = (self.hidden, self.weight, self.bias)
        return [None if x is None else x.double() if exact else x for x in every]

    def scores(self) -> Tensor:
        """(B, L, dim) float64: the outputs f."""
        hidden, weight, bias = self.operands(True)
        assert hidden is not None
        assert weight is not None
        return torch.nn.functional.linear(hidden, weight, bias)

    def __str__(self) -> str:
        sizes = f"{tuple(self.hidden.shape)} {self.hidden.stride()} {self.weight.stride()}"
        bias = "no bias" if self.bias is None else f"bias {self.bias.stride()}"
        return f"{self.graph} {self.dtype} {sizes} {bias} scaled {self.scaled} {self.workspace}"


def linear_entropy(draws: Draws) -> Case:
    """linear_score_entropy and the gradients of hidden states, weight and bias."""
    head = Head(draws, (-math.inf, -1e4, -120.0, 30.0))
    graph, shape, x_t, x_0 = head.graph, head.shape, head.x_t, head.x_0
    sigma = draws.levels(shape[0])
    sigma = sigma.clamp(min=1e-5, max=50.0)  # beyond, float32 holds neither loss nor gradient
    weight = None if draws.happens(0.4) else draws.weight(shape, (0.0, 1.0, -1.0), (0.0, *BAD))
    reduction = draws.choice(("none", "sum", "mean"))
    upstream = draws.normal(*shape) if reduction == "none" else draws.normal()
    most = draws.choice((None, None, 0, 2))

    def run(exact: bool) -> dict[str, Tensor]:
        leaves = [None if x is None else x.detach().requires_grad_() for x in head.operands(exact)]
        hidden, matrix, bias = leaves
        rows = None
        if most is not None:
            rows = sf.touched_rows(x_t, graph, weight, max_rows=max(1, x_t.numel() + most))
        loss = sf.linear_score_entropy(
            hidden, matrix, bias, sigma, x_t, x_0, graph, head.scaled, weight, reduction, rows,
            head.workspace,
        )  # fmt: skip
        loss.backward(upstream.to(loss.dtype))
        made = {"loss": loss.detach(), "hidden": hidden.grad, "weight": matrix.grad}
        return made | ({} if bias is None else {"bias": bias.grad})

    def allowed(exact: dict[str, Tensor]) -> dict[str, Tensor]:
        entropy = EntropyInputs(sigma, x_t, x_0, weight, *process(graph), head.scaled)
        terms = head_coefficients(entropy)
        scores = head.scores()
        size, slope = sizes(scores, x_t, x_0, *terms)
        factor = torch.ones(shape, dtype=torch.float64) if weight is None else weight.double()
        factor = factor.abs() / (max(x_t.numel(), 1) if reduction == "mean" else 1)
        size = (factor * size).where(factor != 0, 0.0)
        if graph.mask_index is not None:
            size, slope = (v.where(_at(x_t, graph, v), 0.0) for v in (size, slope))
        slope = (factor * upstream.abs())[..., None] * slope
        slope = slope.where((factor != 0)[..., None], 0.0).nan_to_num(0.0).flatten(0, 1)
        # A product may add its terms one after the other, which are at most V.
        fp32_eps = torch.finfo(head.dtype if head.dtype == torch.float64 else torch.float32).eps
        little = STORED[head.dtype] + graph.dim * fp32_eps
        hidden = head.hidden.double().abs().nan_to_num(0.0).flatten(0, 1)
        fp32 = torch.float64 if head.dtype == torch.float64 else torch.float32
        loss = size if reduction == "none" else size.sum()
        room = {"loss": loss * min(little, 3e-6)}
        room["hidden"] = little * (slope @ head.weight.double().abs()).view(head.hidden.shape)
        room["weight"], room["bias"] = little * (slope.T @ hidden), little * slope.sum(0)
        stored = {"loss": fp32}
        return {
            name: room[name] + rounding(value, stored.get(name, head.dtype))
            for name, value in exact.items()
        }

    text = f"linear_score_entropy {head} {reduction} rows {most} sigma {sigma.tolist()}"
    return Case(text, run, allowed)


def _at(x_t: Tensor, graph: sf.Graph, like: Tensor) -> Tensor:
    masked = x_t == graph.mask_index
    return masked if like.dim() == 2 else masked[..., None]


def linear_step(draws: Draws) -> Case:
    """linear_reverse_step."""
    head = Head(draws, (*BAD, 1e4, -1e4, 95.0, -120.0))
    graph, shape, x_t = head.graph, head.shape, head.x_t
    sigma, dsigma, u = draws.levels(shape[0]), draws.levels(shape[0], True), draws.uniforms(shape)
    method, shares = draws.choice(METHODS), TokenFilter.drawn(draws)

    def run(exact: bool) -> dict[str, Tensor]:
        made = sf.linear_reverse_step(
            *head.operands(exact), x_t, sigma, dsigma, graph, method, head.scaled, u=u,
            workspace=head.workspace, temperature=shares.temperature, top_p=shares.top_p,
        )  # fmt: skip
        return {"x_s": made}

    settings = *process(graph), method, head.scaled
    filtering = shares.temperature, shares.top_p
    still = torch.zeros_like(dsigma) if method == "denoise" else dsigma
    inputs = ReverseInputs(x_t, sigma, still, u, *settings, *filtering)
    text = f"linear_reverse_step {head} {method} {shares} {sigma.tolist()} {dsigma.tolist()}"
    return Case(text, run, lambda exact: {}, lambda x_s: wrong_tokens(x_s, head.scores(), inputs))
