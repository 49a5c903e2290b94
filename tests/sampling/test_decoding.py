"""The samplers that unmask first what the network is sure of: their rules and options."""

import itertools
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.decoding_rule import Rule, accepted, certainty, decoding_distribution, posterior
from helpers.posterior_network import calls_of, each_method, seeded
from helpers.tiny_models import tiny
from helpers.toy_world import (
    SCHEDULES,
    L,
    ToyWorld,
    V,
    chi_square_p,
    data_distribution,
    state_number,
)
from helpers.toy_world import total_variation as tv
from sedd_fast.names import DECODING_METHODS
from sedd_fast.sampling import RowStreams, Step, acceptance, infill, sample
from sedd_fast.sampling.config import SamplerConfig

DATA = data_distribution()
WORLD, NOISE = ToyWorld(sf.Absorbing(V), DATA), SCHEDULES["absorbing"]
DRAWS = 20_000


RULES = [
    *(Rule(method) for method in ("confidence", "margin", "entropy")),
    *(Rule(method, steps=2) for method in DECODING_METHODS),
    Rule("confidence", temperature=0.6),
    Rule("entropy", temperature=0),
    Rule("margin", steps=2, block_length=2),
    Rule("confidence", block_length=1),
    *(Rule("threshold", threshold=bound) for bound in (0.2, 0.6)),
    *(Rule("entropy_bound", entropy_bound=bound) for bound in (0.0, 0.9, 1.8)),
    Rule("entropy_bound", steps=2, entropy_bound=1.2, block_length=2),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_distribution_is_that_of_the_rule(rule: Rule) -> None:
    expected, calls = decoding_distribution(WORLD, rule)
    seen: list[Step] = []
    tokens = sample(
        WORLD, WORLD.graph, NOISE, (DRAWS, L), generator=seeded(1), callback=seen.append,
        **rule.options,
    )  # fmt: skip
    if expected.max() == 1:
        assert bool((tokens == expected.nonzero()).all())
    else:
        assert chi_square_p(tokens, expected) > 1e-4
    assert (tv(expected, DATA) < 1e-12) == rule.is_exact
    made = calls_of(seen).double()
    assert abs(float(made.mean()) - calls) < 5 * float(made.std()) / DRAWS**0.5 + 1e-9


@pytest.mark.parametrize("rule", [Rule("confidence"), Rule("threshold", 2, threshold=0.5)], ids=str)
def test_the_distribution_around_a_prompt(rule: Rule) -> None:
    expected, _ = decoding_distribution(WORLD, rule, {1: 2})
    given, known = torch.full((DRAWS, L), 2), (torch.arange(L) == 1).expand(DRAWS, L)
    tokens = infill(
        WORLD, WORLD.graph, NOISE, given, known, generator=seeded(2), **rule.options
    )  # fmt: skip
    assert bool((tokens[:, 1] == 2).all())
    assert chi_square_p(tokens, expected) > 1e-4


def test_the_canvas_of_the_uniform_graph() -> None:
    """Each step pushes the exact distribution of (tokens, number of noised positions)."""
    world, noise, steps, bound = ToyWorld(sf.Uniform(V), DATA), SCHEDULES["uniform"], 3, 1.5
    rule = Rule("entropy_bound", entropy_bound=bound)
    low, high = noise.sigma(torch.tensor([1e-5, 1.0], dtype=torch.float64)).tolist()
    now: dict[tuple[tuple[int, ...], int], float] = {
        (x, L): V**-3 for x in itertools.product(range(V), repeat=L)
    }
    final, calls = torch.zeros(V, V, V, dtype=torch.float64), 0.0
    for i in range(steps):
        after: dict[tuple[tuple[int, ...], int], float] = defaultdict(float)
        for (x, noised), p in now.items():
            calls += p
            m = torch.tensor(noised / L, dtype=torch.float64)
            sigma = (-torch.log1p(-m)).clamp(low, high)[None]
            score = world(torch.tensor([x]), sigma)
            q = sf.posterior_from_score(score, sigma, torch.tensor([x]), world.graph)[0]
            sure = [certainty("entropy", q[j], 0) for j in range(L)]
            kept = accepted(rule, sure, L if i == steps - 1 else 1)
            free = [j for j in range(L) if j not in kept]
            for tokens in itertools.product(range(V), repeat=L):  # accepted, or noise
                chance = p * V ** -len(free)
                for j in kept:
                    chance *= float(q[j, tokens[j]])
                if free:
                    after[tokens, len(free)] += chance
                else:
                    final[tokens] += chance
        now = after
    assert not now
    seen: list[Step] = []
    tokens = sample(
        world, world.graph, noise, (DRAWS, L), steps, "entropy_bound", generator=seeded(4),
        entropy_bound=bound, callback=seen.append,
    )  # fmt: skip
    assert chi_square_p(tokens, final) > 1e-4
    made = calls_of(seen).double()
    assert abs(float(made.mean()) - calls) < 5 * float(made.std()) / DRAWS**0.5
    known = torch.zeros(500, L, dtype=torch.bool).index_fill(1, torch.tensor([0]), True)
    filled = infill(
        world, world.graph, noise, torch.full((500, L), 3), known, steps, "entropy_bound",
        generator=seeded(5), entropy_bound=bound,
    )  # fmt: skip
    assert bool((filled[:, 0] == 3).all())


@each_method
def test_blocks_are_unmasked_one_after_the_other(method: str) -> None:
    model, seen = tiny(), []
    given, known = torch.arange(12)[None] % 11, (torch.arange(12) % 7 == 1)[None]  # 1 and 8
    infill(
        model, model.graph, model.noise, given, known, 6, method, generator=seeded(1),
        block_length=4, callback=seen.append,
    )  # fmt: skip
    mask = model.graph.mask_index
    assert len(seen) <= 6
    for step in seen:
        block = (step.tokens[0] == mask).view(3, 4)  # the first masked position is 0
        partly = block.any(-1) & ~(block | known.view(3, 4)).all(-1)
        assert partly.sum() <= 1
        assert bool((block.any(-1).long().diff() >= 0).all())  # those before are done


@pytest.mark.parametrize(
    ("masks", "steps", "block_length", "expected"),
    [
        ([4, 4, 4], 6, 4, [2, 2, 2]),
        ([4, 4, 4], 5, 4, [1, 2, 2]),
        ([4, 0, 4], 2, 4, [1, 0, 1]),
        ([4, 1, 1], 3, 4, [1, 1, 1]),
        ([1, 1, 4], 4, 4, [1, 1, 2]),
        ([2, 3, 4], 90, 4, [20, 30, 40]),
    ],
)
def test_steps_are_shared_out(masks: list[int], steps: int, block_length: int, expected: Any):
    from sedd_fast.sampling.decoding import _share_out

    masked = torch.tensor([[i < n for n in masks for i in range(4)]])
    block = (torch.arange(12) // 4)[None]
    assert _share_out(steps, block, masked).tolist() == [expected]


@pytest.mark.parametrize(
    ("method", "steps"),
    [("confidence", steps) for steps in (1, 5, 12, 40, None)] + [("margin", 3), ("entropy", 5)],
)
def test_positions_are_spread_over_the_steps_as_llada_does(method: str, steps: int | None) -> None:
    model, seen = tiny(), []
    sample(model, model.graph, model.noise, (3, 12), steps, method, callback=seen.append)
    left = [12] + [int((s.tokens[0] == model.graph.mask_index).sum()) for s in seen]
    made = [a - b for a, b in itertools.pairwise(left)]
    number = 12 if steps is None else min(steps, 12)
    base, more = divmod(12, number)
    assert made == [base + (i < more) for i in range(number)]
    assert calls_of(seen).tolist() == [number] * 3
    assert [s.t for s in seen] == sorted((s.t for s in seen), reverse=True)
    assert seen[-1].t == 0


def test_a_threshold_of_nothing_takes_one_call_and_of_everything_one_a_position() -> None:
    model = tiny()
    for options, calls in [
        ({"method": "threshold", "threshold": 1e-9}, 1),
        ({"method": "threshold", "threshold": 1.0}, 12),
        ({"method": "entropy_bound", "entropy_bound": 1e9}, 1),
        ({"method": "entropy_bound", "entropy_bound": 0.0}, 12),
    ]:
        seen: list[Step] = []
        sample(
            model, model.graph, model.noise, (2, 12), steps=None, callback=seen.append, **options
        )
        assert calls_of(seen).tolist() == [calls] * 2


def test_an_end_of_text_ends_a_sequence() -> None:
    """The text up to it is the same, what follows is filled, and the calls are saved."""
    model, stop = tiny(), 5
    given = torch.zeros(40, 12, dtype=torch.int64)
    given[:, 0] = stop  # a known one ends nothing
    known = (torch.arange(12) < 2).expand(40, 12)

    def filled(stop_token: int | None, block_length: int | None) -> tuple[Tensor, Tensor]:
        seen: list[Step] = []
        tokens = infill(
            model, model.graph, model.noise, given, known, None, "confidence", callback=seen.append,
            generator=RowStreams.of_texts(1, range(40)), stop_token=stop_token,
            block_length=block_length,
        )  # fmt: skip
        return tokens, calls_of(seen)

    for block_length in (None, 3):
        whole, all_calls = filled(None, block_length)
        ended, calls = filled(stop, block_length)
        has_end = (whole[:, 2:] == stop).any(-1)
        assert has_end.any()
        assert not has_end.all()
        for row in range(40):
            text = whole[row].tolist()
            end = text.index(stop, 2) if has_end[row] else 12
            assert ended[row].tolist() == text[:end] + [stop] * (12 - end)
        assert bool((calls[~has_end] == all_calls[~has_end]).all())
        assert bool((calls <= all_calls).all())
        if block_length:  # else the last position before it may be the last of all
            assert bool((calls < all_calls).any())


def test_equal_certainties_are_taken_by_position() -> None:
    def flat(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.zeros(*x.shape, 8)

    for method in ("confidence", "margin", "entropy"):
        seen: list[Step] = []
        sample(flat, sf.Absorbing(7), NOISE, (2, 9), 3, method, callback=seen.append)
        for i, step in enumerate(seen):
            assert (step.tokens != 7).tolist() == [[j < 3 * (i + 1) for j in range(9)]] * 2


@pytest.mark.parametrize(
    ("method", "options", "certainty", "kept"),
    [
        ("threshold", {"threshold": 0.5}, [0.5, 0.4999, 0.25, 0.6], [0, 3]),  # ln p, in float32
        ("threshold", {"threshold": 1.0}, [1.0, 1.0, 0.999, 1.0], [0, 1, 3]),
        # the largest is not the last in the order of units
        ("entropy_bound", {"entropy_bound": 0.0}, [-3e-5, -3e-5, 0.0, 0.0], [0]),
        ("entropy_bound", {"entropy_bound": 0.0}, [-3e-5, 0.0, 0.0, 0.0], [0, 1, 2, 3]),
        ("entropy_bound", {"entropy_bound": 0.5}, [-0.3, -0.2, -0.9, -0.1], [0, 1, 3]),
        ("entropy_bound", {"entropy_bound": 0.6}, [-0.3, -0.2, -0.9, -0.1], [0, 1, 2, 3]),
    ],
)
def test_bounds_are_met(
    method: str, options: dict[str, float], certainty: list[float], kept: list[int]
) -> None:
    values = torch.tensor([certainty])
    values = (values.log() if method == "threshold" else values).double()
    config = SamplerConfig(method, None, **options)
    eligible, due = torch.ones(1, 4, dtype=torch.bool), torch.tensor([1])
    found = acceptance.accepted(values, eligible, due, config)
    assert found[0].nonzero().flatten().tolist() == kept


def test_rounding_moves_no_position() -> None:
    certainty = torch.tensor([[0.5, 0.5 + 1e-7, 0.5 - 1e-7, 0.9]], dtype=torch.float64)
    eligible, config = torch.ones(1, 4, dtype=torch.bool), SamplerConfig("confidence")
    kept = acceptance.accepted(certainty, eligible, torch.tensor([2]), config)
    assert kept.tolist() == [[True, False, False, True]]


def test_the_written_out_posterior_is_that_of_the_world() -> None:
    """Of the helper: p(x_0 | all masked) are the marginals of the data."""
    marginals = torch.stack([DATA.sum((1, 2)), DATA.sum((0, 2)), DATA.sum((0, 1))])
    torch.testing.assert_close(posterior(WORLD, (V, V, V)), marginals)
    assert state_number(torch.tensor([[1, 2, 3]]), V).tolist() == [27]
