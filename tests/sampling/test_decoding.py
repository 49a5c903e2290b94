"""The samplers that unmask first what the network is sure of: their rules, options and limits."""

import itertools
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.decoding_rule import Rule, accepted, certainty, decoding_distribution, posterior
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
from sedd_fast.models.posterior_sedd import PosteriorSEDD
from sedd_fast.names import DECODING_METHODS
from sedd_fast.sampling import RowStreams, Step, acceptance, infill, sample
from sedd_fast.sampling.config import SamplerConfig

DATA = data_distribution()
WORLD, NOISE = ToyWorld(sf.Absorbing(V), DATA), SCHEDULES["absorbing"]
DRAWS = 20_000
each_method = pytest.mark.parametrize("method", DECODING_METHODS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def calls_of(seen: list[Step]) -> Tensor:
    return seen[-1].network_calls


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


def posterior_network(*, fused: bool, softcap: float | None = None, **settings: Any) -> Any:
    """A tiny transformer of p(x_0 | x_t), which owns its head or returns logits."""
    body = tiny(**settings)

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = body, torch.nn.Linear(16, body.graph.dim)
            torch.nn.init.normal_(self.head.weight, std=0.7, generator=seeded(7))

        def hidden(self, x: Tensor) -> Tensor:
            return self.body.features(x, torch.ones(len(x)))

        def forward(self, x: Tensor) -> Tensor:
            f = self.head(self.hidden(x))
            return f if softcap is None else softcap * torch.tanh(f / softcap)

    network = Network()
    exposed: dict[str, Any] = {
        "hidden": lambda network, x: network.hidden(x), "head": network.head, "softcap": softcap,
    }  # fmt: skip
    return sf.PosteriorModel(network, body.graph, False, **(exposed if fused else {})).eval()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("confidence", {}),
        ("confidence", {"temperature": 0}),
        ("margin", {"temperature": 0}),
        ("margin", {"temperature": 0.7, "top_p": 0.8}),
        ("entropy", {}),
        ("entropy", {"temperature": 0}),
        ("threshold", {"temperature": 0.7, "top_p": 0.8}),
        ("entropy_bound", {"temperature": 0.7}),
    ],
)
def test_a_head_draws_as_its_logits_do(method: str, options: dict[str, Any]) -> None:
    def drawn(model: Any) -> Tensor:
        return sample(model, model.graph, NOISE, (4, 12), 5, method, generator=seeded(1), **options)

    expected = drawn(posterior_network(fused=False))
    assert torch.equal(drawn(posterior_network(fused=True)), expected)
    model = posterior_network(fused=False)
    assert torch.equal(drawn(Plain(model)), expected)  # from log scores
    kept_mask = posterior_network(fused=True)
    kept_mask.zero_masking = False  # the mask is never drawn, whatever its logit
    assert torch.equal(drawn(kept_mask), expected)


class Plain:
    """A network as a function of two tensors: no request reaches it."""

    def __init__(self, model: Any) -> None:
        self.model, self.graph = model, model.graph

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.model(x, sigma)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_the_canvas_is_drawn_from_a_head_as_from_logits(softcap: float | None) -> None:
    def drawn(fused: bool) -> Tensor:
        model = posterior_network(fused=fused, softcap=softcap, graph="uniform")
        return sample(
            model, model.graph, NOISE, (4, 12), 6, "entropy_bound", generator=seeded(2),
            entropy_bound=4.0,
        )  # fmt: skip

    assert torch.equal(drawn(True), drawn(False))


def test_posterior_sedd_answers_for_both_graphs() -> None:
    for graph in ("absorbing", "uniform"):
        model = PosteriorSEDD(tiny(graph).config).eval()
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.3, generator=seeded(3))
        drawn = [
            sample(
                network, model.graph, model.noise, (3, 12), 4, "entropy_bound",
                generator=seeded(3), entropy_bound=3.0,
            )
            for network in (model, Plain(model))
        ]  # fmt: skip
        assert torch.equal(*drawn)


PROMPT = torch.arange(12) < 4


@each_method
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_guidance_mixes_the_logits_with_and_without_the_prompt(
    method: str, softcap: float | None
) -> None:
    """At temperature 0 and one position a step, against the rule on logits, written out."""
    weight, given = 1.5, torch.arange(12)[None] % 11
    logits_of = posterior_network(fused=False, softcap=softcap)
    mask = logits_of.graph.mask_index
    own = {"threshold": {"threshold": 0.999}, "entropy_bound": {"entropy_bound": 0.0}}
    rule = Rule(method, temperature=0, **own.get(method, {}))
    x = torch.where(PROMPT, given, mask)
    while bool((x == mask).any()):
        with torch.no_grad():
            with_prompt = logits_of.network(x)[0, :, :mask].double()
            without = logits_of.network(torch.where(PROMPT, mask, x))[0, :, :mask].double()
        p = torch.softmax((1 + weight) * with_prompt - weight * without, -1)
        where = (x[0] == mask).nonzero().flatten().tolist()
        tokens = p.argmax(-1)
        sure = [certainty(method, p[i], int(tokens[i])) for i in where]
        for k in accepted(rule, sure, 1):
            x[0, where[k]] = tokens[where[k]]
    for fused in (True, False):
        model, seen = posterior_network(fused=fused, softcap=softcap), []
        filled = infill(
            model, model.graph, NOISE, given, PROMPT[None], guidance=weight, callback=seen.append,
            **rule.options,
        )  # fmt: skip
        assert torch.equal(filled, x)
        assert int(calls_of(seen)) == 2 * len(seen)


def test_guidance_away_from_another_prompt() -> None:
    model, given = posterior_network(fused=True), torch.arange(24).view(2, 12) % 11
    known = PROMPT.expand(2, 12)

    def filled(**options: Any) -> Tensor:
        return infill(
            model, model.graph, NOISE, given, known, None, "confidence", temperature=0, **options
        )

    masks = torch.full_like(given, model.graph.mask_index)
    assert torch.equal(filled(guidance=2.0), filled(guidance=2.0, unconditional=masks))
    # The same prompt taken away leaves p as it is.
    assert torch.equal(filled(guidance=2.0, unconditional=given), filled())
    assert not torch.equal(filled(guidance=2.0), filled())


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


def test_padding_ends_no_sequence_and_has_no_share() -> None:
    """Padding on the left is filled with a token, 0, which may be the end-of-text."""

    def network(x: Tensor, sigma: Tensor, attention_mask: Tensor) -> Tensor:
        return torch.zeros(*x.shape, 6).index_fill(-1, torch.tensor(0), -torch.inf)

    tokens, mask = torch.full((2, 8), 3), torch.tensor([[0, 0] + [1] * 6, [0] * 8])
    seen: list[Step] = []
    filled = infill(
        network, sf.Absorbing(5), NOISE, tokens, torch.zeros(2, 8).bool(), None, "confidence",
        attention_mask=mask, stop_token=0, callback=seen.append,
    )  # fmt: skip
    assert bool((filled[0, 2:] > 0).all())
    assert torch.equal(filled[mask == 0], tokens[mask == 0])
    assert 0 < seen[0].t < 1
    assert calls_of(seen).tolist() == [6, 0]


@pytest.mark.parametrize("method", ["confidence", "entropy_bound"])
@pytest.mark.parametrize("states", [3, 5, 7, 9])
@pytest.mark.parametrize("posterior", [True, False])
def test_a_network_of_another_size_is_refused(method: str, states: int, posterior: bool) -> None:
    def network(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.zeros(*x.shape, states)

    model = sf.PosteriorModel(network, sf.Absorbing(5)) if posterior else network
    if posterior and states == 5:  # without a column for the mask
        sample(model, sf.Absorbing(5), NOISE, (2, 3), 2, method)
        return
    with pytest.raises(ValueError, match=r"must have shape \(B, L, 5\)|states in its last dim"):
        sample(model, sf.Absorbing(5), NOISE, (2, 3), 2, method)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": None},
        {"method": "Confidence"},
        {"method": "confidence", "temperature": False},
        {"method": "confidence", "temperature": torch.tensor(0.0)},
        {"method": "confidence", "steps": 10**11},
        {"method": "confidence", "block_length": 10**30},
        {"method": "confidence", "block_length": 2.5},
        {"method": "threshold", "threshold": float("nan")},
        {"method": "entropy_bound", "entropy_bound": float("inf")},
    ],
)
def test_settings_of_a_wrong_kind_are_named(settings: dict[str, Any]) -> None:
    name = list(settings)[-1]
    with pytest.raises((TypeError, ValueError), match=f"^{name} must"):
        SamplerConfig(**settings)


def test_rounding_moves_no_position() -> None:
    certainty = torch.tensor([[0.5, 0.5 + 1e-7, 0.5 - 1e-7, 0.9]], dtype=torch.float64)
    eligible, config = torch.ones(1, 4, dtype=torch.bool), SamplerConfig("confidence")
    kept = acceptance.accepted(certainty, eligible, torch.tensor([2]), config)
    assert kept.tolist() == [[True, False, False, True]]


@each_method
@pytest.mark.parametrize("fused", [True, False])
def test_masks_that_the_network_ranks_first_are_not_drawn(method: str, fused: bool) -> None:
    model = posterior_network(fused=fused)
    with torch.no_grad():
        model.network.head.bias[model.graph.mask_index] = 50.0
    for temperature in (0, 1.0):
        tokens = sample(
            model, model.graph, NOISE, (3, 12), 4, method, temperature=temperature
        )  # fmt: skip
        assert bool((tokens < model.graph.mask_index).all())


@pytest.mark.parametrize("states", [3, 262_144])
def test_small_and_large_vocabularies(states: int) -> None:
    """Two tokens and a mask in their middle, and the vocabulary of Gemma."""
    graph = sf.Absorbing(states - 1, mask_index=1)
    head = torch.nn.Linear(4, states)
    torch.nn.init.normal_(head.weight, generator=seeded())

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = torch.nn.Embedding(states, 4), head

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embed(x))

    network = Network()
    models = [
        sf.PosteriorModel(network, graph, False),
        sf.PosteriorModel(
            network, graph, False, hidden=lambda network, x: network.embed(x), head=head
        ),
    ]
    for method in ("confidence", "entropy_bound"):
        drawn = [
            sample(model, graph, NOISE, (2, 3), 2, method, generator=seeded(1)) for model in models
        ]
        assert torch.equal(*drawn)
        assert not bool((drawn[0] == 1).any())


@each_method
def test_empty_and_full_prompts_and_single_positions(method: str) -> None:
    model = tiny()
    process = (model, model.graph, model.noise)
    given = torch.arange(24).view(2, 12) % 11
    nothing, seen = torch.zeros_like(given).bool(), []
    full = infill(*process, given, ~nothing, 4, method, callback=seen.append)
    assert torch.equal(full, given)
    assert seen == []
    empty = infill(*process, given, nothing, 4, method, generator=seeded(1))
    assert torch.equal(empty, sample(*process, (2, 12), 4, method, generator=seeded(1)))
    assert sample(*process, (3, 1), 4, method).shape == (3, 1)
    assert sample(*process, (0, 12), 4, method).shape == (0, 12)
    assert sample(*process, (2, 0), 4, method).shape == (2, 0)


@pytest.mark.parametrize("method", ["analytic", "hit", "confidence", "entropy_bound"])
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
@pytest.mark.parametrize("fused", [True, False])
def test_a_row_without_a_distribution_is_named(method: str, value: float, fused: bool) -> None:
    """Sequence 2 of the batch, also where it is not number 2 of the network call."""
    model = posterior_network(fused=fused)
    given = torch.zeros(3, 12, dtype=torch.int64)
    known = torch.ones_like(given, dtype=torch.bool)
    known[2, 5] = False
    with torch.no_grad():
        model.network.head.bias.fill_(value)
    with pytest.raises(ValueError, match=r"position \(2, 5\) gives no distribution"):
        infill(model, model.graph, NOISE, given, known, 3, method)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.5}, "threshold=0.5 has an effect with method 'threshold' only"),
        ({"entropy_bound": 1.0}, "entropy_bound=1.0 has an effect with method 'entropy_bound'"),
        ({"method": "hit", "block_length": 4}, "block_length=4 has an effect with method 'conf"),
        ({"method": "euler", "stop_token": 4}, "stop_token=4 has an effect with method 'conf"),
        ({"method": "margin", "theta": 0.3}, "theta=0.3 has an effect with method 'theta_"),
        ({"method": "margin", "denoise": False}, "denoise=False has no effect with method"),
        ({"method": "margin", "remask": sf.Remask()}, "remask=.* with method 'analytic' only"),
        ({"method": "entropy", "legacy_fp32_gumbel": True}, "legacy_fp32_gumbel=True has an"),
        ({"method": "threshold", "threshold": 0.0}, r"threshold must lie in \(0, 1\], got 0.0"),
        ({"method": "entropy_bound", "entropy_bound": -1.0}, "entropy_bound must be at least 0"),
        ({"method": "confidence", "temperature": -1.0}, "temperature must be positive"),
        ({"method": "confidence", "temperature": 0, "top_p": 0.9}, "top_p=0.9 has no effect at"),
        ({"temperature": 0}, "temperature must be positive, got 0"),
        ({"method": "confidence", "block_length": 0}, "block_length must be at least 1"),
        ({"method": "confidence", "block_length": 3, "steps": 3}, "steps=3 are fewer than the 4 b"),
        ({"method": "confidence", "stop_token": 11}, "stop_token is the mask, 11"),
        ({"method": "confidence", "stop_token": 12}, "stop_token must be a token, got 12"),
        ({"method": "confidence", "guidance": -0.5}, "guidance must be at least 0"),
        ({"method": "confidence", "guidance": 1.0}, "guidance=1.0 has no effect without a prompt"),
        ({"method": "surest"}, "method must be one of 'analytic'.*'entropy_bound', got 'surest'"),
    ],
)
def test_refuses_options_without_effect(options: dict[str, Any], message: str) -> None:
    model = tiny()
    with pytest.raises(ValueError, match=message):
        sample(model, model.graph, model.noise, (1, 12), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "confidence"}, "'confidence' unmasks positions and needs the absorbing graph"),
        ({"method": "entropy_bound", "steps": None}, "steps=None works with the absorbing graph"),
        ({"method": "entropy_bound", "block_length": 2}, "block_length works with the absorbing"),
        ({"method": "entropy_bound", "stop_token": 2}, "stop_token works with the absorbing"),
    ],
)
def test_refuses_on_the_uniform_graph(options: dict[str, Any], message: str) -> None:
    model = tiny("uniform")
    with pytest.raises(ValueError, match=message):
        sample(model, model.graph, model.noise, (1, 12), **options)


def test_refuses_prompts_that_do_not_fit() -> None:
    model = tiny()
    process = (model, model.graph, model.noise)
    given, known = torch.zeros(1, 12, dtype=torch.int64), PROMPT[None]
    with pytest.raises(ValueError, match="unconditional has an effect with guidance only"):
        infill(*process, given, known, method="confidence", unconditional=given)
    with pytest.raises(ValueError, match=r"unconditional holds 12 at known position \(0, 0\)"):
        infill(*process, given, known, method="margin", guidance=1.0, unconditional=given + 12)
    packed = torch.tensor([[1] * 6 + [2] * 6])
    with pytest.raises(ValueError, match="several documents in a sequence"):
        infill(*process, given, known, method="confidence", attention_mask=packed)


def test_the_written_out_posterior_is_that_of_the_world() -> None:
    """Of the helper: p(x_0 | all masked) are the marginals of the data."""
    marginals = torch.stack([DATA.sum((1, 2)), DATA.sum((0, 2)), DATA.sum((0, 1))])
    torch.testing.assert_close(posterior(WORLD, (V, V, V)), marginals)
    assert state_number(torch.tensor([[1, 2, 3]]), V).tolist() == [27]
