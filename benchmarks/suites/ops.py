"""The operations: their inputs, their contenders, and the bytes that each must move.

A loss with its gradient has two floors. In one pass, touched rows are read once and the gradient is
written once. Under autograd the backward, which learns the gradient of the loss first, reads the
touched rows again; our contender of that form is compared with the floor of that form.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import sedd_fast as sf
from benchmarks.contenders import baselines, compiled
from benchmarks.contenders.compiled import compile_static
from benchmarks.contenders.original import Original
from benchmarks.contenders.rivals import Rivals
from benchmarks.harness.cases import Call, Case, Contender, ours
from benchmarks.harness.config import DTYPES, BenchmarkConfig


@dataclass(frozen=True)
class Problem:
    """Inputs of every operation: scores as a network returns them, and the noise at one time t."""

    graph: sf.Graph
    log_score: Tensor  # (B, L, dim), a leaf that requires its gradient
    x_t: Tensor  # (B, L)
    x_0: Tensor
    weight: Tensor  # (B, L), of every position's loss: rate / B
    sigma: Tensor  # (B, 1)
    removed: Tensor  # (B, 1), noise removed by one of 128 analytic steps
    step: Tensor  # (B, 1), step size times rate of one of 128 Euler steps

    @property
    def touched_bytes(self) -> int:
        """Bytes of the score rows that an operation must read."""
        rows = self.x_t.numel()
        if self.graph.kind == "absorbing":
            rows = int(self.x_t.eq(self.graph.vocab_size).sum())
        return rows * self.graph.dim * self.log_score.element_size()

    @property
    def bytes(self) -> int:
        """Bytes of all scores, and so of their gradient."""
        return self.log_score.numel() * self.log_score.element_size()

    @property
    def autograd_bytes(self) -> int:
        """Bytes that a loss under autograd and its backward must move: touched rows are read twice,
        the gradient is written once.
        """
        return 2 * self.touched_bytes + self.bytes

    def noised(self, method: str) -> Tensor:
        """``dsigma`` of that method, (B, 1)."""
        return self.removed if method == "analytic" else self.step


def make_problem(
    graph: sf.Graph, config: BenchmarkConfig, dtype: torch.dtype, device: torch.device
) -> Problem:
    """Random scores around the true size, and exactly the wanted number of noised positions."""
    generator = torch.Generator(device).manual_seed(0)
    on: dict[str, Any] = {"generator": generator, "device": device}
    shape, V = config.shape, graph.vocab_size
    noise, t = sf.LogLinearNoise(), torch.full((shape[0], 1), min(max(config.masked, 0.01), 1.0))
    sigma, rate = (value.to(device) for value in noise(t))
    removed = sigma - noise.sigma(t - t.clamp(max=1 / 128) * 0.999).to(device)
    x_0 = torch.randint(V, shape, **on)
    noised = torch.zeros(shape, dtype=torch.bool, device=device)
    noised.view(-1)[torch.randperm(x_0.numel(), **on)[: round(config.masked * x_0.numel())]] = 1
    other = V if graph.kind == "absorbing" else (x_0 + 1) % V
    x_t = torch.where(noised, other, x_0)
    log_score = torch.randn((*shape, graph.dim), **on)
    if graph.kind == "absorbing":  # a trained network's scores of a masked position sum to 1 / E
        log_score -= (math.log(V) + 0.5 + torch.log(torch.expm1(sigma)))[..., None]
    log_score.scatter_(-1, x_t[..., None], 0.0)
    leaf = log_score.to(dtype).requires_grad_()
    weight = (rate / shape[0]).expand(shape).contiguous()
    return Problem(graph, leaf, x_t, x_0, weight, sigma, removed, rate / 128)


#: Temperature and top-p of the steps that have them.
TOKEN_FILTER = (0.8, 0.9)


def op_cases(config: BenchmarkConfig, original: Original | None) -> Iterator[Case]:
    """Every case of the operations; made when asked for, so that one graph's scores exist."""
    rivals, device = Rivals(config, original), torch.device(config.device)
    graphs = (sf.Absorbing(config.vocab_size), sf.Uniform(config.vocab_size))
    for name in config.dtypes:
        for graph in graphs:
            p, kind = make_problem(graph, config, DTYPES[name], device), graph.kind
            if kind == "absorbing":
                yield as_case(f"{kind} loss", p, name, *loss(rivals, p))
            yield as_case(f"{kind} loss + gradient", p, name, *gradient(rivals, p))
            for method in ("analytic", "euler"):
                yield as_case(f"{kind} {method} step", p, name, *step(rivals, p, method))
            title = f"{kind} analytic step, temperature and top-p"
            yield as_case(title, p, name, *filtered_step(rivals, p))
    for graph in graphs:
        yield noising(rivals, graph, device)


def as_case(
    operation: str, problem: Problem, dtype: str, contenders: Sequence[Contender], floor_bytes: int
) -> Case:
    """The case of an operation on that problem."""
    shape = " x ".join(f"{n:,}" for n in problem.log_score.shape)
    scores = problem.log_score.detach()
    touched = problem.touched_bytes // scores.element_size()
    found = tuple(contenders)
    return Case("ops", operation, shape, dtype, found, floor_bytes, tensor=scores, touched=touched)


def loss(rivals: Rivals, p: Problem) -> tuple[list[Contender], int]:
    """The loss without its gradient: touched rows are read once."""
    scores, inputs, weight = p.log_score.detach(), (p.sigma, p.x_t, p.x_0), p.weight

    def eager() -> Tensor:
        return (weight * baselines.score_entropy(scores, *inputs, p.graph)).sum()

    def original() -> Tensor:
        assert rivals.original is not None
        return (weight * rivals.original.score_entropy(p.graph, scores, *inputs)).sum()

    def plain() -> object:
        return compile_static(compiled.entropy)(scores, *inputs, weight, p.graph)

    def fused() -> Tensor:
        return sf.score_entropy(scores, *inputs, p.graph, weight, "sum")

    others = rivals.contenders(eager, plain, original=original)
    return others + ours(rivals.config, "", fused), p.touched_bytes


def gradient(rivals: Rivals, p: Problem) -> tuple[list[Contender], int]:
    """The loss with its gradient: touched rows are read once, the gradient is written once; under
    autograd the rows are read twice.
    """
    leaf, inputs, weight = p.log_score, (p.sigma, p.x_t, p.x_0), p.weight

    def by(loss: Callable[[], Tensor]) -> Call:
        return lambda: torch.autograd.grad(loss(), leaf)

    def eager() -> Tensor:
        return (weight * baselines.score_entropy(leaf, *inputs, p.graph)).sum()

    def original() -> Tensor:
        assert rivals.original is not None
        return (weight * rivals.original.score_entropy(p.graph, leaf, *inputs)).sum()

    def plain() -> Tensor:
        return compile_static(compiled.entropy)(leaf, *inputs, weight, p.graph)

    def rewritten() -> object:
        return compile_static(compiled.entropy_with_grad)(leaf.detach(), *inputs, weight, p.graph)

    def fused() -> Tensor:
        return sf.score_entropy(leaf, *inputs, p.graph, weight, "sum")

    def one_pass() -> object:
        return sf.score_entropy_with_grad(leaf, *inputs, p.graph, weight, "sum")

    found = rivals.contenders(by(eager), by(plain), rewritten, by(original))
    found += ours(rivals.config, ", autograd", by(fused), floor_bytes=p.autograd_bytes)
    found += ours(rivals.config, ", one pass", one_pass)
    return found, p.touched_bytes + p.bytes


def step(rivals: Rivals, p: Problem, method: str) -> tuple[list[Contender], int]:
    """A reverse step: touched rows are read once, and one token a position is written."""
    scores, dsigma = p.log_score.detach(), p.noised(method)

    def eager() -> Tensor:
        return baselines.reverse_step(scores, p.x_t, dsigma, p.graph, method)

    def original() -> Tensor:
        assert rivals.original is not None
        return rivals.original.reverse_step(p.graph, scores, p.x_t, dsigma, method)

    def plain() -> object:
        return compile_static(compiled.race_step)(scores, p.x_t, dsigma, p.graph, method)

    def rewritten() -> object:
        return compile_static(compiled.inverse_cdf_step)(scores, p.x_t, dsigma, p.graph, method)

    def fused() -> Tensor:
        return sf.reverse_step(scores, p.x_t, p.sigma, dsigma, p.graph, method)

    others = rivals.contenders(eager, plain, rewritten, original)
    return others + ours(rivals.config, "", fused), p.touched_bytes


def filtered_step(rivals: Rivals, p: Problem) -> tuple[list[Contender], int]:
    """An analytic step at a temperature and top-p: rows that move are read again."""
    scores, dsigma = p.log_score.detach(), p.noised("analytic")
    temperature, top_p = TOKEN_FILTER

    def eager() -> Tensor:
        filtered = baselines.filtered(scores.float(), p.x_t, temperature, top_p)
        return baselines.reverse_step(filtered, p.x_t, dsigma, p.graph, "analytic")

    def plain() -> object:
        return compile_static(compiled.filtered_step)(scores, p.x_t, dsigma, p.graph, TOKEN_FILTER)

    def fused() -> Tensor:
        args = (scores, p.x_t, p.sigma, dsigma, p.graph, "analytic")
        return sf.reverse_step(*args, temperature=temperature, top_p=top_p)

    others = rivals.contenders(eager, plain)
    return others + ours(rivals.config, "", fused), p.touched_bytes


def noising(rivals: Rivals, graph: sf.Graph, device: torch.device) -> Case:
    """sample_transition of 64 times the positions: a token read and one written for each."""
    shape = (64 * rivals.config.shape[0], rivals.config.shape[1])
    x_0 = torch.randint(graph.vocab_size, shape, device=device)
    sigma = torch.full((shape[0], 1), 0.5, device=device)

    def eager() -> Tensor:
        return baselines.sample_transition(x_0, sigma, graph)

    def original() -> Tensor:
        assert rivals.original is not None
        return rivals.original.sample_transition(graph, x_0, sigma)

    def plain() -> object:
        return compile_static(compiled.sample_transition)(x_0, sigma, graph)

    def fused() -> Tensor:
        return sf.sample_transition(x_0, sigma, graph)

    found = rivals.contenders(eager, plain, original=original) + ours(rivals.config, "", fused)
    title, size = f"{graph.kind} sample_transition", " x ".join(f"{n:,}" for n in shape)
    return Case("ops", title, size, "int64", tuple(found), 16 * x_0.numel(), tensor=x_0)
