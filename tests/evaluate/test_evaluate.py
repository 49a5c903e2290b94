"""likelihood_bound, evaluate_corpus: estimator, errors, invariances. Truth: test_toy_world."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sedd_fast as sf
from sedd_fast.evaluate import (
    LikelihoodBound,
    evaluate_corpus,
    join,
    likelihood_bound,
)
from sedd_fast.evaluate.draws import variance_of_mean

V, L = 7, 10
ABSORBING, UNIFORM = sf.Absorbing(V), sf.Uniform(V)
NOISE = sf.LogLinearNoise()
PROBS = torch.softmax(torch.arange(V).double() * 0.4, 0)
CASES = [(ABSORBING, "exact"), (ABSORBING, "normalised"), (ABSORBING, "paper"),
         (UNIFORM, "exact"), (UNIFORM, "paper")]  # fmt: skip
each_case = pytest.mark.parametrize(
    ("graph", "mode"), CASES, ids=[f"{g.kind}-{m}" for g, m in CASES]
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unigram_scores(x_t: Tensor, sigma: Tensor, log_scale: float = 0.0) -> Tensor:
    """Exact absorbing scores where tokens are independent, each distributed as PROBS."""
    log_score = PROBS.log() + log_scale - torch.log(torch.expm1(sigma.double()))[:, None]  # (B, V)
    log_score = nn.functional.pad(log_score, (0, 1))[:, None]
    return log_score.expand(*x_t.shape, V + 1)


class Net(nn.Module):
    """Any scores at all, float32, with a dropout that must be off."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.dropout = nn.Embedding(dim, dim), nn.Dropout(0.5)
        self.rows: list[int] = []

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert sigma.dtype == torch.float32
        self.rows.append(len(x_t))
        absorbing = self.embedding.num_embeddings > V
        level = -torch.log(torch.expm1(sigma)) if absorbing else torch.zeros_like(sigma)
        scores = self.dropout(0.3 * self.embedding(x_t)) + level[:, None, None]
        return scores.scatter(-1, x_t[..., None], 0)


TEXT = torch.multinomial(PROBS, 6 * L, True, generator=seeded(9)).view(6, L)


def test_independent_tokens_have_their_likelihood() -> None:
    truth = -PROBS.log()[TEXT].sum(1)
    for mode in ("exact", "normalised"):
        bound = likelihood_bound(
            unigram_scores, TEXT, ABSORBING, NOISE, 600, mode, seeded(), batch_size=200
        )
        # Balanced masks are exact here, because a token's loss does not depend on the masks.
        assert ((bound.nats - truth).abs() < 4 * bound.stderr + 1e-6 * truth).all()
        assert (bound.stderr < 1e-6 * truth).all()


@pytest.mark.parametrize("mode", ["exact", "normalised"])
def test_stratified_masks_have_the_likelihood_of_independent_tokens(mode: str) -> None:
    truth = -PROBS.log()[TEXT].sum(1)
    bound = likelihood_bound(
        unigram_scores, TEXT, ABSORBING, NOISE, 600, mode, seeded(), 200, times="stratified"
    )
    assert ((bound.nats - truth).abs() < 4 * bound.stderr).all()
    assert (bound.stderr < 0.06 * truth).all()


def test_antithetic_samples_mirror_each_other() -> None:
    seen: list[Tensor] = []

    def model(x_t: Tensor, sigma: Tensor) -> Tensor:
        seen.append(x_t == V)
        return unigram_scores(x_t, sigma)

    bound = likelihood_bound(
        model, TEXT[:2], ABSORBING, NOISE, 8, "exact", seeded(), 3, times="antithetic"
    )
    assert (bound.samples, bound.times, len(torch.cat(seen))) == (8, "antithetic", 16)
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        assert ((first | second).all(1)).all()  # every token is masked in one of the two ...
        assert ((first & second).sum(1) == 1).all()  # ... and one in both
    assert bound.description.endswith("8 samples a sequence, antithetic")


def test_join() -> None:
    parts = [
        likelihood_bound(unigram_scores, TEXT[:, :n], ABSORBING, NOISE, 4, generator=seeded(n))
        for n in (3, 5)
    ]
    both = join(parts)
    assert both.total_tokens == 6 * 3 + 6 * 5
    assert both.total_nats == pytest.approx(sum(part.total_nats for part in parts))
    assert join(parts[:1]).tokens == 3
    with pytest.raises(ValueError, match="at least one to join"):
        join([])
    other = likelihood_bound(unigram_scores, TEXT, ABSORBING, NOISE, 6)
    with pytest.raises(ValueError, match="expected one mode, samples and times"):
        join([parts[0], other])


def test_variance_of_the_mean_is_that_within_strata() -> None:
    values = torch.tensor([[1.0, 3.0, 10.0, 10.0], [2.0, 2.0, 5.0, 5.0]], dtype=torch.float64)
    variance, degrees = variance_of_mean(values)
    assert variance.tolist() == [0.25, 0.0]
    assert degrees.tolist() == [1.0, math.inf]  # one of the two strata has all the variance
    alike = torch.tensor([[0.0, 2.0, 7.0, 9.0, 4.0, 2.0]], dtype=torch.float64)
    assert variance_of_mean(alike)[1].item() == pytest.approx(7)  # 3 (3 v)^2 / 3 v^2 - 2
    odd = torch.tensor([[9.0, 9.0, 1.0, 3.0, 7.0]], dtype=torch.float64)  # three in the last one
    assert variance_of_mean(odd)[0].item() == pytest.approx(3 * (28 / 3) / 25)


def test_unnormalised_scores_cost_exactly_their_excess() -> None:
    """Scores times Z: "exact" rises by L (Z - 1 - ln Z) in each sample, "normalised" by 0."""

    def off(x_t: Tensor, sigma: Tensor) -> Tensor:
        return unigram_scores(x_t, sigma, log_scale=0.3)

    def nats(model, mode: str) -> Tensor:  # type: ignore[no-untyped-def]
        return likelihood_bound(model, TEXT, ABSORBING, NOISE, 16, mode, seeded(1), eps=0.3).nats

    # The network's E is that of the clamped noise, so no masked fraction biases it.
    excess = L * (math.exp(0.3) - 1 - 0.3)
    torch.testing.assert_close(nats(off, "exact"), nats(unigram_scores, "exact") + excess)
    torch.testing.assert_close(nats(off, "normalised"), nats(unigram_scores, "normalised"))
    torch.testing.assert_close(nats(unigram_scores, "exact"), nats(unigram_scores, "normalised"))


@pytest.mark.parametrize("mode", ["exact", "normalised"])
def test_every_count_of_masks_and_noise_within_training(mode: str) -> None:
    counts: list[int] = []
    levels: list[Tensor] = []

    def model(x_t: Tensor, sigma: Tensor) -> Tensor:
        counts.extend((x_t == V).sum(1).tolist())
        levels.append(sigma)
        return unigram_scores(x_t, sigma)

    likelihood_bound(
        model, TEXT[:1], ABSORBING, NOISE, 20 * L, mode, seeded(), eps=0.05, times="stratified"
    )
    assert [counts.count(n) for n in range(L + 1)] == [0] + [20] * L  # stratified
    low, high = NOISE.sigma(torch.tensor([0.05, 1.0])).tolist()
    sigma = torch.cat(levels)
    assert sigma.min().item() == pytest.approx(low)
    assert low * 0.999 <= sigma.min() <= sigma.max() <= high * 1.001


def test_paper_mode_is_the_integral_of_the_training_loss() -> None:
    levels: list[Tensor] = []

    def model(x_t: Tensor, sigma: Tensor) -> Tensor:
        levels.append(sigma)
        return unigram_scores(x_t, sigma)

    bound = likelihood_bound(
        model, TEXT, ABSORBING, NOISE, 3000, "paper", seeded(), batch_size=2000, eps=0.05
    )
    # Half of the levels are uniform in the share of masks, half in their logarithm; two a stratum.
    sigma = torch.cat(levels).view(6, 3000).double()
    low, high = NOISE.sigma(torch.tensor([0.05, 1.0], dtype=torch.float64))
    place = (torch.exp(-low) - torch.exp(-sigma)) / (torch.exp(-low) - torch.exp(-high))
    place = (place + (sigma / low).log() / (high / low).log()) / 2
    strata = (place * 1500).floor() - torch.arange(1500).repeat_interleave(2)
    assert ((strata != 0).sum() < 20) & (strata.abs().max() <= 1)  # float32 edges aside
    assert not bound.strict
    objective = sf.ScoreEntropyLoss(ABSORBING, NOISE, sampling_eps=0.05)
    loss = objective(unigram_scores, TEXT.repeat(3000, 1), generator=seeded(2)).view(3000, 6)
    error = torch.hypot(bound.stderr, loss.std(0).double() / math.sqrt(3000))
    assert ((bound.nats - 0.95 * loss.mean(0)).abs() < 4 * error).all()


@each_case
def test_seed_decides_whatever_the_batch_size(graph: sf.Graph, mode: str) -> None:
    net = Net(graph.dim).train()
    runs = [
        likelihood_bound(net, TEXT, graph, NOISE, 9, mode, seeded(3), batch_size=size)
        for size in (1, 7, 64)
    ]
    for run in runs[1:]:
        torch.testing.assert_close(run.nats, runs[0].nats, rtol=1e-5, atol=1e-5)
    other = likelihood_bound(net, TEXT, graph, NOISE, 9, mode, seeded(4))
    assert runs[0].nats.isfinite().all()
    assert not torch.equal(other.nats, runs[0].nats)
    assert net.training
    assert net.dropout.training
    assert max(net.rows) == 54  # 6 sequences x 9 samples, never above the batch size
    assert runs[0].nats.dtype == runs[0].stderr.dtype == torch.float64


@each_case
def test_corpus_is_the_bound_of_its_blocks(graph: sf.Graph, mode: str) -> None:
    net = Net(graph.dim)
    bound = likelihood_bound(net, TEXT, graph, NOISE, 4, mode, seeded(5))
    for blocks in (TEXT, TEXT.int(), TEXT.numpy().astype(np.uint16), TEXT.numpy()):
        corpus = evaluate_corpus(net, blocks, graph, NOISE, 4, mode, seeded(5), progress=True)
        assert torch.equal(corpus.nats, bound.nats)
    assert bound.total_tokens == 6 * L


@each_case
def test_empty(graph: sf.Graph, mode: str) -> None:
    for shape in ((0, 5), (3, 0)):
        x_0 = torch.zeros(shape, dtype=torch.int64)
        bound = likelihood_bound(Net(graph.dim), x_0, graph, NOISE, 4, mode)
        assert bound.nats.shape == bound.stderr.shape == (shape[0],)
        assert bound.total_nats == 0
        assert math.isnan(bound.perplexity)


def test_summary() -> None:
    nats = torch.tensor([10.0, 30.0], dtype=torch.float64) * math.log(2)
    stderr = torch.tensor([3.0, 4.0], dtype=torch.float64) * math.log(2)
    bound = LikelihoodBound(nats, stderr, tokens=10, mode="exact", samples=8, strict=True)
    assert bound.bits_per_token == pytest.approx(2)
    assert bound.bits_per_token_stderr == pytest.approx(0.25)
    assert bound.perplexity == pytest.approx(4)
    assert bound.perplexity_stderr == pytest.approx(4 * 0.25 * math.log(2))
    assert bound.bits_per(80) == pytest.approx(0.5)
    assert bound.description == "exact, upper bound, 8 samples a sequence, stratified"
    hopeless = LikelihoodBound(nats * 1e6, stderr, 10, "paper", 8, strict=False)
    assert hopeless.perplexity == math.inf
    assert "not a strict bound" in hopeless.description


def test_exact_mode_adds_the_reconstruction_at_the_lowest_time() -> None:
    """Uniform, independent tokens: their likelihood, wherever the integral ends."""

    def model(x_t: Tensor, sigma: Tensor) -> Tensor:
        kept = torch.exp(-sigma.double())[:, None]
        noised = (kept * PROBS + (1 - kept) / V).log()  # (B, V)
        return noised[:, None] - noised.gather(-1, x_t)[..., None]

    truth, noise = -PROBS.log()[TEXT].sum(1), sf.GeometricNoise(1e-4, 12.0)
    for eps in (0.2, 0.8):  # noise of 0.001 and of 1.2
        bound = likelihood_bound(model, TEXT, UNIFORM, noise, 400, "exact", seeded(7), 400, eps)
        assert ((bound.nats - truth).abs() < 4 * bound.stderr).all()
        assert (bound.stderr < 0.06 * truth).all()


def test_exact_mode_adds_the_divergence_at_time_1_for_every_position() -> None:
    """Uniform, noise far from its limit: "exact" is "paper" and L times the divergence from it."""
    noise = sf.GeometricNoise(1e-7, 0.5)  # no token has changed at eps
    exact, paper = (
        likelihood_bound(Net(V), TEXT, UNIFORM, noise, 8, mode, seeded(6))
        for mode in ("exact", "paper")
    )
    probs = UNIFORM.transition_matrix(float(noise.sigma(torch.ones((), dtype=torch.float64))))[:, 0]
    divergence = float((probs * (probs * V).log()).sum())
    expected = torch.full((6,), L * divergence, dtype=torch.float64)
    torch.testing.assert_close(exact.nats - paper.nats, expected, rtol=1e-4, atol=0)


def test_unreachable_text_is_infinite() -> None:
    """Uniform: a token that the denoising step can never draw makes the bound infinite."""

    def stubborn(x_t: Tensor, sigma: Tensor) -> Tensor:
        scores = torch.full((*x_t.shape, V), -50.0)
        scores[..., 0] = 5.0
        return scores.scatter(-1, x_t[..., None], 0)

    x_0 = torch.full((1, 200), 1)
    bound = likelihood_bound(stubborn, x_0, UNIFORM, NOISE, 64, "exact", seeded(), eps=0.1)
    assert bound.nats.item() == math.inf


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"mode": "elbo"}, ValueError, "mode must be one of"),
        ({"mode": "normalised", "graph": UNIFORM}, ValueError, "absorbing"),
        ({"times": "uniform"}, ValueError, "times must be one of 'balanced', 'stratified'"),
        ({"times": "antithetic", "samples": 6}, ValueError, "multiple of 4 .* got 6; use 8"),
        ({"samples": 1}, ValueError, "samples must be a whole number of at least 2"),
        ({"samples": 4.0}, ValueError, "samples must be"),
        ({"batch_size": 0}, ValueError, "batch_size must be"),
        ({"eps": 0.0}, ValueError, "eps must lie in"),
        ({"x_0": TEXT.float()}, TypeError, "x_0 must be int64"),
        ({"x_0": TEXT[0]}, ValueError, r"x_0 must have shape \(B, L\)"),
        ({"x_0": TEXT.tolist()}, TypeError, "x_0 must be a torch.Tensor"),
        ({"x_0": torch.full((1, 2), V)}, ValueError, f"x_0 holds {V} at position"),
        ({"x_0": torch.full((1, 2), -1)}, ValueError, "x_0 holds -1 at position"),
        ({"graph": "absorbing"}, TypeError, "graph must be"),
    ],
)
def test_refuses(changed: dict, error: type[Exception], message: str) -> None:
    settings = {"x_0": TEXT, "graph": ABSORBING, "noise": NOISE, "samples": 4} | changed
    with pytest.raises(error, match=message):
        likelihood_bound(unigram_scores, **settings)
    if "x_0" not in changed and "samples" not in changed:
        settings |= {"blocks": settings.pop("x_0"), "samples_per_block": settings.pop("samples")}
        with pytest.raises(error, match=message):
            evaluate_corpus(unigram_scores, **settings)
