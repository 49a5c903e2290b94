"""Objectives of other papers: their dense formulas, relations and minima."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.toy_world import GRAPHS as TOYS
from helpers.toy_world import SCHEDULES, ToyWorld, data_distribution, states
from helpers.toy_world import V as TOY_SIZE

V, B, L = 7, 6, 10
GRAPHS = (sf.Absorbing(V), sf.Uniform(V))
NOISE = sf.LogLinearNoise()
EVERY = {
    "cross entropy": lambda graph, **of: sf.MaskedCrossEntropy(graph, NOISE, **of),
    "lambda": lambda graph, **of: sf.MaskedCrossEntropy(graph, NOISE, over="lambda", **of),
    "d3pm": lambda graph, **of: sf.D3PMLoss(graph, NOISE, steps=8, **of),
    "concrete": lambda graph, **of: sf.ConcreteScoreMatching(graph, NOISE, **of),
}
CASES = [
    pytest.param(graph, name, id=f"{name}-{graph.kind}")
    for name in EVERY
    for graph in GRAPHS
    if graph.mask_index is not None or name in ("d3pm", "concrete")
]
every_objective = pytest.mark.parametrize(("graph", "name"), CASES)
by_graph = pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.kind)


class Posterior(torch.nn.Module):
    """Logits of x_0 from a table indexed by token and position."""

    def __init__(self, graph: sf.Graph, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        table = torch.randn(L, graph.dim, V, generator=generator, dtype=torch.float64)
        self.table = torch.nn.Parameter(table.to(dtype))

    def forward(self, indices: Tensor, sigma: Tensor) -> Tensor:
        place = torch.arange(indices.shape[1])
        return self.table[place, indices] * (1 + sigma[:, None, None].to(self.table.dtype).sqrt())


def network(graph: sf.Graph, dtype: torch.dtype = torch.float64) -> sf.PosteriorModel:
    return sf.PosteriorModel(Posterior(graph, dtype), graph)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(graph: sf.Graph) -> tuple[Tensor, Tensor, Tensor]:
    """(t, x_t, x_0)."""
    t = torch.tensor([0.05, 0.25, 0.3, 0.6, 0.875, 1.0], dtype=torch.float64)
    x_0 = torch.randint(V, (B, L), generator=seeded(1))
    return t, sf.sample_transition(x_0, NOISE.sigma(t), graph, seeded(2)), x_0


def transitions(graph: sf.Graph, sigma: Tensor) -> Tensor:
    """p(y | x), (B, dim, V), by matrix exponentials."""
    return torch.matrix_exp(sigma[:, None, None] * graph.rate_matrix())[..., :V]


def test_cross_entropy_by_its_formula():
    graph = GRAPHS[0]
    t, x_t, x_0 = batch(graph)
    logits = Posterior(graph)(x_t, NOISE.sigma(t))
    nats = -logits.log_softmax(-1).gather(-1, x_0[..., None]).squeeze(-1)
    expected = (nats * (x_t == V)).sum(-1)
    objective = sf.MaskedCrossEntropy(graph, NOISE)
    torch.testing.assert_close(objective(network(graph), x_0, t=t, x_t=x_t), expected / t)
    rates = sf.GeometricNoise(1e-3, 4.0)
    sigma, rate = rates(t)
    logits = Posterior(graph)(x_t, sigma)
    nats = -logits.log_softmax(-1).gather(-1, x_0[..., None]).squeeze(-1)
    expected = rate / torch.expm1(sigma) * (nats * (x_t == V)).sum(-1)
    other = sf.MaskedCrossEntropy(graph, rates)(network(graph), x_0, t=t, x_t=x_t)
    torch.testing.assert_close(other, expected)


def test_lambda_form_by_its_formula():
    graph = GRAPHS[0]
    t, x_t, x_0 = batch(graph)
    objective = sf.MaskedCrossEntropy(graph, NOISE, over="lambda")
    seen: list[Tensor] = []

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(sigma)
        return network(graph)(x, sigma)

    loss = objective(model, x_0, t=t, x_t=x_t)
    model_sigma = (-torch.log1p(-t)).clamp(max=float(NOISE.sigma(torch.ones(()).double())))
    torch.testing.assert_close(seen[0], model_sigma)
    logits = Posterior(graph)(x_t, model_sigma)
    nats = -logits.log_softmax(-1).gather(-1, x_0[..., None]).squeeze(-1)
    torch.testing.assert_close(loss, (nats * (x_t == V)).sum(-1) / t)


def test_the_lambda_form_masks_a_share_lambda():
    graph, seen = GRAPHS[0], []

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append((x == V).double().mean(-1))
        return torch.zeros(*x.shape, V + 1)

    objective = sf.MaskedCrossEntropy(graph, NOISE, over="lambda")
    share = torch.tensor([0.1, 0.5, 1.0])
    objective(model, torch.zeros(3, 4000, dtype=torch.int64), t=share, generator=seeded())
    torch.testing.assert_close(seen[0], share.double(), rtol=0, atol=0.04)
    assert seen[0][2] == 1


def dense_divergence(
    graph: sf.Graph, p: Tensor, x_t: Tensor, x_0: Tensor, sigma: Tensor, before: Tensor
) -> Tensor:
    """KL(q(x_s | x_t, x_0), sum over x_0 of q p), (B, L), from matrices."""
    whole, late = transitions(graph, sigma), transitions(graph, before)  # (B, dim, V)
    step = torch.matrix_exp((sigma - before)[:, None, None] * graph.rate_matrix())
    row = torch.arange(B)[:, None]
    joint = step[row, x_t][..., None] * late[:, None]  # p(x_t | x_s) p(x_s | x_0): (B, L, dim, V)
    q = joint / whole[row, x_t][:, :, None].clamp(min=1e-300)
    mixed = (q * p[:, :, None]).sum(-1)  # (B, L, dim)
    true = q.gather(-1, x_0[:, :, None, None].expand(-1, -1, graph.dim, -1)).squeeze(-1)
    terms = torch.where(true > 0, true * (true.log() - mixed.log()), 0).sum(-1)
    read = torch.ones_like(x_t, dtype=torch.bool) if graph.mask_index is None else x_t == V
    return torch.where(read, terms, 0)


@by_graph
def test_d3pm_by_its_formula(graph: sf.Graph):
    t, x_t, x_0 = batch(graph)
    steps = 8
    k = torch.ceil(t * steps)
    sigma = NOISE.sigma(k / steps)
    before = NOISE.sigma((k - 1) / steps)
    assert before[0] == 0
    p = Posterior(graph)(x_t, sigma).softmax(-1)
    expected = steps * dense_divergence(graph, p, x_t, x_0, sigma, before).sum(-1)
    objective = sf.D3PMLoss(graph, NOISE, steps=steps)
    torch.testing.assert_close(objective(network(graph), x_0, t=t, x_t=x_t), expected)
    single = objective(network(graph, torch.float32), x_0, t=t.float(), x_t=x_t)
    torch.testing.assert_close(single, expected.float(), rtol=1e-4, atol=1e-4)
    # A schedule with noise at time 0: the last step draws x_0.
    noise = sf.GeometricNoise(1e-3, 4.0)
    sigma, before = noise.sigma(k / steps), torch.where(k == 1, 0, noise.sigma((k - 1) / steps))
    p = Posterior(graph)(x_t, sigma).softmax(-1)
    expected = steps * dense_divergence(graph, p, x_t, x_0, sigma, before).sum(-1)
    loss = sf.D3PMLoss(graph, noise, steps=steps)(network(graph), x_0, t=t, x_t=x_t)
    torch.testing.assert_close(loss, expected)


@by_graph
def test_concrete_score_matching_by_its_formula(graph: sf.Graph):
    t, x_t, x_0 = batch(graph)
    sigma, rate = NOISE(t)
    score = network(graph)(x_t, sigma).exp()
    at = transitions(graph, sigma)[torch.arange(B)[:, None], :, x_0]  # p(y | x_0), (B, L, dim)
    ratio = at / at.gather(-1, x_t[..., None])
    jumps = graph.rate_matrix()[x_t].scatter(-1, x_t[..., None], 0.0)  # 0 where not masked
    expected = rate / 2 * (jumps * (score - ratio).square()).sum((-1, -2))
    loss = sf.ConcreteScoreMatching(graph, NOISE)(network(graph), x_0, t=t, x_t=x_t)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


def test_cross_entropy_is_score_entropy_minus_the_normalisation_term():
    graph = GRAPHS[0]
    t, x_t, x_0 = batch(graph)
    log_score = torch.randn(B, L, V + 1, generator=seeded(), dtype=torch.float64)

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return log_score

    sigma, rate = NOISE(t)
    z = torch.expm1(sigma)[:, None] * log_score[..., :V].exp().sum(-1)
    difference = (rate / torch.expm1(sigma))[:, None] * (z - 1 - z.log()) * (x_t == V)
    entropy = sf.ScoreEntropyLoss(graph, NOISE)(model, x_0, t=t, x_t=x_t)
    cross = sf.MaskedCrossEntropy(graph, NOISE)(model, x_0, t=t, x_t=x_t)
    torch.testing.assert_close(cross, entropy - difference.sum(-1))
    # for a posterior the difference is zero
    of = [kind(graph, NOISE) for kind in (sf.ScoreEntropyLoss, sf.MaskedCrossEntropy)]
    torch.testing.assert_close(*(loss(network(graph), x_0, t=t, x_t=x_t) for loss in of))


@by_graph
def test_d3pm_converges_to_score_entropy_with_more_steps(graph: sf.Graph):
    t, x_t, x_0 = batch(graph)
    few = (x_t != x_0).any(-1) & (t > 0.2) & (t < 1)  # times k / 4000, and losses that are not 0
    t, x_t, x_0, noise = t[few], x_t[few], x_0[few], sf.GeometricNoise(1e-3, 4.0)
    limit = sf.ScoreEntropyLoss(graph, noise)(network(graph), x_0, t=t, x_t=x_t)
    gaps = [
        (sf.D3PMLoss(graph, noise, steps=n)(network(graph), x_0, t=t, x_t=x_t) - limit).abs()
        for n in (4000, 16000)
    ]
    assert bool((gaps[1] < 1e-3 * limit).all())
    fourth = torch.full((int(few.sum()),), 4.0, dtype=torch.float64)
    torch.testing.assert_close(gaps[0] / gaps[1], fourth, rtol=0.05, atol=0)


def test_d3pm_of_the_log_linear_schedule_is_cross_entropy_at_any_number_of_steps():
    t, x_t, x_0 = batch(GRAPHS[0])
    t = torch.ceil(4 * t) / 4
    cross = sf.MaskedCrossEntropy(GRAPHS[0], NOISE)(network(GRAPHS[0]), x_0, t=t, x_t=x_t)
    chain = sf.D3PMLoss(GRAPHS[0], NOISE, steps=4)(network(GRAPHS[0]), x_0, t=t, x_t=x_t)
    torch.testing.assert_close(chain, cross)


class Toy:
    """Every (x_0, x_t) of the toy world at one time, with its probability."""

    def __init__(self, graph: sf.Graph, t: float) -> None:
        self.graph, self.world = graph, ToyWorld(graph, data_distribution())
        self.noise = SCHEDULES[graph.kind]
        clean, noised = states(TOY_SIZE), states(graph.dim)
        self.x_0 = clean.repeat_interleave(len(noised), 0)
        self.x_t = noised.repeat(len(clean), 1)
        self.t = torch.full((len(self.x_0),), t, dtype=torch.float64)
        step = graph.transition_matrix(float(self.noise.sigma(self.t[:1])))
        reach = step[self.x_t, self.x_0].prod(-1)
        self.weight = self.world.data.flatten().repeat_interleave(len(noised)) * reach
        keep = self.weight > 0
        self.x_0, self.x_t, self.t = self.x_0[keep], self.x_t[keep], self.t[keep]
        self.weight = self.weight[keep]

    def expected(self, objective: Callable[..., Tensor], shift: Tensor) -> Tensor:
        """The mean loss with log posteriors moved by ``shift`` (dim^3, 3, V) of each x_t."""
        stride = torch.tensor([self.graph.dim**2, self.graph.dim, 1])

        def logits(x: Tensor, sigma: Tensor) -> Tensor:
            score = self.world(x, sigma).nan_to_num(0.0)
            p = sf.posterior_from_score(score, sigma, x, self.graph)
            return p.clamp(min=1e-300).log() + shift[(x * stride).sum(-1)]

        model = sf.PosteriorModel(logits, self.graph)
        return self.weight @ objective(model, self.x_0, t=self.t, x_t=self.x_t)


@pytest.mark.parametrize(
    ("graph", "name"),
    [
        pytest.param(graph, name, id=f"{name}-{graph.kind}")
        for graph in TOYS
        for name in ("score entropy", "d3pm", "concrete", "cross entropy")
        if graph.mask_index is not None or name != "cross entropy"
    ],
)
def test_the_true_posterior_minimises(graph: sf.Graph, name: str):
    noise = SCHEDULES[graph.kind]
    objective = {
        "score entropy": sf.ScoreEntropyLoss,
        "cross entropy": sf.MaskedCrossEntropy,
        "d3pm": lambda *of: sf.D3PMLoss(*of, steps=4),
        "concrete": sf.ConcreteScoreMatching,
    }[name](graph, noise)
    for t in (0.25, 0.75):  # 0.25 is D3PM's last step, to x_0
        toy = Toy(graph, t)
        shape = (graph.dim**3, 3, TOY_SIZE)
        shift = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        least = toy.expected(objective, shift)
        (gradient,) = torch.autograd.grad(least, shift)
        least = least.detach()
        moves = torch.randn(4, *shape, generator=seeded(), dtype=torch.float64)
        for move in moves:
            more = toy.expected(objective, 0.3 * move)
            assert more > least
            # the gradient vanishes at the posterior, but not at 0.3 from it
            slope = float((gradient * move).sum().abs().detach())
            assert slope < 1e-6 * float(more - least)


@pytest.mark.parametrize("graph", TOYS, ids=lambda graph: graph.kind)
def test_d3pm_of_the_true_posterior_tends_to_the_entropy(graph: sf.Graph):
    """Summed over its steps the bound lies above the entropy of the text, by O(1 / T)."""
    shift = torch.zeros(graph.dim**3, 3, TOY_SIZE, dtype=torch.float64)
    distribution = data_distribution()
    entropy = -float((distribution * distribution.log()).sum())
    # What the chain starts from is not the text's distribution at t = 1, and the bound leaves it
    # out.
    noise = SCHEDULES[graph.kind]
    gaps = []
    for steps in (8, 32):
        objective = sf.D3PMLoss(graph, noise, steps=steps)
        bound = sum(
            float(Toy(graph, (k + 1) / steps).expected(objective, shift)) / steps
            for k in range(steps)
        )
        gaps.append(bound - entropy)
    assert 0 < gaps[1] < gaps[0] < 2
    assert 2.5 < gaps[0] / gaps[1] < 6


@every_objective
def test_missing_arguments_are_drawn_from_the_generator(graph: sf.Graph, name: str):
    model, x_0 = network(graph), batch(graph)[2]
    objective = EVERY[name](graph)
    first, again, other = (objective(model, x_0, generator=seeded(s)) for s in (0, 0, 1))
    assert first.shape == (B,)
    assert bool(first.isfinite().all())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@every_objective
def test_reductions(graph: sf.Graph, name: str):
    model, x_0 = network(graph), batch(graph)[2]
    each, mean, total = (
        EVERY[name](graph, reduction=r)(model, x_0, generator=seeded())
        for r in ("none", "mean", "sum")
    )
    torch.testing.assert_close(mean, each.mean())
    torch.testing.assert_close(total, each.sum())


@every_objective
def test_positions_outside_the_mask_have_no_noise_and_no_loss(graph: sf.Graph, name: str):
    x_0, t = batch(graph)[2], torch.full((B,), 0.9, dtype=torch.float64)
    mask = torch.arange(L).expand(B, L) >= 4
    calls: list[Tensor] = []
    model = network(graph)
    model.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0]))
    objective = EVERY[name](graph)
    loss = objective(model, x_0, loss_mask=mask, t=t, generator=seeded())
    x_t = calls[0]
    assert torch.equal(x_t[:, :4], x_0[:, :4])
    assert bool((x_t[:, 4:] != x_0[:, 4:]).any())
    loss.sum().backward()
    assert not model.network.table.grad[:4].any()
    assert model.network.table.grad[4:].any()

    def tail(x: Tensor, sigma: Tensor) -> Tensor:
        padded = torch.cat((x_0[:, :4], x), 1)
        return network(graph)(padded, sigma)[:, 4:]

    alone = objective(tail, x_0[:, 4:], t=t, x_t=x_t[:, 4:])
    torch.testing.assert_close(loss, alone)
    assert not objective(model, x_0, loss_mask=torch.zeros_like(mask), t=t).any()


@every_objective
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_half_precision_networks(graph: sf.Graph, name: str, dtype: torch.dtype):
    """Gradients near those in float64."""
    t, x_t, x_0 = batch(graph)
    gradients = []
    for kind in (torch.float64, dtype):
        model = network(graph, kind)
        EVERY[name](graph, reduction="sum")(model, x_0, t=t, x_t=x_t).backward()
        gradients.append(model.network.table.grad.double())
    error = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    assert float(error) < (1e-4 if dtype == torch.float32 else 0.05)


@every_objective
def test_backends_agree(graph: sf.Graph, name: str):
    t, x_t, x_0 = batch(graph)
    losses = []
    for backend in ("reference", "cpp"):
        if reason := sf.backends.registry.unavailable(backend):
            pytest.skip(reason)
        with sf.use_backend(backend):
            losses.append(EVERY[name](graph)(network(graph), x_0, t=t, x_t=x_t))
    torch.testing.assert_close(*losses)


def test_every_step_of_the_chain_is_drawn():
    seen: list[Tensor] = []

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(sigma)
        return torch.zeros(*x.shape, V + 1)

    objective = sf.D3PMLoss(GRAPHS[0], NOISE, steps=5)
    objective(model, torch.zeros(50, 2, dtype=torch.int64), generator=seeded())
    grid = NOISE.sigma(torch.arange(1, 6).double() / 5).float()
    counts = [(seen[0] - level).abs().lt(1e-5).sum().item() for level in grid]
    assert counts == [10] * 5
    objective(model, torch.zeros(5, 2, dtype=torch.int64), t=torch.arange(1, 6) / 5)
    torch.testing.assert_close(seen[1], grid)  # float32 times still belong to their step


def test_bad_settings():
    with pytest.raises(ValueError, match=r"MaskedCrossEntropy is for the absorbing graph, got Uni"):
        sf.MaskedCrossEntropy(GRAPHS[1], NOISE)
    with pytest.raises(ValueError, match=r"over must be one of 't', 'lambda', got 'k'"):
        sf.MaskedCrossEntropy(GRAPHS[0], NOISE, over="k")
    with pytest.raises(ValueError, match=r"steps must be at least 1, got 0"):
        sf.D3PMLoss(GRAPHS[0], NOISE, steps=0)
    with pytest.raises(ValueError, match=r"reduction must be one of .*'mean', got 'avg'"):
        sf.ConcreteScoreMatching(GRAPHS[0], NOISE, "avg")
    model, x_0 = network(GRAPHS[0]), torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(TypeError, match="loss_mask must be bool"):
        sf.MaskedCrossEntropy(GRAPHS[0], NOISE)(model, x_0, loss_mask=torch.ones(2, 3))
