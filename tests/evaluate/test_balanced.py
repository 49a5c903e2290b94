"""``times="balanced"``: masks spread evenly over positions; value, error, variance."""

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

import sedd_fast as sf
from helpers.documents import documents, padded
from helpers.tiny_models import tiny
from helpers.toy_world import ToyWorld, data_distribution, states
from sedd_fast.evaluate import likelihood_bound
from sedd_fast.evaluate.balanced import Masks, group_sizes

V, L = 5, 8
GRAPH, NOISE = sf.Absorbing(V), sf.LogLinearNoise()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Table:
    """Cross entropies c_i(A) of one text, an arbitrary function of the masked positions A.

    Each is large or small by its position, rises with the number of masks, and depends on which
    others are masked, as those of language do.
    """

    def __init__(self, length: int = L) -> None:
        self.length = length
        masked = (torch.arange(2**length)[:, None] >> torch.arange(length)) % 2 == 1
        own = 4 * torch.rand(length, generator=seeded(0), dtype=torch.float64) ** 2
        pair = torch.rand(length, length, generator=seeded(1), dtype=torch.float64)
        nats = own * (0.3 + masked.double().mean(1, keepdim=True)) + masked.double() @ pair / 4
        self.nats = nats * masked  # (2^L, L)
        n, total = masked.sum(1), self.nats.sum(1)
        #: The integral: the sum over n of 1 / n times the mean over all A of n positions.
        self.value = sum(float(total[n == k].mean()) / k for k in range(1, length + 1))

    def at(self, masked: Tensor) -> Tensor:
        """(R, L) bool -> (R, L)."""
        return self.nats[(masked.long() << torch.arange(self.length)).sum(-1)]

    def __call__(self, x_t: Tensor) -> Tensor:
        """Log posterior of the text of zeros: (R, L) -> (R, L, V)."""
        own = -self.at(x_t == V)
        rest = torch.log(-torch.expm1(own.clamp(max=-1e-9)) / (V - 1))
        return torch.cat([own[..., None], rest[..., None].expand(*x_t.shape, V - 1)], -1)

    def bounds(self, repeats: int, samples: int, **settings: Any) -> sf.evaluate.LikelihoodBound:
        x_0 = torch.zeros(repeats, self.length, dtype=torch.long)
        model = sf.PosteriorModel(self, GRAPH, takes_sigma=False)
        settings = {"mode": "normalised", "generator": seeded(7), "batch_size": 4096} | settings
        return likelihood_bound(model, x_0, GRAPH, NOISE, samples, **settings)


@pytest.mark.parametrize("mode", ["exact", "normalised"])
@pytest.mark.parametrize("samples", [2, 3, 7, 11, 32, 130])
def test_the_value_is_the_integral(mode: Any, samples: int) -> None:
    repeats, table = max(40, 2000 // samples), Table()
    bound = table.bounds(repeats, samples, mode=mode)
    error = float(bound.nats.std()) / math.sqrt(repeats)
    assert float(bound.nats.mean()) == pytest.approx(table.value, abs=3.5 * error)
    assert error < 0.03 * table.value
    assert bound.times == "balanced"


@pytest.mark.parametrize("mode", ["exact", "normalised"])
def test_the_bound_of_exact_scores_is_the_likelihood(mode: Any) -> None:
    graph, repeats = sf.Absorbing(4), 20
    world = ToyWorld(graph, data_distribution())
    x_0 = states(4)[::7].repeat(repeats, 1)
    bound = likelihood_bound(world, x_0, graph, NOISE, 13, mode, seeded(5), 4096)
    nats, truth = bound.nats.view(repeats, -1), -world.data.flatten().log()[::7]
    error = nats.std(0) / math.sqrt(repeats)
    assert ((nats.mean(0) - truth).abs() < 4 * error + 2e-3).all()
    assert (error < 0.05 * truth).all()


def test_the_value_given_a_prompt_is_the_integral() -> None:
    """Three of eight tokens are given: they are never masked."""
    table, repeats = Table(), 200
    loss_mask = torch.tensor([1, 0, 1, 1, 0, 1, 0, 1], dtype=torch.bool)
    bound = table.bounds(repeats, 16, loss_mask=loss_mask.expand(repeats, L))
    masked = (torch.arange(2**L)[:, None] >> torch.arange(L)) % 2 == 1
    masked = masked[~masked[:, ~loss_mask].any(1)]
    n, total = masked.sum(1), table.at(masked).sum(1)
    value = sum(float(total[n == k].mean()) / k for k in range(1, 6))
    error = float(bound.nats.std()) / math.sqrt(repeats)
    assert float(bound.nats.mean()) == pytest.approx(value, abs=3.5 * error)
    assert bound.total_tokens == 5 * repeats


@pytest.mark.parametrize("samples", [4, 8, 32])
def test_the_error_is_that_of_the_groups_and_covers(samples: int) -> None:
    table = Table()
    bound = table.bounds(400, samples)
    covered = ((bound.nats - table.value).abs() <= 1.96 * bound.stderr).double().mean()
    assert 0.9 < covered < 0.98
    assert bound.degrees is not None
    assert bound.degrees.unique().tolist() == [len(group_sizes(samples)) - 1]


def llada(table: Table, rows: int, repeats: int) -> Tensor:
    """Estimates as LLaDA's ``get_log_likelihood`` makes them, of one batch: (repeats,)."""
    length, generator = table.length, seeded(3)
    k = torch.randint(1, length + 1, (repeats, 1), generator=generator).double()
    n = (k + torch.arange(rows) * length / rows).round().long()
    n = ((n - 1) % length + 1)[..., None]  # (repeats, rows, 1)
    rank = torch.rand(repeats, rows, length, generator=generator).argsort(-1).argsort(-1)
    return (table.at(rank < n) * length / n).sum(-1).mean(1)


def test_the_variance_is_far_below_that_of_independent_masks() -> None:
    table = Table()
    independent = float(llada(table, 32, 1000).var())
    balanced, stratified = (
        float(table.bounds(300, 32, times=times).nats.var()) for times in ("balanced", "stratified")
    )
    assert independent / balanced > 4  # 6.2, +- 0.6
    assert stratified / balanced > 4  # 6.5, +- 0.8


def test_masks_of_a_group_are_balanced_at_every_number() -> None:
    evaluated = torch.ones(20, dtype=torch.bool)
    evaluated[[3, 17]] = False
    u = torch.rand(1, 33, 21, generator=seeded(5), dtype=torch.float64)
    masks = Masks.draw(evaluated[None], u)
    assert group_sizes(33) == [9, 8, 8, 8]
    for masked in masks.masked[0].split(group_sizes(33)):
        assert not masked[:, ~evaluated].any()
        numbers, counts = masked.sum(1), masked[:, evaluated].cumsum(0)
        assert (numbers.diff() >= 0).all()
        assert (counts.amax(1) - counts.amin(1) <= 1).all()
        assert numbers[0] <= 2  # the small numbers are not left out
    assert ((masks.m > 0) & (masks.m < 1)).all()


@pytest.mark.parametrize("samples", [5, 8, 40])
def test_every_set_of_positions_is_as_likely(samples: int) -> None:
    """Of the masks of one sample, whichever it is."""
    draws, length = 4000, 4
    u = torch.rand(draws, samples, 1 + length, generator=seeded(6), dtype=torch.float64)
    masked = Masks.draw(torch.ones(draws, length, dtype=torch.bool), u).masked
    code = (masked.long() << torch.arange(length)).sum(-1)  # (draws, samples)
    for sample in range(samples):
        number = masked[:, sample].sum(1)
        for n in number.unique().tolist():
            counts = torch.bincount(code[number == n, sample], minlength=2**length)
            counts = counts[[i for i in range(2**length) if i.bit_count() == n]].double()
            statistic = float(((counts - counts.mean()).square() / counts.mean()).sum())
            if len(counts) > 1 and counts.mean() > 5:
                assert stats.chi2.sf(statistic, len(counts) - 1) > 1e-5


@pytest.mark.parametrize("mode", ["exact", "normalised"])
def test_neither_batch_size_nor_padding_changes_the_masks(mode: Any) -> None:
    model, (tokens, mask, _) = tiny(), padded(documents(11))
    loss_mask = torch.arange(tokens.shape[1]).expand(tokens.shape) >= 2
    found = [
        likelihood_bound(
            model, rows, model.graph, NOISE, 8, mode, seeded(1), size, loss_mask=keep,
            attention_mask=attention,
        )
        for size in (3, 500)
        for rows, keep, attention in (
            (tokens, loss_mask, mask),
            tuple(torch.nn.functional.pad(t, (0, 4)) for t in (tokens, loss_mask, mask)),
        )
    ]  # fmt: skip
    for bound in found[1:]:
        torch.testing.assert_close(bound.nats, found[0].nats, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(bound.stderr, found[0].stderr, rtol=1e-4, atol=1e-4)


def test_an_impossible_token_is_infinite() -> None:
    def model(x_t: Tensor) -> Tensor:
        logits = torch.zeros(*x_t.shape, V)
        logits[:, 0, 0] = -math.inf
        return logits

    bound = likelihood_bound(
        sf.PosteriorModel(model, GRAPH, takes_sigma=False), torch.zeros(2, 3, dtype=torch.long),
        GRAPH, NOISE, 16, "normalised", seeded(0),
    )  # fmt: skip
    assert bound.nats.tolist() == [math.inf] * 2


@pytest.mark.parametrize(("graph", "mode"), [("absorbing", "paper"), ("uniform", "exact")])
def test_integrals_over_the_noise_level_are_stratified(graph: str, mode: Any) -> None:
    model = tiny(graph)
    x_0 = torch.randint(11, (3, 12), generator=seeded(2))
    balanced, stratified = (
        likelihood_bound(model, x_0, model.graph, NOISE, 6, mode, seeded(1), times=times)
        for times in ("balanced", "stratified")
    )
    assert torch.equal(balanced.nats, stratified.nats)
    assert balanced.times == "stratified"
