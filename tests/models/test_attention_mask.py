"""Attention masks: a document has the outputs that it has by itself, padded or packed."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.documents import LAYOUTS, Rows, documents, padded
from helpers.tiny_models import KINDS, tiny
from sedd_fast.models.attention import positions
from sedd_fast.models.interface import ReverseStepRequest, ScoreEntropyRequest
from sedd_fast.models.posterior_sedd import PosteriorSEDD

each_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
SIGMA = torch.tensor(0.7)


@each_layout
@pytest.mark.parametrize(("graph", "scaled"), KINDS)
def test_scores_are_those_of_every_document_alone(
    layout: Callable[..., Rows], graph: str, scaled: bool
) -> None:
    model = tiny(graph, scaled)
    texts = documents(11)
    rows = layout(texts)
    found = model(rows.tokens, SIGMA, attention_mask=rows.mask)
    without = model(rows.tokens, SIGMA)
    for text, (row, place) in zip(texts, rows.places, strict=True):
        expected = model(text[None], SIGMA)[0]
        torch.testing.assert_close(found[row, place], expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(without[row, place], expected, atol=1e-3)
    assert bool(found.isfinite().all())


def test_a_bool_mask_and_numbers_of_any_kind_say_the_same() -> None:
    model, rows = tiny(), padded(documents(11))
    found = model(rows.tokens, SIGMA, attention_mask=rows.mask)
    for mask in (rows.mask.bool(), rows.mask.int(), 7 * rows.mask):
        assert torch.equal(model(rows.tokens, SIGMA, attention_mask=mask), found)


def test_a_mask_of_one_document_changes_nothing() -> None:
    model, tokens = tiny(), torch.randint(11, (3, 12))
    found = model(tokens, SIGMA, attention_mask=torch.ones_like(tokens))
    torch.testing.assert_close(found, model(tokens, SIGMA), rtol=1e-5, atol=1e-5)


def test_positions_start_anew_in_every_document() -> None:
    mask = torch.tensor([[1, 1, 1, 2, 2, 0, 0], [0, 0, 5, 5, 5, 3, 3], [1, 2, 1, 2, 1, 0, 0]])
    assert positions(mask).tolist() == [
        [0, 1, 2, 0, 1, 0, 1], [0, 1, 0, 1, 2, 0, 1], [0, 0, 1, 1, 2, 0, 1],
    ]  # fmt: skip


@each_layout
def test_requests_are_answered_with_the_mask(layout: Callable[..., Rows]) -> None:
    """Score entropy and a reverse step from hidden states."""
    for model in (tiny(), PosteriorSEDD(tiny().config)):
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.2)
        mask = model.graph.mask_index
        texts = documents(11)
        rows = layout([torch.where(text % 2 == 0, mask, text) for text in texts])
        clean = layout(texts)
        sigma = SIGMA.expand(len(rows.tokens))
        weight = (rows.mask != 0).double()
        asked = ScoreEntropyRequest(clean.tokens, weight)
        nats = model(rows.tokens, sigma, asked, attention_mask=rows.mask)
        u = torch.rand(*rows.tokens.shape, 2, dtype=torch.float64)
        step = model(rows.tokens, sigma, ReverseStepRequest("denoise", u=u), rows.mask)
        for text, (row, place) in zip(texts, rows.places, strict=True):
            one, u_0 = rows.tokens[row : row + 1, place], u[row : row + 1, place]
            expected = model(one, SIGMA.expand(1), ScoreEntropyRequest(text[None]))[0]
            torch.testing.assert_close(nats[row, place], expected, rtol=1e-5, atol=1e-5)
            after = model(one, SIGMA.expand(1), ReverseStepRequest("denoise", u=u_0))[0]
            assert torch.equal(step[row, place], after)


def test_a_network_of_logits_gets_the_mask_under_its_name() -> None:
    seen = []

    def network(x_t: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        seen.append(attention_mask)
        return torch.zeros(*x_t.shape, 11)

    model = sf.PosteriorModel(network, sf.Absorbing(11), takes_sigma=False)
    rows = padded(documents(11))
    model(rows.tokens, SIGMA.expand(4), attention_mask=rows.mask)
    model(rows.tokens, SIGMA.expand(4))
    assert seen == [rows.mask, None]


def test_a_network_of_logits_must_say_that_it_keeps_documents_apart() -> None:
    """One of transformers would read all numbers but 0 alike."""

    def network(x_t: Tensor, attention_mask: Tensor) -> Tensor:
        return torch.zeros(*x_t.shape, 11) + attention_mask[..., None]

    rows, sigma = LAYOUTS["packed"](documents(11)), SIGMA.expand(2)
    model = sf.PosteriorModel(network, sf.Absorbing(11), takes_sigma=False)
    with pytest.raises(ValueError, match=r"numbers other than 0 .* pass takes_documents=True"):
        model(rows.tokens, sigma, attention_mask=rows.mask)
    for mask in (rows.mask != 0, (rows.mask != 0).long()):
        model(rows.tokens, sigma, attention_mask=mask)
    model = sf.PosteriorModel(network, sf.Absorbing(11), takes_sigma=False, takes_documents=True)
    model(rows.tokens, sigma, attention_mask=rows.mask)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.ones(2, 5), TypeError, "whole numbers, got torch.float32"),
        (torch.ones(2, 4).long(), ValueError, r"shape \(2, 5\), a number for every token, got"),
        (torch.ones(5).long(), ValueError, r"got \(5,\)"),
        (torch.ones(2, 5, device="meta").long(), ValueError, "on meta"),
        ([[1] * 5] * 2, TypeError, "attention_mask must be a"),
    ],
)
def test_wrong_masks_are_refused(mask: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tiny()(torch.zeros(2, 5, dtype=torch.int64), SIGMA, attention_mask=mask)


def test_compiled() -> None:
    model, rows = tiny(n_blocks=1).eval(), LAYOUTS["packed"](documents(11))
    with torch.no_grad():
        expected = model(rows.tokens, SIGMA, attention_mask=rows.mask)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        found = compiled(rows.tokens, SIGMA, attention_mask=rows.mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
