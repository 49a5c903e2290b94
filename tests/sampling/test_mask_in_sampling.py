"""The mask at any state, under every sampler, loss, bound and posterior."""

from typing import Any

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.op_cases import chi_square_tail
from helpers.relabelled import Relabelling
from sedd_fast.losses.masked_cross_entropy import posterior_cross_entropy
from sedd_fast.models.cross_entropy import CrossEntropyRequest
from sedd_fast.models.interface import LinearHead

V, B, L = 7, 6, 10
NOISE = sf.LogLinearNoise()
each_mask = pytest.mark.parametrize("new", [Relabelling(V, 0), Relabelling(V, 3)], ids=str)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Posterior(torch.nn.Module):
    """Logits of x_0 from a table, for states whose mask is the last: (B, L, V + 1)."""

    def __init__(self) -> None:
        super().__init__()
        table = torch.randn(L, V + 1, V + 1, generator=seeded(), dtype=torch.float64)
        self.table = torch.nn.Parameter(table)

    def forward(self, indices: Tensor, sigma: Tensor) -> Tensor:
        place = torch.arange(indices.shape[1])
        return self.table[place, indices] * (1 + sigma[:, None, None].double().sqrt())


def scores(indices: Tensor, sigma: Tensor) -> Tensor:
    """Log scores a third larger than those of a posterior, for the mask as the last state."""
    with torch.no_grad():
        logits = Posterior()(indices, sigma)
        return sf.score_from_posterior(logits, sigma, indices, sf.Absorbing(V)) + 0.3


SAMPLERS: dict[str, dict[str, Any]] = {
    "analytic": {},
    "euler": {"temperature": 0.8},
    "tau_leaping": {"top_p": 0.9},
    "theta_trapezoidal": {"temperature": 1.2, "top_p": 0.9},
    "hit": {},
    "first hitting": {"method": "hit", "steps": None},
    "remask": {"method": "analytic", "remask": sf.Remask("rescale", eta=0.5)},
    "no denoising": {"method": "analytic", "denoise": False, "eps": 0.5},
}


@each_mask
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers(new: Relabelling, name: str):
    """The same tokens in the new numbers; a prompt may hold token V, and not the mask."""
    settings = {"method": name, "steps": 5, **SAMPLERS[name]}
    ours = {"generator": seeded(1), **settings}
    tokens = sf.sample(new.network(scores), new.graph, NOISE, (B, L), **ours)
    settings["generator"] = seeded(1)
    assert torch.equal(tokens, new.states(sf.sample(scores, new.last, NOISE, (B, L), **settings)))
    assert bool((tokens == new.mask).any()) == (name == "no denoising")
    prompt = torch.full((B, L), V)
    known = torch.arange(L).expand(B, L) < 4
    filled = sf.infill(new.network(scores), new.graph, NOISE, prompt, known, **settings)
    assert (filled[:, :4] == V).all()
    prompt[1, 2] = new.mask
    with pytest.raises(ValueError, match=rf"{new.mask} at known position \(1, 2\), which is the m"):
        sf.infill(new.network(scores), new.graph, NOISE, prompt, known, **settings)
    prompt[1, 2] = V + 1
    with pytest.raises(ValueError, match=f"known tokens are 0 .. {V} without the mask {new.mask}:"):
        sf.infill(new.network(scores), new.graph, NOISE, prompt, known, **settings)


def test_the_original_draw_never_gives_the_mask():
    """Its last step, from a time at which all tokens are masked but few."""
    new, mask = Relabelling(V, 3), torch.full((1, 1), 3)
    model, sigma = new.network(scores), NOISE.sigma(torch.tensor([0.999]))
    settings = {"steps": 1, "eps": 0.999, "legacy_fp32_gumbel": True, "generator": seeded()}
    tokens = sf.sample(model, new.graph, NOISE, (4000, 1), **settings)
    p = sf.posterior_from_score(model(mask, sigma), sigma, mask, new.graph)
    counts = torch.bincount(tokens.flatten(), minlength=V + 1).double()
    assert counts[3] == 0
    expected = 4000 * p.flatten().double()
    statistic = float(((torch.cat((counts[:3], counts[4:])) - expected) ** 2 / expected).sum())
    assert chi_square_tail(statistic, V - 1) > 1e-6


LOSSES = {
    "score entropy": sf.ScoreEntropyLoss,
    "cross entropy": sf.MaskedCrossEntropy,
    "d3pm": sf.D3PMLoss,
    "concrete": sf.ConcreteScoreMatching,
}


@each_mask
@pytest.mark.parametrize("name", LOSSES)
def test_losses(new: Relabelling, name: str):
    """From scores, and from the logits of a posterior: values and gradients."""
    x_0 = torch.randint(V, (B, L), generator=seeded(1))
    results = []
    for graph, given in ((new.last, x_0), (new.graph, new.states(x_0))):
        network = Posterior()
        plain = scores if graph == new.last else new.network(scores)
        logits = network if graph == new.last else new.network(network)
        loss = LOSSES[name](graph, NOISE)
        found = loss(sf.PosteriorModel(logits, graph), given, generator=seeded(2))
        found.sum().backward()
        values = loss(plain, given, generator=seeded(2))
        results.append((found.detach(), network.table.grad, values))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@each_mask
@pytest.mark.parametrize("mode", ["paper", "exact", "normalised"])
def test_bounds(new: Relabelling, mode):
    x_0 = torch.randint(V, (2, L), generator=seeded(1))
    common = {"samples": 8, "mode": mode}
    last = sf.likelihood_bound(scores, x_0, new.last, NOISE, generator=seeded(3), **common)
    moved = new.network(scores), new.states(x_0), new.graph, NOISE
    ours = sf.likelihood_bound(*moved, generator=seeded(3), **common)
    torch.testing.assert_close(ours.nats, last.nats, rtol=1e-9, atol=0)
    with pytest.raises(ValueError, match=f"holds {new.mask} at .* without the mask {new.mask}:"):
        sf.likelihood_bound(moved[0], torch.full((2, L), new.mask), *moved[2:], **common)


@each_mask
@pytest.mark.parametrize("zero_masking", [True, False])
@pytest.mark.parametrize("columns", [V, V + 1])
def test_posteriors(new: Relabelling, zero_masking: bool, columns: int):
    """Logits of the real tokens in their order, and with a column for the mask."""
    x_0 = torch.randint(V, (B, L), generator=seeded(1))
    x_t = torch.where(torch.rand(B, L, generator=seeded(2)) < 0.5, V, x_0)
    sigma = torch.linspace(0.1, 3, B, dtype=torch.float64)
    logits = Posterior()(x_t, sigma).detach()[..., :columns]
    moved = logits if columns == V else new.rows(logits)
    tokens = new.states(x_t), new.states(x_0)
    score = sf.score_from_posterior(logits, sigma, x_t, new.last, zero_masking)
    ours = sf.score_from_posterior(moved, sigma, tokens[0], new.graph, zero_masking)
    torch.testing.assert_close(ours, new.rows(score))
    masked = x_t == V
    p = sf.posterior_from_score(score, sigma, x_t, new.last)
    back = sf.posterior_from_score(ours, sigma, tokens[0], new.graph)
    torch.testing.assert_close(back[masked], p[masked])
    assert (back.sum(-1)[~masked] == 1).all()
    leaf = moved.clone().requires_grad_()
    nats = posterior_cross_entropy(leaf, *tokens, new.graph, zero_masking=zero_masking)
    nats.sum().backward()
    true = logits.clone().requires_grad_()
    expected = posterior_cross_entropy(true, x_t, x_0, new.last, zero_masking=zero_masking)
    expected.sum().backward()
    torch.testing.assert_close(nats, expected)
    torch.testing.assert_close(leaf.grad, true.grad if columns == V else new.rows(true.grad))


@each_mask
def test_a_cross_entropy_through_a_head(new: Relabelling):
    x_0 = torch.randint(V, (B, L), generator=seeded(1))
    x_t = torch.where(torch.rand(B, L, generator=seeded(2)) < 0.5, V, x_0)
    hidden = torch.randn(B, L, 5, generator=seeded(3), dtype=torch.float64)
    weight = torch.randn(V + 1, 5, generator=seeded(4), dtype=torch.float64)
    results = []
    for graph in (new.last, new.graph):
        leaf = (weight if graph == new.last else new.rows(weight, 0)).clone().requires_grad_()
        given = [x if graph == new.last else new.states(x) for x in (x_t, x_0)]
        head = LinearHead(leaf, None, graph, excluded=(graph.mask_index,))
        for rows in (None, sf.touched_rows(given[0], graph)):
            request = CrossEntropyRequest(given[1], rows=rows)
            results.append(request(hidden, head, given[0], torch.ones(B)))
        (results[-1].sum() + results[-2].sum()).backward()
        results.append(leaf.grad)
        assert not leaf.grad[graph.mask_index].any()
    listed, plain, gradient, *ours = results
    torch.testing.assert_close(ours[0], listed)
    torch.testing.assert_close(ours[1], plain)
    torch.testing.assert_close(ours[2], new.rows(gradient, 0))
