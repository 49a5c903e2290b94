"""Bounds of some tokens given the others, and of sequences of different lengths in one batch."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.documents import documents, padded
from helpers.tiny_models import tiny
from sedd_fast.evaluate import evaluate_corpus, likelihood_bound

NOISE = sf.LogLinearNoise()
MODES = [
    ("absorbing", "exact"),
    ("absorbing", "normalised"),
    ("absorbing", "paper"),
    ("uniform", "exact"),
    ("uniform", "paper"),
]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("kind", "mode"), MODES)
@pytest.mark.parametrize("times", ["stratified", "antithetic"])
def test_a_padded_batch_has_the_bounds_of_its_sequences(kind: str, mode: Any, times: Any) -> None:
    model, texts = tiny(kind), documents(11)
    tokens, mask, _ = padded(texts, padding=3)
    loss_mask = torch.arange(tokens.shape[1]) >= 2
    together = likelihood_bound(
        model, tokens, model.graph, NOISE, 8, mode, seeded(1), times=times,
        loss_mask=loss_mask.expand(tokens.shape), attention_mask=mask,
    )  # fmt: skip
    assert torch.equal(together.tokens, torch.tensor([len(text) - 2 for text in texts]))
    for number, text in enumerate(texts):
        # In the same place of a batch: a row's random numbers depend on its number.
        rows = text.expand(len(texts), -1)
        alone = likelihood_bound(
            model, rows, model.graph, NOISE, 8, mode, seeded(1), times=times,
            loss_mask=(torch.arange(len(text)) >= 2).expand(rows.shape),
        )  # fmt: skip
        for name in ("nats", "stderr"):
            found, expected = getattr(together, name)[number], getattr(alone, name)[number]
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


class Table(torch.nn.Module):
    """Exact scores of a distribution over sequences, of the absorbing graph.

    Its posterior at a mask is that given all unmasked tokens, so that the bound is the likelihood.
    """

    def __init__(self, probability: Tensor) -> None:
        super().__init__()
        self.probability = probability  # (V, V, V)

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        states = self.probability.shape[0]
        every = torch.cartesian_prod(*[torch.arange(states)] * 3)  # (V^3, 3)
        fits = ((x_t[:, None] == every) | (x_t[:, None] == states)).all(-1)  # (B, V^3)
        weight = fits * self.probability.flatten()
        chosen = torch.nn.functional.one_hot(every, states).double()  # (V^3, 3, V)
        posterior = torch.einsum("bn,nlv->blv", weight, chosen)
        posterior = posterior / posterior.sum(-1, keepdim=True)
        score = posterior.log() - torch.expm1(sigma.double()).log()[:, None, None]
        return torch.cat((score, torch.zeros_like(score[..., :1])), -1)


@pytest.mark.parametrize("mode", ["exact", "normalised"])
@pytest.mark.parametrize("given", [(0,), (2,), (0, 2), (1, 2)])
def test_the_bound_of_a_perfect_network_is_the_conditional_likelihood(
    mode: Any, given: tuple[int, ...]
) -> None:
    probability = torch.rand(3, 3, 3, generator=seeded(2), dtype=torch.float64) ** 3
    probability /= probability.sum()
    x_0 = torch.tensor([[0, 2, 1], [1, 1, 2], [2, 0, 0]])
    loss_mask = torch.tensor([i not in given for i in range(3)]).expand(3, 3)
    bound = likelihood_bound(
        Table(probability), x_0, sf.Absorbing(3), NOISE, 512, mode, seeded(0), 512,
        loss_mask=loss_mask,
    )  # fmt: skip
    others = [i for i in range(3) if i not in given]
    for row, nats, stderr in zip(x_0.tolist(), bound.nats, bound.stderr, strict=True):
        marginal = probability.sum(others)
        own = marginal[tuple(row[i] for i in given)]
        expected = -math.log(float(probability[tuple(row)] / own))
        assert float(nats) == pytest.approx(expected, abs=4 * float(stderr) + 1e-6)
    assert bound.total_tokens == 3 * len(others)


def test_padding_is_neither_read_nor_counted() -> None:
    model, texts = tiny(), documents(11)
    found = []
    for padding in (0, 10, -100, model.graph.mask_index):
        tokens, mask, _ = padded(texts, padding=padding)
        bound = evaluate_corpus(
            model, tokens.numpy(), model.graph, NOISE, 8, generator=seeded(0), attention_mask=mask
        )
        found.append(tuple(bound.nats.tolist()))
    assert len(set(found)) == 1
    assert bound.tokens.tolist() == [len(text) for text in texts]
    assert bound.bits_per_token == pytest.approx(sum(found[0]) / math.log(2) / 29)


def test_a_sequence_without_a_token_to_evaluate_is_refused() -> None:
    model, (tokens, mask, _) = tiny(), padded(documents(11))
    loss_mask = torch.ones_like(tokens, dtype=torch.bool)
    loss_mask[2, :3] = False
    with pytest.raises(ValueError, match="sequence 2 of x_0 has no token to evaluate"):
        likelihood_bound(
            model, tokens, model.graph, NOISE, 4, loss_mask=loss_mask, attention_mask=mask
        )
