"""PosteriorSEDD: its posterior, its files, samplers, and training."""

from typing import Any

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from sedd_fast.models import networks
from sedd_fast.models.cross_entropy import CrossEntropyRequest
from sedd_fast.models.interface import ReverseStepRequest, ScoreEntropyRequest, takes_request

V, B, L = 11, 4, 12
KINDS = ("absorbing", "uniform")
by_graph = pytest.mark.parametrize("graph", KINDS)


def tiny(graph: str, **settings: Any) -> sf.PosteriorSEDD:
    """A small network with every weight drawn."""
    torch.manual_seed(0)
    config = sf.SEDDConfig(
        vocab_size=V, hidden_size=16, cond_dim=8, length=L, n_blocks=2, n_heads=2, dropout=0.0,
        graph=graph, scale_by_sigma=graph == "absorbing", **settings,
    )  # fmt: skip
    model = sf.PosteriorSEDD(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()


def batch(model: sf.PosteriorSEDD) -> tuple[Tensor, Tensor, Tensor]:
    """t, x_t, x_0."""
    x_0 = torch.randint(V, (B, L), generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0.1, 0.4, 0.7, 1.0])
    noised = sf.sample_transition(
        x_0, model.noise.sigma(t), model.graph, torch.Generator().manual_seed(2)
    )
    return t, noised, x_0


@by_graph
def test_its_posterior_is_the_softmax_of_its_head(graph: str):
    model = tiny(graph)
    t, x_t, _ = batch(model)
    sigma = model.noise.sigma(t)
    with torch.no_grad():
        log_score = model(x_t, sigma)
        head = model.output_layer.linear(model.features(x_t, sigma))[..., :V]
    read = x_t == V if graph == "absorbing" else torch.ones_like(x_t, dtype=torch.bool)
    posterior = sf.posterior_from_score(log_score, sigma, x_t, model.graph)
    torch.testing.assert_close(posterior[read], head.softmax(-1)[read], rtol=1e-3, atol=1e-5)
    assert not log_score.gather(-1, x_t[..., None]).any()
    assert log_score.dtype == torch.float32
    if graph == "absorbing":  # Z = 1 by construction
        z = torch.expm1(sigma)[:, None] * log_score[..., :V].exp().sum(-1)
        torch.testing.assert_close(z[read], torch.ones_like(z[read]))


@by_graph
def test_it_is_a_posterior_model_over_the_head(graph: str):
    model = tiny(graph)
    t, x_t, x_0 = batch(model)
    wrapped = sf.PosteriorModel(
        lambda x, sigma: model.output_layer.linear(model.features(x, sigma)), model.graph
    )
    objective = sf.ScoreEntropyLoss(model.graph, model.noise)
    losses = [objective(network, x_0, t=t, x_t=x_t) for network in (model, wrapped)]
    torch.testing.assert_close(*losses)


def test_a_cross_entropy_does_not_depend_on_the_scale():
    """Cross entropy is the same through both heads, score entropy and exact bounds are not."""
    posterior = tiny("absorbing")
    score = sf.SEDD(posterior.config).eval()
    with torch.no_grad():
        posterior.output_layer.linear.bias += 1  # a factor e on every score of `score`
    score.load_state_dict(posterior.state_dict())
    t, x_t, x_0 = batch(posterior)
    graph, noise = posterior.graph, posterior.noise
    cross = sf.MaskedCrossEntropy(graph, noise)
    torch.testing.assert_close(cross(score, x_0, t=t, x_t=x_t), cross(posterior, x_0, t=t, x_t=x_t))

    def nats(model: sf.SEDD, mode: str) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        return sf.likelihood_bound(model, x_0, graph, noise, 16, mode, generator).nats

    torch.testing.assert_close(nats(posterior, "exact"), nats(posterior, "normalised"))
    torch.testing.assert_close(nats(score, "normalised"), nats(posterior, "normalised"))
    assert (nats(score, "exact") > 1.2 * nats(posterior, "exact")).all()


@by_graph
def test_requests(graph: str):
    """Absorbing: all; uniform: no step and no score entropy, which need more than a softmax."""
    model = tiny(graph)
    for request in (ScoreEntropyRequest, ReverseStepRequest):
        assert takes_request(model, model.graph, request) == (graph == "absorbing")
    assert takes_request(model, model.graph, CrossEntropyRequest)
    t, x_t, x_0 = batch(model)
    sigma = model.noise.sigma(t)
    expected = sf.score_entropy(model(x_t, sigma), sigma, x_t, x_0, model.graph)
    torch.testing.assert_close(model(x_t, sigma, ScoreEntropyRequest(x_0)), expected)


@pytest.mark.parametrize("method", ["analytic", "hit"])
def test_samplers_accept_it(method: str):
    model = tiny("absorbing")
    tokens = sf.sample(
        model, model.graph, model.noise, (3, L), 6, method,
        generator=torch.Generator().manual_seed(4),
    )  # fmt: skip
    assert tokens.shape == (3, L)
    assert bool(((tokens >= 0) & (tokens < V)).all())


def test_round_trip_and_kinds(tmp_path):
    model = tiny("absorbing")
    model.save_pretrained(tmp_path / "posterior")
    sf.SEDD(model.config).save_pretrained(tmp_path / "sedd")
    t, x_t, _ = batch(model)
    sigma = model.noise.sigma(t)
    for again in (
        networks.load(tmp_path / "posterior"),
        sf.PosteriorSEDD.from_pretrained(tmp_path / "posterior"),
    ):
        assert type(again) is sf.PosteriorSEDD
        assert torch.equal(again(x_t, sigma), model(x_t, sigma))
    with pytest.raises(ValueError, match=r"the network PosteriorSEDD, not SEDD; read"):
        sf.SEDD.from_pretrained(tmp_path / "posterior")
    with pytest.raises(ValueError, match=r"the network SEDD, not PosteriorSEDD"):
        sf.PosteriorSEDD.from_pretrained(tmp_path / "sedd")


@by_graph
def test_it_trains_under_autocast(graph: str):
    model = tiny(graph).train()
    _, _, x_0 = batch(model)
    objective = sf.D3PMLoss(model.graph, model.noise, "mean", steps=20)
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(model, x_0, generator=torch.Generator().manual_seed(5))
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
