"""Every objective under torch.compile, whole and without a graph break, at several batch sizes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sedd_fast as sf

V, L = 11, 12
NOISE = sf.LogLinearNoise()
ABSORBING, UNIFORM = sf.Absorbing(V), sf.Uniform(V)
CYCLE = sf.DenseGraph(torch.roll(torch.eye(V), 1, 0) - torch.eye(V))
OBJECTIVES = {
    "score entropy": sf.ScoreEntropyLoss(UNIFORM, NOISE),
    "cross entropy": sf.MaskedCrossEntropy(ABSORBING, NOISE),
    "lambda": sf.MaskedCrossEntropy(ABSORBING, NOISE, "mean", over="lambda"),
    "d3pm": sf.D3PMLoss(UNIFORM, NOISE, "sum"),
    "concrete": sf.ConcreteScoreMatching(ABSORBING, NOISE, "mean"),
    "dense": sf.DenseScoreEntropyLoss(CYCLE, NOISE, "mean"),
}


def table(rows: int) -> torch.nn.Parameter:
    generator = torch.Generator().manual_seed(0)
    return torch.nn.Parameter(torch.randn(rows, V, generator=generator))


def compiled(name: str, **options: bool) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The objective of a network whose only weight is a table, and the table."""
    torch.compiler.reset()
    objective = OBJECTIVES[name]
    weight = table(objective.graph.dim)

    def network(x: Tensor, sigma: Tensor) -> Tensor:
        return weight[x] * (1 + sigma[:, None, None].float())

    dense = isinstance(objective.graph, sf.DenseGraph)
    model = network if dense else sf.PosteriorModel(network, objective.graph)
    options |= {"fullgraph": True}  # what fails does so while it is traced: no backend is needed
    return torch.compile(lambda x_0: objective(model, x_0), backend="eager", **options), weight


def check(run: Callable[[Tensor], Tensor], weight: Tensor, name: str, size: int) -> None:
    loss = run(torch.randint(V, (size, L), generator=torch.Generator().manual_seed(size)))
    assert loss.shape == ((size,) if OBJECTIVES[name].reduction == "none" else ())
    (gradient,) = torch.autograd.grad(loss.sum(), weight)
    assert bool(loss.isfinite().all())
    assert bool(gradient.isfinite().all())
    assert bool(gradient.any())


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "cross entropy"])
def test_with_a_symbol_for_the_batch_size(name: str):
    check(*compiled(name, dynamic=True), name, 6)


def test_one_batch_size_after_another():
    run, weight = compiled("cross entropy")
    for size in (4, 6, 3):
        check(run, weight, "cross entropy", size)
