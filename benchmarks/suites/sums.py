"""row_sums under autograd: losses of related papers, with one read and one write of each row."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import sedd_fast as sf
from benchmarks.contenders import compiled
from benchmarks.contenders.compiled import compile_static
from benchmarks.harness.cases import Call, Case, Contender, ours
from benchmarks.harness.config import DTYPES, BenchmarkConfig
from benchmarks.suites.ops import Problem, as_case, make_problem

#: (scores) -> a scalar.
Loss = Callable[[Tensor], Tensor]


def sums_cases(config: BenchmarkConfig) -> Iterator[Case]:
    """Cross entropy at masked positions (MDLM, RADD, LLaDA), and squared errors of the ratios."""
    device, V = torch.device(config.device), config.vocab_size
    for name in config.dtypes:
        for graph, title, losses in (
            (sf.Absorbing(V), "absorbing cross entropy + gradient", cross_entropies),
            (sf.Uniform(V), "uniform squared error + gradient", squared_errors),
        ):
            p = make_problem(graph, config, DTYPES[name], device)
            contenders = contenders_of(config, p.log_score, *losses(p))
            yield as_case(title, p, name, contenders, p.touched_bytes + p.bytes)


def cross_entropies(p: Problem) -> tuple[Callable[..., Tensor], tuple[Tensor, ...], Loss]:
    """weight * (ln sum exp(l) - l at x_0) where x_t is the mask: torch's function, its inputs, and
    ours.
    """

    def fused(scores: Tensor) -> Tensor:
        total, log_x_0 = sf.row_sums(scores, p.x_t, p.x_0, p.graph, "affine")
        masked = p.x_t == p.graph.vocab_size
        return (p.weight * (torch.where(masked, total, 1.0).log() - log_x_0)).sum()

    return compiled.cross_entropy, (p.x_t, p.x_0, p.weight), fused


def squared_errors(p: Problem) -> tuple[Callable[..., Tensor], tuple[Tensor, ...], Loss]:
    """weight * sum over y != x_t of (exp(l_y) - rho)^2: torch's function, its inputs, and ours."""
    grown = p.sigma.double().expm1()
    rho = (grown / (grown + p.graph.vocab_size)).expand(p.x_t.shape).contiguous()

    def fused(scores: Tensor) -> Tensor:
        total, _ = sf.row_sums(scores, p.x_t, p.x_0, p.graph, "square", b=-rho)
        return (p.weight * total).sum()

    return compiled.squared_error, (p.x_t, rho.float(), p.weight), fused


def contenders_of(
    config: BenchmarkConfig,
    leaf: Tensor,
    function: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    fused: Loss,
) -> list[Contender]:
    """The contenders that return the gradient of the loss."""

    def gradient(loss: Loss) -> Call:
        return lambda: torch.autograd.grad(loss(leaf), leaf)

    found = [Contender("eager, plain torch", "eager", gradient(lambda x: function(x, *inputs)))]
    if config.compile:
        fast = gradient(lambda x: compile_static(function)(x, *inputs))
        found.append(Contender("torch.compile", "compile", fast))
    return found + ours(config, "", gradient(fused))
