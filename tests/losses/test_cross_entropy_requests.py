"""Cross entropies of networks of p(x_0 | x_t): no normalised scores, LLaDA's own loss, values."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import sedd_fast as sf
from helpers.tiny_models import TINY
from sedd_fast.models.cross_entropy import CrossEntropyRequest
from sedd_fast.models.denoise_request import DenoiseRequest
from sedd_fast.models.interface import ScoreEntropyRequest, takes_request

V, B, L = 13, 4, 12
GRAPH, NOISE = sf.Absorbing(V), sf.LogLinearNoise()
T = torch.tensor([0.1, 0.4, 0.7, 1.0])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X_0 = torch.randint(V, (B, L), generator=seeded())
X_T = sf.sample_transition(X_0, NOISE.sigma(T), GRAPH, seeded(1))
MASKED = X_T == V
OBJECTIVES = {
    "t": sf.MaskedCrossEntropy(GRAPH, NOISE),
    "mean": sf.MaskedCrossEntropy(GRAPH, NOISE, "mean"),
    "lambda": sf.MaskedCrossEntropy(GRAPH, NOISE, "sum", over="lambda"),
    "d3pm": sf.D3PMLoss(GRAPH, NOISE, "mean", steps=8),
}
every_objective = pytest.mark.parametrize("name", OBJECTIVES)


def logits(width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(B, L, width, generator=seeded(2)).to(dtype).requires_grad_()


def posterior(value: Tensor, **options: Any) -> sf.PosteriorModel:
    return sf.PosteriorModel(lambda x: value, GRAPH, takes_sigma=False, **options)


def network(kind: type[sf.SEDD] = sf.PosteriorSEDD) -> sf.SEDD:
    torch.manual_seed(0)
    model = kind(sf.SEDDConfig(vocab_size=V, **TINY))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


# LLaDA's loss, and the logits of the mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_llada(dtype: torch.dtype):
    """Its guidelines: cross entropy over the whole vocabulary, over the mask probability."""
    z = logits(V + 1, dtype)
    lam = torch.tensor([0.2, 0.5, 0.9, 1.0])
    nats = F.cross_entropy(z[MASKED].to(max(dtype, torch.float32, key=lambda d: d.itemsize)),
                           X_0[MASKED], reduction="none")  # fmt: skip
    expected = (nats / lam[:, None].expand(B, L)[MASKED]).sum() / (B * L)
    (slope,) = torch.autograd.grad(expected, z)
    objective = sf.MaskedCrossEntropy(GRAPH, NOISE, "mean", over="lambda")
    loss = objective(posterior(z, zero_masking=False), X_0, t=lam, x_t=X_T) / L
    torch.testing.assert_close(loss, expected, check_dtype=False)
    (gradient,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(gradient, slope)
    assert gradient[..., V][MASKED].all()
    zeroed = objective(posterior(z), X_0, t=lam, x_t=X_T) / L
    assert float(zeroed.detach()) < float(loss.detach())
    (gradient,) = torch.autograd.grad(zeroed, z)
    assert not gradient[..., V].any()


@pytest.mark.parametrize("width", [V, V + 1])
@pytest.mark.parametrize("zero_masking", [True, False])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("unread", [torch.nan, torch.inf, -torch.inf])
def test_per_position(width: int, zero_masking: bool, compiled: bool, unread: float, monkeypatch):
    if compiled:  # what torch.compile traces, where no shape may depend on values
        monkeypatch.setattr("sedd_fast.models.cross_entropy.is_static", lambda tensor: True)
    z = logits(width, torch.float64)
    with torch.no_grad():
        z[..., 3] = -torch.inf  # a token that the network excludes
        z[~MASKED] = unread
    x_0 = torch.where(X_0 == 3, 4, X_0)
    weight = torch.rand(B, L, generator=seeded(3), dtype=torch.float64) * (torch.arange(L) > 2)
    nats = sf.posterior_cross_entropy(z, X_T, x_0, GRAPH, weight, zero_masking)
    counted = z if not zero_masking else z[..., :V]
    expected = torch.zeros(B, L, dtype=torch.float64)
    expected[MASKED] = F.cross_entropy(counted[MASKED], x_0[MASKED], reduction="none")
    torch.testing.assert_close(nats, weight * expected)
    (gradient,) = torch.autograd.grad(nats.sum(), z)
    assert bool(gradient.isfinite().all())
    assert not gradient[~MASKED].any()
    once = sf.posterior_cross_entropy(z, X_T, x_0, GRAPH, zero_masking=zero_masking)
    torch.testing.assert_close(once, expected)


@pytest.mark.parametrize("shift", [0.0, 800.0, -800.0])
def test_the_scale_of_scores_does_not_matter_when_traced(shift: float):
    z = logits(V + 1, torch.float64).detach()

    def loss(z: Tensor) -> Tensor:
        return sf.posterior_cross_entropy(z, X_T, X_0, GRAPH).sum()

    gradient, value = torch.func.grad_and_value(loss)(z + shift)
    expected_gradient, expected = torch.func.grad_and_value(
        lambda z: F.cross_entropy(z[MASKED][:, :V], X_0[MASKED], reduction="sum")
    )(z)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_listed_rows_that_are_not_masked_have_no_entropy():
    model, sigma = network(), NOISE.sigma(T)
    rows = sf.ops.TouchedRows.at(torch.arange(0, B * L, 2))
    for reduction in ("none", "mean"):
        asked = CrossEntropyRequest(X_0, None, reduction, rows)
        expected = asked.of_scores(model(X_T, sigma), X_T, sigma, GRAPH)
        torch.testing.assert_close(model(X_T, sigma, asked), expected)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"graph": sf.Uniform(V)}, ValueError, "for the absorbing graph, got Uniform"),
        ({"logits": torch.zeros(B, L, 5)}, ValueError, r"\(B, L, 13\) or \(B, L, 14\)"),
        ({"x_0": torch.full((B, L), V)}, ValueError, "x_0 holds the mask"),
        ({"x_0": torch.full((B, L), -100)}, ValueError, "x_0 must hold tokens"),
        ({"x_t": X_T[:, :3]}, ValueError, "x_t must have shape"),
        ({"weight": torch.ones(B)}, ValueError, "weight must have shape"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], words: str):
    given = {"logits": torch.zeros(B, L, V), "x_t": X_T, "x_0": X_0, "graph": GRAPH} | change
    with pytest.raises(error, match=words):
        sf.posterior_cross_entropy(**given)


def test_a_mask_in_the_text_is_refused():
    x_0 = torch.full((B, L), V)
    with pytest.raises(ValueError, match="x_0 holds the mask"):
        OBJECTIVES["t"](network(), x_0, t=T, x_t=X_T)


# Values and gradients


def loss_and_gradients(
    model: sf.SEDD, name: str, call: Any, autocast: bool = False
) -> list[Tensor]:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = OBJECTIVES[name](call, X_0, t=T, x_t=X_T).sum()
    loss.backward()
    found = [loss.detach(), *(p.grad for p in model.parameters())]
    model.zero_grad()
    return found


@every_objective
@pytest.mark.parametrize("kind", [sf.PosteriorSEDD, sf.SEDD])
def test_values_and_gradients_are_those_of_the_log_scores(name: str, kind: type):
    model = network(kind)
    assert takes_request(model, GRAPH, CrossEntropyRequest)
    found = [loss_and_gradients(model, name, call) for call in (model, lambda x, s: model(x, s))]
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(
            got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
        )


@pytest.mark.parametrize("name", ["t", "mean"])
def test_under_autocast_errors_are_those_of_the_log_scores(name: str):
    """Both differ from float32 by the rounding of bfloat16, also of the network below the head."""
    model = network()
    calls = (model, lambda x, s: model(x, s))
    exact = loss_and_gradients(model, name, model)
    fused, scores = (loss_and_gradients(model, name, call, autocast=True) for call in calls)
    for got, other, expected in zip(fused, scores, exact, strict=True):
        assert got.dtype == torch.float32
        off, usual = (float((x - expected).abs().max()) for x in (got, other))
        assert off <= 2 * usual + 0.01 * float(expected.abs().max())


@every_objective
@pytest.mark.parametrize("width", [V, V + 1])
def test_posterior_models(name: str, width: int):
    z = logits(width)
    model = posterior(z)
    losses = [OBJECTIVES[name](m, X_0, t=T, x_t=X_T).sum() for m in (model, lambda *x: model(*x))]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, z)[0] for loss in losses))


def test_no_masks_and_all_masks():
    model = network()
    for x_t in (X_0, torch.full_like(X_0, V)):
        loss = OBJECTIVES["mean"](model, X_0, t=T, x_t=x_t)
        loss.backward()
        scores = OBJECTIVES["mean"](lambda x, s: model(x, s), X_0, t=T, x_t=x_t)
        torch.testing.assert_close(loss, scores)
        assert all(p.grad is not None for p in model.parameters())
        assert bool(loss == 0) == bool((x_t == X_0).all())


def test_other_requests_and_subclasses():
    model, sigma = posterior(logits(V)), NOISE.sigma(T)
    expected = sf.score_entropy(model(X_T, sigma), sigma, X_T, X_0, GRAPH)
    torch.testing.assert_close(model(X_T, sigma, ScoreEntropyRequest(X_0)), expected)

    class Sharper(sf.PosteriorModel):
        def forward(self, indices: Tensor, sigma: Tensor) -> Tensor:
            return super().forward(indices, sigma) * 2

    assert not Sharper(lambda x: x, GRAPH).head_requests
    assert sf.PosteriorModel(lambda x: x, sf.Uniform(V)).head_requests == (DenoiseRequest,)
    model.register_forward_hook(lambda module, inputs, out: out * 2)
    assert not model.head_requests


# Memory


class Sizes(TorchDispatchMode):
    """Sizes of the tensors of a vocabulary's width that operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not out._is_view() and out.shape[-1:] in ((V,), (V + 1,)):
            self.seen.append(out.numel() // out.shape[-1])
        return out


@pytest.fixture
def sizes() -> Iterator[Sizes]:
    with Sizes() as mode:
        yield mode


@pytest.mark.parametrize("name", ["mean", "d3pm"])
def test_the_head_is_applied_at_masked_positions_alone(name: str, sizes: Sizes, monkeypatch):
    model, asked = network(), []

    def watched(*args: Any, rows: sf.ops.TouchedRows, **options: Any) -> Tensor:
        asked.append(rows.index)
        return sf.ops.linear_cross_entropy(*args, rows=rows, **options)

    monkeypatch.setattr("sedd_fast.models.linear_head.linear_cross_entropy", watched)
    sizes.seen.clear()
    OBJECTIVES[name](model, X_0, t=T, x_t=X_T).backward()
    assert [rows.tolist() for rows in asked] == [MASKED.flatten().nonzero().flatten().tolist()]
    assert max(sizes.seen) == 1  # the gradient of the bias


@pytest.mark.parametrize("name", ["mean", "d3pm"])
def test_logits_are_not_normalised(name: str, sizes: Sizes):
    """The network's own logits, and one gradient of them: no further tensor of their size."""
    z = logits(V + 1)
    sizes.seen.clear()
    loss = OBJECTIVES[name](posterior(z * 1), X_0, t=T, x_t=X_T)
    torch.autograd.grad(loss, z)
    assert sizes.seen.count(B * L) <= 3  # z * 1, its gradient, and that of z
