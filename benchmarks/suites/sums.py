"""row_sums under autograd: a loss of related papers for each of its terms, with its gradient.

The floor of the operation is one read of each touched row and one write of the gradient; that of
ours, whose backward reads the rows again, is two reads and the write.
"""

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
    """Cross entropy at masked positions (MDLM, RADD, LLaDA), squared errors of the ratios (concrete
    score matching), and logarithms of the probabilities of a step (D3PM).
    """
    device, V = torch.device(config.device), config.vocab_size
    for name in config.dtypes:
        for graph, title, losses in (
            (sf.Absorbing(V), "absorbing cross entropy + gradient", cross_entropies),
            (sf.Uniform(V), "uniform squared error + gradient", squared_errors),
            (sf.Uniform(V), "uniform sum of logarithms + gradient", logarithms),
        ):
            p = make_problem(graph, config, DTYPES[name], device)
            contenders = contenders_of(config, p, *losses(p))
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
    rho = least_ratio(p)

    def fused(scores: Tensor) -> Tensor:
        total, _ = sf.row_sums(scores, p.x_t, p.x_0, p.graph, "square", b=-rho)
        return (p.weight * total).sum()

    return compiled.squared_error, (p.x_t, rho.float(), p.weight), fused


def logarithms(p: Problem) -> tuple[Callable[..., Tensor], tuple[Tensor, ...], Loss]:
    """weight * sum over y != x_t of ln(exp(l_y) + rho): torch's function, its inputs, and ours."""
    rho = least_ratio(p)

    def fused(scores: Tensor) -> Tensor:
        total, _ = sf.row_sums(scores, p.x_t, p.x_0, p.graph, "log", b=rho)
        return (p.weight * total).sum()

    return compiled.sum_of_logarithms, (p.x_t, rho.float(), p.weight), fused


def least_ratio(p: Problem) -> Tensor:
    """p(y | x_0) / p(x_0 | x_0) of a token y other than x_0, (B, L) float64."""
    grown = p.sigma.double().expm1()
    return (grown / (grown + p.graph.vocab_size)).expand(p.x_t.shape).contiguous()


def contenders_of(
    config: BenchmarkConfig,
    p: Problem,
    function: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    fused: Loss,
) -> list[Contender]:
    """The contenders that return the gradient of the loss."""
    leaf = p.log_score

    def gradient(loss: Loss) -> Call:
        return lambda: torch.autograd.grad(loss(leaf), leaf)

    found = [Contender("eager, plain torch", "eager", gradient(lambda x: function(x, *inputs)))]
    if config.compile:
        fast = gradient(lambda x: compile_static(function)(x, *inputs))
        found.append(Contender("torch.compile", "compile", fast))
    return found + ours(config, "", gradient(fused), floor_bytes=p.autograd_bytes)
