"""The training objective: its definition, masks, times, reductions, and its minimum."""

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from sedd_fast.losses.objective import stratified_times

GRAPHS = (sf.Absorbing(7), sf.Uniform(7))
NOISE = sf.LogLinearNoise()
by_graph = pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.kind)


class TableModel(torch.nn.Module):
    """Scores from a table of tokens; records its arguments."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = torch.nn.Parameter(torch.randn(dim, dim, generator=generator))
        self.calls: list[tuple[Tensor, Tensor]] = []

    def forward(self, indices: Tensor, sigma: Tensor) -> Tensor:
        self.calls.append((indices, sigma))
        scores = self.table[indices] * sigma[:, None, None].sqrt()
        return scores.scatter(-1, indices[..., None], 0.0)


def tokens(batch: int = 6, length: int = 10) -> Tensor:
    return torch.randint(7, (batch, length), generator=torch.Generator().manual_seed(1))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@by_graph
def test_the_definition(graph: sf.Graph):
    """sigma'(t) times the sum of the score entropies of all positions, at the given x_t and t."""
    model, x_0 = TableModel(graph.dim), tokens()
    t = torch.linspace(0.1, 1.0, 6)
    sigma, rate = NOISE(t)
    x_t = sf.sample_transition(x_0, sigma, graph, generator())
    loss = sf.ScoreEntropyLoss(graph, NOISE)(model, x_0, t=t, x_t=x_t)
    each = sf.score_entropy(model(x_t, sigma), sigma, x_t, x_0, graph)
    torch.testing.assert_close(loss, rate * each.sum(-1))
    (seen, level), _ = model.calls
    assert torch.equal(seen, x_t)
    assert torch.equal(level, sigma)


@by_graph
def test_missing_arguments_are_drawn_from_the_generator(graph: sf.Graph):
    model, x_0 = TableModel(graph.dim), tokens()
    objective = sf.ScoreEntropyLoss(graph, NOISE)
    first, again, other = (objective(model, x_0, generator=generator(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    t = stratified_times(6, 1e-3, "cpu", generator(0))
    torch.testing.assert_close(model.calls[0][1], NOISE.sigma(t))


@by_graph
def test_reductions(graph: sf.Graph):
    model, x_0 = TableModel(graph.dim), tokens()
    each, mean, total = (
        sf.ScoreEntropyLoss(graph, NOISE, reduction=r)(model, x_0, generator=generator())
        for r in ("none", "mean", "sum")
    )
    assert each.shape == (6,)
    torch.testing.assert_close(mean, each.mean())
    torch.testing.assert_close(total, each.sum())


@by_graph
def test_positions_outside_the_mask_have_no_noise_and_no_loss(graph: sf.Graph):
    model, x_0 = TableModel(graph.dim), tokens()
    mask = torch.arange(10).expand(6, 10) >= 4
    objective, t = sf.ScoreEntropyLoss(graph, NOISE), torch.full((6,), 0.9)
    loss = objective(model, x_0, loss_mask=mask, t=t, generator=generator())
    x_t, sigma = model.calls[0]
    assert torch.equal(x_t[:, :4], x_0[:, :4])
    assert bool((x_t[:, 4:] != x_0[:, 4:]).any())
    each = sf.score_entropy(model(x_t, sigma), sigma, x_t, x_0, graph)
    torch.testing.assert_close(loss, NOISE.rate(t) * each[:, 4:].sum(-1))
    model.zero_grad()
    loss.sum().backward()
    rest = objective(model, x_0, loss_mask=torch.zeros_like(mask), t=t)
    assert not rest.any()


@by_graph
def test_a_mask_of_all_positions_equals_no_mask(graph: sf.Graph):
    model, x_0 = TableModel(graph.dim), tokens()
    objective = sf.ScoreEntropyLoss(graph, NOISE)
    everything = torch.ones(6, 10, dtype=torch.bool)
    with_mask = objective(model, x_0, loss_mask=everything, generator=generator())
    torch.testing.assert_close(with_mask, objective(model, x_0, generator=generator()))


@by_graph
def test_gradients_reach_the_model(graph: sf.Graph):
    model, x_0 = TableModel(graph.dim), tokens()
    t = torch.full((6,), 0.5)
    x_t = sf.sample_transition(x_0, NOISE.sigma(t), graph, generator())
    objective = sf.ScoreEntropyLoss(graph, NOISE, "sum")
    objective(model, x_0, t=t, x_t=x_t).backward()
    gradient = model.table.grad.clone()
    direction = torch.randn(model.table.shape, generator=generator())
    step, losses = 1e-3, []
    for sign in (1, -1):
        with torch.no_grad():
            model.table += sign * step * direction
            losses.append(float(objective(model, x_0, t=t, x_t=x_t)))
            model.table -= sign * step * direction
    slope = (losses[0] - losses[1]) / (2 * step)
    assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-2)


def test_a_loss_of_a_perfect_unigram_model_is_the_entropy():
    """Absorbing, independent tokens of distribution q: the bound is tight, E[loss] = L * H(q)."""
    graph, batch, length = sf.Absorbing(3), 2000, 8
    q = torch.tensor([0.6, 0.3, 0.1])
    x_0 = torch.multinomial(q, batch * length, replacement=True, generator=generator())
    entropy = -float((q * q.log()).sum()) * length

    def perfect(indices: Tensor, sigma: Tensor) -> Tensor:
        log_score = q.log() - torch.expm1(sigma).log()[:, None, None]
        scores = torch.nn.functional.pad(log_score, (0, 1)).expand(*indices.shape, 4)
        return scores

    objective = sf.ScoreEntropyLoss(graph, NOISE, "mean", sampling_eps=1e-9)
    loss = float(objective(perfect, x_0.view(batch, length), generator=generator()))
    assert loss == pytest.approx(entropy, rel=0.03)


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_stratified_times(batch):
    low = 1e-3
    t = stratified_times(batch, low, "cpu", generator())
    assert t.shape == (batch,)
    assert bool(((t > low) & (t <= 1)).all())
    slices = ((1 - t.double()) / (1 - low) * batch).floor().long().clamp(max=batch - 1)
    assert sorted(slices.tolist()) == list(range(batch))
    assert torch.equal(t, stratified_times(batch, low, "cpu", generator()))


def test_stratified_times_of_nothing():
    assert stratified_times(0, 1e-3, "cpu").shape == (0,)


def test_each_stratified_time_alone_is_uniform():
    seed = generator()
    firsts = torch.stack([stratified_times(4, 0.0, "cpu", seed)[0] for _ in range(4000)])
    counts = torch.histc(firsts, bins=8, min=0, max=1)
    assert float(((counts - 500) ** 2 / 500).sum()) < 35  # chi-square, 7 degrees: p = 1e-5


def test_bad_settings_and_masks():
    graph, x_0 = GRAPHS[0], tokens()
    with pytest.raises(ValueError, match=r"reduction must be one of .*'mean', got 'avg'"):
        sf.ScoreEntropyLoss(graph, NOISE, "avg")
    with pytest.raises(ValueError, match="sampling_eps"):
        sf.ScoreEntropyLoss(graph, NOISE, sampling_eps=1.0)
    objective, model = sf.ScoreEntropyLoss(graph, NOISE), TableModel(graph.dim)
    with pytest.raises(TypeError, match=r"loss_mask must be bool.*int64.*\.bool\(\)"):
        objective(model, x_0, loss_mask=torch.ones_like(x_0))
    with pytest.raises(ValueError, match=r"loss_mask must have shape \(6, 10\), got \(10,\)"):
        objective(model, x_0, loss_mask=torch.ones(10, dtype=torch.bool))
    with pytest.raises(ValueError, match="x_0 holds the mask"):
        objective(model, torch.full_like(x_0, 7))
