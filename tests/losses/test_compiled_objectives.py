"""Every objective under torch.compile, whole and without a graph break, at several batch sizes."""

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
    "d3pm, absorbing": sf.D3PMLoss(ABSORBING, NOISE),
    "concrete": sf.ConcreteScoreMatching(ABSORBING, NOISE, "mean"),
    "dense": sf.DenseScoreEntropyLoss(CYCLE, NOISE, "mean"),
}


def table(rows: int) -> torch.nn.Parameter:
    generator = torch.Generator().manual_seed(0)
    return torch.nn.Parameter(torch.randn(rows, V, generator=generator))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_batch_sizes_may_vary(name: str):
    """The second size makes torch.compile trace with a symbol for it: the backend matters not."""
    torch.compiler.reset()
    objective, weight = OBJECTIVES[name], table(OBJECTIVES[name].graph.dim)
    dense = isinstance(objective.graph, sf.DenseGraph)

    def network(x: Tensor, sigma: Tensor) -> Tensor:
        return weight[x] * (1 + sigma[:, None, None].float())

    model = network if dense else sf.PosteriorModel(network, objective.graph)
    drawn = torch.compile(lambda x_0: objective(model, x_0), backend="eager", fullgraph=True)
    for size in (4, 6):
        x_0 = torch.randint(V, (size, L), generator=torch.Generator().manual_seed(size))
        loss = drawn(x_0)
        assert loss.shape == ((size,) if objective.reduction == "none" else ())
        (gradient,) = torch.autograd.grad(loss.sum(), weight)
        assert bool(loss.isfinite().all())
        assert bool(gradient.isfinite().all())
        assert bool(gradient.any())
