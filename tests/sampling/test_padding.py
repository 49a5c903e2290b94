"""Sequences of different lengths in one batch: each is drawn as it would be by itself."""

from typing import Any

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.documents import documents, padded
from helpers.tiny_models import tiny
from sedd_fast.models.posterior_sedd import PosteriorSEDD
from sedd_fast.models.sedd import SEDD
from sedd_fast.sampling import METHODS, RowStreams, infill

NOISE = sf.LogLinearNoise()
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *(("absorbing", {"method": method}) for method in METHODS),
    *(("uniform", {"method": method}) for method in METHODS[:4]),
    ("uniform", {"method": "entropy_bound", "entropy_bound": 3.0}),
    ("posterior", {"method": "analytic"}),
    ("posterior", {"method": "entropy", "steps": None, "block_length": 3, "stop_token": 5}),
    ("absorbing", {"method": "confidence", "steps": 6, "guidance": 1.5, "block_length": 4}),
    ("absorbing", {"method": "hit", "steps": None}),
    ("absorbing", {"remask": sf.Remask("rescale", 0.9), "steps": 12}),
    ("absorbing", {"legacy_fp32_gumbel": True}),
    ("uniform", {"temperature": 0.8, "top_p": 0.9}),
]


def network(kind: str) -> SEDD:
    if kind != "posterior":
        return tiny(kind)
    model = PosteriorSEDD(tiny().config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model


@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=[f"{k}-{o}" for k, o in OPTIONS])
def test_a_padded_batch_is_drawn_as_one_by_one(kind: str, options: dict[str, Any]) -> None:
    model, options = network(kind), {"steps": 4, **options}
    texts = documents(11)
    prompts = [torch.arange(len(text)) < 2 for text in texts]
    tokens, mask, places = padded(texts, padding=3)
    known = padded([prompt.long() for prompt in prompts]).tokens.bool()
    streams = RowStreams.of_texts(5, range(len(texts)))
    filled = infill(
        model, model.graph, NOISE, tokens, known,
        generator=streams, attention_mask=mask, **options,
    )  # fmt: skip
    assert bool((filled[mask == 0] == 3).all())
    for number, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
        alone = infill(
            model, model.graph, NOISE, text[None], prompt[None],
            generator=RowStreams.of_texts(5, [number]), **options,
        )[0]  # fmt: skip
        row, place = places[number]
        assert torch.equal(filled[row, place], alone)
        assert torch.equal(alone[:2], text[:2])


def test_packed_documents_are_drawn_apart() -> None:
    """A document's samples do not depend on the text beside it."""
    model = tiny()
    tokens = torch.randint(11, (1, 12))
    known = torch.tensor([[True, True, False, False, False, False] * 2])
    mask = torch.tensor([[1] * 6 + [2] * 6])

    def first(other: Tensor) -> Tensor:
        beside = torch.cat((tokens[:, :6], other), 1)
        streams = RowStreams.of_texts(1, [0])
        return infill(
            model, model.graph, NOISE, beside, known, 8, generator=streams, attention_mask=mask
        )[0, :6]

    drawn = [first(torch.full((1, 6), token)) for token in range(4)]
    assert len({tuple(each.tolist()) for each in drawn}) == 1


def test_padding_may_hold_the_mask_or_no_token_at_all() -> None:
    model = tiny()
    rows = padded(documents(11))
    known = torch.zeros_like(rows.tokens, dtype=torch.bool)
    for method in ("analytic", "hit"):
        for padding in (model.graph.mask_index, -100, 999):
            tokens = torch.where(rows.mask != 0, rows.tokens, padding)
            filled = infill(
                model, model.graph, NOISE, tokens, known, 4, method, attention_mask=rows.mask
            )
            assert bool((filled[rows.mask == 0] == padding).all())
            assert bool(model.graph.is_token(filled[rows.mask != 0]).all())


def test_a_known_mask_is_still_refused() -> None:
    model = tiny()
    rows = padded(documents(11))
    tokens = rows.tokens.clone()
    tokens[0, 0] = model.graph.mask_index
    known = torch.ones_like(tokens, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"known position \(0, 0\), which is the mask"):
        infill(model, model.graph, NOISE, tokens, known, attention_mask=rows.mask)
    with pytest.raises(ValueError, match="attention_mask must have shape"):
        infill(model, model.graph, NOISE, tokens, known, attention_mask=rows.mask[:1])
