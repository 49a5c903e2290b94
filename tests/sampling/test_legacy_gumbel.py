"""legacy_fp32_gumbel: the original's draw, random number by random number, and its bias."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from sedd_fast.sampling.legacy_gumbel import gumbel_argmax

V = 7
NOISE = sf.LogLinearNoise()
GRAPHS = [sf.Absorbing(V), sf.Uniform(V)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(x: Tensor, sigma: Tensor) -> Tensor:
    dim = V + (x.max() == V)
    table = torch.randn(V + 1, V + 1, generator=seeded(9))[:, :dim]
    return (table[x] - 3).scatter(-1, x[..., None], 0.0)


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.kind)
@pytest.mark.parametrize("method", ["analytic", "euler"])
def test_draws_what_the_original_formula_draws(graph: sf.Graph, method: str) -> None:
    """Written out as in the paper's appendix, from the same stream of float32 uniforms."""

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        table = torch.randn(graph.dim, graph.dim, generator=seeded(9)) - 3
        level = torch.log(torch.expm1(sigma.float())).view(-1, 1, 1)
        return (table[x] - level).scatter(-1, x[..., None], 0.0)

    got = sf.sample(
        model, graph, NOISE, (30, 8), 5, method, generator=seeded(1), eps=0.1,
        legacy_fp32_gumbel=True,
    )  # fmt: skip
    masked = []
    generator = seeded(1)
    x = graph.sample_limit((30, 8), generator=generator)
    times = torch.linspace(1, 0.1, 6, dtype=torch.float64)
    for i, t in enumerate(times):
        sigma, rate = NOISE(t)
        masked.append(float((x == V).double().mean()))
        name = method if i < 5 else "denoise"
        removed = sigma
        if i < 5:
            removed = sigma - NOISE.sigma(times[i + 1]) if method == "analytic" else rate * 0.18
        probs = sf.reverse_probs(model(x, sigma), x, sigma, removed, graph, name)
        if name == "denoise" and graph.mask_index is not None:
            probs = probs[..., :-1]
        u = torch.rand(probs.shape, generator=generator)
        x = (probs / (1e-10 - torch.log(u + 1e-10))).argmax(-1)
    assert torch.equal(got, x)
    if graph.mask_index is not None:  # some unmask in every step, the last one too
        assert all(before > after for before, after in pairwise([*masked, 0.0]))


def test_a_token_below_2e_9_cannot_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where every uniform is as favourable to it as a float32 can be."""
    extremes = torch.tensor([0.0, 1 - 2.0**-24])
    monkeypatch.setattr(torch, "rand", lambda *_, **__: extremes)
    assert gumbel_argmax(torch.tensor([1 - 2e-9, 2e-9])) == 0
    assert gumbel_argmax(torch.tensor([1 - 4e-9, 4e-9])) == 1


@pytest.mark.parametrize("method", ["hit", "tau_leaping", "theta_trapezoidal"])
def test_other_samplers_refuse(method: str) -> None:
    with pytest.raises(ValueError, match="has an effect with method 'analytic' or 'euler' only"):
        sf.sample(network, GRAPHS[0], NOISE, (1, 2), 2, method, legacy_fp32_gumbel=True)


def test_it_is_the_reference_backend() -> None:
    sample_one = lambda: sf.sample(  # noqa: E731
        network, GRAPHS[0], NOISE, (1, 2), 2, legacy_fp32_gumbel=True
    )
    with sf.use_backend("reference"):
        assert sample_one().shape == (1, 2)
    with sf.use_backend("cpp"), pytest.raises(ValueError, match="backend 'cpp' was asked for"):
        sample_one()
