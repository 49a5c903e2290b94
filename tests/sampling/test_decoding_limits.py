"""The samplers by certainty: limits of their inputs, and what they refuse."""

from typing import Any

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.posterior_network import calls_of, each_method, posterior_network, seeded
from helpers.tiny_models import tiny
from helpers.toy_world import (
    SCHEDULES,
)
from sedd_fast.sampling import Step, infill, sample
from sedd_fast.sampling.config import SamplerConfig

NOISE = SCHEDULES["absorbing"]


PROMPT = torch.arange(12) < 4


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
