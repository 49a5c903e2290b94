"""row_sums under autograd: the losses of neighbouring papers, from one read and one write a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import compiled
import torch
from cases import Case, Contender, Problem, as_case, make_problem, ours, static
from settings import DTYPES, Settings
from torch import Tensor

import sedd_fast as sf

#: (scores) -> a scalar.
Loss = Callable[[Tensor], Tensor]


def sums_cases(settings: Settings) -> Iterator[Case]:
    """Cross entropy at masked positions (MDLM, RADD, LLaDA), and squared errors of the ratios."""
    device, V = torch.device(settings.device), settings.vocab_size
    for name in settings.dtypes:
        for graph, title, losses in (
            (sf.Absorbing(V), "absorbing cross entropy + gradient", cross_entropies),
            (sf.Uniform(V), "uniform squared error + gradient", squared_errors),
        ):
            p = make_problem(graph, settings, DTYPES[name], device)
            contenders = tuple(_contenders(settings, p, *losses(p)))
            yield as_case(title, p, name, contenders, p.touched_bytes + p.bytes)


def cross_entropies(p: Problem) -> tuple[str, tuple[Tensor, ...], Loss]:
    """weight * (ln sum exp(l) - l at x_0) where x_t is the mask: in torch, its inputs, and ours."""

    def fused(scores: Tensor) -> Tensor:
        total, log_x_0 = sf.row_sums(scores, p.x_t, p.x_0, p.graph, "affine")
        masked = p.x_t == p.graph.vocab_size
        return (p.weight * (torch.where(masked, total, 1.0).log() - log_x_0)).sum()

    return "cross_entropy", (p.x_t, p.x_0, p.weight), fused


def squared_errors(p: Problem) -> tuple[str, tuple[Tensor, ...], Loss]:
    """weight * sum over y != x_t of (exp(l_y) - rho)^2: in torch, its inputs, and ours."""
    grown = p.sigma.double().expm1()
    rho = (grown / (grown + p.graph.vocab_size)).expand(p.x_t.shape).contiguous()

    def fused(scores: Tensor) -> Tensor:
        total, _ = sf.row_sums(scores, p.x_t, p.x_0, p.graph, "square", b=-rho)
        return (p.weight * total).sum()

    return "squared_error", (p.x_t, rho.float(), p.weight), fused


def _contenders(
    settings: Settings, p: Problem, name: str, inputs: tuple[Tensor, ...], fused: Loss
) -> list[Contender]:
    leaf = p.log_score

    def eager() -> object:
        return torch.autograd.grad(getattr(compiled, name)(leaf, *inputs), leaf)

    def plain() -> object:
        return torch.autograd.grad(static(name)(leaf, *inputs), leaf)

    found = [Contender("eager, plain torch", "eager", eager)]
    if settings.compile:
        found.append(Contender("torch.compile", "compile", plain))
    return found + ours(settings, "", lambda: torch.autograd.grad(fused(leaf), leaf))
