"""Samplers with SEDD's fused head: samples as from its log scores, and no row that is not drawn."""

from typing import Any

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from sedd_fast.models.interface import ReverseStepRequest
from sedd_fast.names import METHODS

SHAPE = (6, 12)
WAYS = [(method, 7) for method in METHODS] + [("hit", None)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def model() -> sf.SEDD:
    """Every weight drawn: a fresh network would answer 0 to everything."""
    config = sf.SEDDConfig(11, hidden_size=16, cond_dim=8, n_blocks=1, n_heads=2, length=12)
    made = sf.SEDD(config)
    generator = seeded(0)
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.3, generator=generator)
    return made.eval()


@pytest.mark.parametrize(
    "token_filter", [{}, {"temperature": 0.6, "top_p": 0.7}], ids=["plain", "filtered"]
)
@pytest.mark.parametrize(("method", "steps"), WAYS)
def test_samples_are_those_of_the_log_scores(
    model: sf.SEDD, method: str, steps: int | None, token_filter: dict[str, float]
) -> None:
    """One seed gives one sample, whether the network draws itself or returns its log scores."""

    def drawn(network: Any, **options: float) -> Tensor:
        process = (network, model.graph, model.noise)
        return sf.sample(*process, SHAPE, steps, method, generator=seeded(1), **options)

    fused = drawn(model, **token_filter)
    assert torch.equal(fused, drawn(lambda x, sigma: model(x, sigma), **token_filter))
    assert torch.equal(fused, drawn(model)) == (not token_filter)  # it is not ignored


@pytest.mark.parametrize("steps", [3, 50, None])
def test_hit_asks_the_head_for_the_positions_that_unmask_alone(
    model: sf.SEDD, steps: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Tensor] = []
    forward = sf.SEDD.forward

    def watched(self: sf.SEDD, x: Tensor, sigma: Tensor, head: ReverseStepRequest) -> Tensor:
        assert head.rows is not None
        asked.append(head.rows.index)
        return forward(self, x, sigma, head)

    monkeypatch.setattr(sf.SEDD, "forward", watched)
    process, seen = (model, model.graph, model.noise), []
    sf.sample(*process, SHAPE, steps, "hit", callback=seen.append, generator=seeded(2))
    before = torch.full(SHAPE, model.graph.mask_index)
    for step, rows in zip(seen, asked, strict=True):
        changed = step.tokens != before
        computed = changed[changed.any(-1)]  # the sequences that the network was given
        assert rows.sort().values.tolist() == computed.flatten().nonzero().flatten().tolist()
        before = step.tokens
    assert sum(map(len, asked)) == before.numel()  # each position once
