"""The samplers by certainty draw from a head what they draw from logits; guidance."""

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.decoding_rule import Rule, accepted, certainty
from helpers.posterior_network import Plain, calls_of, each_method, posterior_network, seeded
from helpers.tiny_models import tiny
from helpers.toy_world import (
    SCHEDULES,
)
from sedd_fast.models.posterior_sedd import PosteriorSEDD
from sedd_fast.sampling import infill, sample

NOISE = SCHEDULES["absorbing"]


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
