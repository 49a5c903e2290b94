"""What is measured of the operations: inputs, contenders, and the bytes that must move.

A case is one operation at one shape and dtype with everybody who can do it. All contenders get the
same tensors, and each allocates what it returns.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import baselines
import compiled
import torch
from original import Original
from settings import DTYPES, Settings
from torch import Tensor

import sedd_fast as sf
from sedd_fast.backends import registry

Call = Callable[[], object]


@dataclass(frozen=True)
class Contender:
    """One implementation: ``kind`` is "eager", "original", "compile", "rewritten" or "ours", or
    "yardstick" for what computes something else of the same size.
    """

    name: str
    kind: str
    run: Call


@dataclass(frozen=True)
class Case:
    """One operation at one shape.

    ``floor_bytes``: the fewest that any implementation must move; None where memory is not what
    bounds it, and then the fastest of ``floor_runs`` (bare products, the network alone) stands for
    the floor.
    ``tensor``: what a copy is timed of, beside the contenders, for the bandwidth. ``at``: where it
    stands on the axis of a sweep.
    """

    suite: str
    operation: str
    shape: str
    dtype: str
    contenders: tuple[Contender, ...]
    floor_bytes: int | None = None
    floor_runs: dict[str, Call] = field(default_factory=dict)
    tensor: Tensor | None = None
    at: float | None = None


@dataclass(frozen=True)
class Problem:
    """Inputs of every operation: scores as a network gives them, noise at one time t."""

    graph: sf.Graph
    log_score: Tensor  # (B, L, dim), a leaf that asks for its gradient
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

    def noised(self, method: str) -> Tensor:
        """``dsigma`` of that method, (B, 1)."""
        return self.removed if method == "analytic" else self.step


def make_problem(
    graph: sf.Graph, settings: Settings, dtype: torch.dtype, device: torch.device
) -> Problem:
    """Random scores around the true size, and exactly the wanted number of noised positions."""
    generator = torch.Generator(device).manual_seed(0)
    on: dict[str, Any] = {"generator": generator, "device": device}
    shape, V = settings.shape, graph.vocab_size
    noise, t = sf.LogLinearNoise(), torch.full((shape[0], 1), min(max(settings.masked, 0.01), 1.0))
    sigma, rate = (value.to(device) for value in noise(t))
    removed = sigma - noise.sigma(t - t.clamp(max=1 / 128) * 0.999).to(device)
    x_0 = torch.randint(V, shape, **on)
    noised = torch.zeros(shape, dtype=torch.bool, device=device)
    noised.view(-1)[torch.randperm(x_0.numel(), **on)[: round(settings.masked * x_0.numel())]] = 1
    other = V if graph.kind == "absorbing" else (x_0 + 1) % V
    x_t = torch.where(noised, other, x_0)
    log_score = torch.randn((*shape, graph.dim), **on)
    if graph.kind == "absorbing":  # scores of masked positions sum to 1 / E, as trained ones do
        log_score -= (math.log(V) + 0.5 + torch.log(torch.expm1(sigma)))[..., None]
    log_score.scatter_(-1, x_t[..., None], 0.0)
    leaf = log_score.to(dtype).requires_grad_()
    weight = (rate / shape[0]).expand(shape).contiguous()
    return Problem(graph, leaf, x_t, x_0, weight, sigma, removed, rate / 128)


def backends(settings: Settings, head: bool = False) -> tuple[str, ...]:
    """The backends to time: those asked for, else all that run here but the reference.

    ``head``: those that have the operations on a linear head, and the one that has only its own.
    """
    names = settings.backends
    if not names:
        found = (*registry.preference(settings.device), *(("tiled",) if head else ()))
        fast = [n for n in found if registry.unavailable(n, settings.device) is None]
        names = tuple(n for n in fast if n != "reference") or ("reference",)
    op, dtype = "linear_score_entropy", torch.float32
    return tuple(n for n in names if not head or not registry.unsupported(n, op, dtype))


def on_backend(backend: str, call: Call) -> Call:
    """``call`` with every operation on that backend."""

    def run() -> object:
        with sf.use_backend(backend):
            return call()

    return run


def ours(settings: Settings, form: str, call: Call, head: bool = False) -> list[Contender]:
    """Our contender on each backend; ``form`` tells apart several ways of calling.

    ``head``: the call is one of an operation on a linear head.
    """
    return [
        Contender(f"ours, {name}{form}", "ours", on_backend(name, call))
        for name in backends(settings, head)
    ]


#: Temperature and top-p where a step has them.
SHARES = (0.8, 0.9)


@functools.cache
def static(name: str) -> Callable[..., Any]:
    """A function of compiled.py, compiled."""
    return compiled.compile_static(getattr(compiled, name))


@dataclass(frozen=True)
class Field:
    """Who takes part besides us."""

    settings: Settings
    original: Original | None

    def others(
        self, eager: Call, plain: Call, rewritten: Call | None, original: Call | None
    ) -> list[Contender]:
        """The contenders that are not ours."""
        found = [Contender("eager, original formulas", "eager", eager)]
        if self.original is not None and original is not None:
            found.append(Contender("the original's code", "original", original))
        if self.settings.compile:
            found.append(Contender("torch.compile", "compile", plain))
            if rewritten is not None:
                found.append(Contender("torch.compile, rewritten", "rewritten", rewritten))
        return found


def op_cases(settings: Settings, original: Original | None) -> Iterator[Case]:
    """Every case of the operations; made when asked for, so that one graph's scores exist."""
    field = Field(settings, original)
    device = torch.device(settings.device)
    for name in settings.dtypes:
        for graph in (sf.Absorbing(settings.vocab_size), sf.Uniform(settings.vocab_size)):
            problem = make_problem(graph, settings, DTYPES[name], device)
            if graph.kind == "absorbing":
                yield as_case(f"{graph.kind} loss", problem, name, *loss(field, problem))
            yield as_case(f"{graph.kind} loss + gradient", problem, name, *gradient(field, problem))
            for method in ("analytic", "euler"):
                title = f"{graph.kind} {method} step"
                yield as_case(title, problem, name, *step(field, problem, method))
            title = f"{graph.kind} analytic step, temperature and top-p"
            yield as_case(title, problem, name, *shaped_step(field, problem))
    for graph in (sf.Absorbing(settings.vocab_size), sf.Uniform(settings.vocab_size)):
        yield noising(field, graph, device)


def as_case(
    operation: str, problem: Problem, dtype: str, contenders: Sequence[Contender], floor_bytes: int
) -> Case:
    """The case of an operation on that problem."""
    shape = " x ".join(f"{n:,}" for n in problem.log_score.shape)
    scores = problem.log_score.detach()
    return Case("ops", operation, shape, dtype, tuple(contenders), floor_bytes, tensor=scores)


def loss(field: Field, p: Problem) -> tuple[list[Contender], int]:
    """The loss without its gradient: touched rows are read once."""
    scores, kind, V = p.log_score.detach(), p.graph.kind, p.graph.vocab_size

    def eager() -> Tensor:
        return (p.weight * baselines.score_entropy(scores, p.sigma, p.x_t, p.x_0, p.graph)).sum()

    def original() -> Tensor:
        assert field.original is not None
        return (
            p.weight * field.original.score_entropy(p.graph, scores, p.sigma, p.x_t, p.x_0)
        ).sum()

    def plain() -> object:
        return static("entropy")(scores, p.sigma, p.x_t, p.x_0, p.weight, kind, V)

    def fused() -> Tensor:
        return sf.score_entropy(scores, p.sigma, p.x_t, p.x_0, p.graph, p.weight, "sum")

    others = field.others(eager, plain, None, original)
    return others + ours(field.settings, "", fused), p.touched_bytes


def gradient(field: Field, p: Problem) -> tuple[list[Contender], int]:
    """The loss with its gradient: touched rows are read once, the gradient is written once."""
    leaf, kind, V = p.log_score, p.graph.kind, p.graph.vocab_size
    inputs = (p.sigma, p.x_t, p.x_0)

    def eager() -> object:
        entropy = baselines.score_entropy(leaf, *inputs, p.graph)
        return torch.autograd.grad((p.weight * entropy).sum(), leaf)

    def original() -> object:
        assert field.original is not None
        entropy = field.original.score_entropy(p.graph, leaf, *inputs)
        return torch.autograd.grad((p.weight * entropy).sum(), leaf)

    def plain() -> object:
        return torch.autograd.grad(static("entropy")(leaf, *inputs, p.weight, kind, V), leaf)

    def rewritten() -> object:
        return static("entropy_with_grad")(leaf.detach(), *inputs, p.weight, kind, V)

    def autograd() -> object:
        return torch.autograd.grad(sf.score_entropy(leaf, *inputs, p.graph, p.weight, "sum"), leaf)

    def one_pass() -> object:
        return sf.score_entropy_with_grad(leaf, *inputs, p.graph, p.weight, "sum")

    found = field.others(eager, plain, rewritten, original)
    found += ours(field.settings, ", autograd", autograd)
    found += ours(field.settings, ", one pass", one_pass)
    return found, p.touched_bytes + p.bytes


def step(field: Field, p: Problem, method: str) -> tuple[list[Contender], int]:
    """A reverse step: touched rows are read once, and one token a position is written."""
    scores, dsigma = p.log_score.detach(), p.noised(method)
    kind, V = p.graph.kind, p.graph.vocab_size

    def eager() -> Tensor:
        return baselines.reverse_step(scores, p.x_t, dsigma, p.graph, method)

    def original() -> Tensor:
        assert field.original is not None
        return field.original.reverse_step(p.graph, scores, p.x_t, dsigma, method)

    def plain() -> object:
        return static("race_step")(scores, p.x_t, dsigma, kind, V, method)

    def rewritten() -> object:
        return static("inverse_cdf_step")(scores, p.x_t, dsigma, kind, V, method)

    def fused() -> Tensor:
        return sf.reverse_step(scores, p.x_t, p.sigma, dsigma, p.graph, method)

    others = field.others(eager, plain, rewritten, original)
    return others + ours(field.settings, "", fused), p.touched_bytes


def shaped_step(field: Field, p: Problem) -> tuple[list[Contender], int]:
    """An analytic step at a temperature and top-p: rows that move are read again."""
    scores, dsigma = p.log_score.detach(), p.noised("analytic")
    kind, V = p.graph.kind, p.graph.vocab_size

    def eager() -> Tensor:
        shaped = baselines.reshaped(scores.float(), p.x_t, *SHARES)
        return baselines.reverse_step(shaped, p.x_t, dsigma, p.graph, "analytic")

    def plain() -> object:
        return static("shaped_step")(scores, p.x_t, dsigma, kind, V, SHARES)

    def fused() -> Tensor:
        temperature, top_p = SHARES
        args = (scores, p.x_t, p.sigma, dsigma, p.graph, "analytic")
        return sf.reverse_step(*args, temperature=temperature, top_p=top_p)

    others = field.others(eager, plain, None, None)
    return others + ours(field.settings, "", fused), p.touched_bytes


def noising(field: Field, graph: sf.Graph, device: torch.device) -> Case:
    """sample_transition of 64 times the positions: a token read and one written for each."""
    shape = (64 * field.settings.shape[0], field.settings.shape[1])
    x_0 = torch.randint(graph.vocab_size, shape, device=device)
    sigma = torch.full((shape[0], 1), 0.5, device=device)

    def eager() -> Tensor:
        return baselines.sample_transition(x_0, sigma, graph)

    def original() -> Tensor:
        assert field.original is not None
        return field.original.sample_transition(graph, x_0, sigma)

    def plain() -> object:
        return static("sample_transition")(x_0, sigma, graph.kind, graph.vocab_size)

    def fused() -> Tensor:
        return sf.sample_transition(x_0, sigma, graph)

    found = field.others(eager, plain, None, original) + ours(field.settings, "", fused)
    title, size = f"{graph.kind} sample_transition", " x ".join(f"{n:,}" for n in shape)
    return Case("ops", title, size, "int64", tuple(found), 16 * x_0.numel(), tensor=x_0)
