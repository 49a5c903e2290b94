"""Losses of documents of different lengths: a batch has the losses and gradients of its parts."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.documents import LAYOUTS, Rows, documents
from helpers.tiny_models import assert_same_gradients, gradients, tiny
from sedd_fast.losses import objective as module
from sedd_fast.models import interface
from sedd_fast.models.autoregressive import Autoregressive
from sedd_fast.models.posterior_sedd import PosteriorSEDD
from sedd_fast.models.sedd import SEDD

NOISE = sf.LogLinearNoise()
each_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def posterior(graph: str) -> PosteriorSEDD:
    model = PosteriorSEDD(tiny(graph).config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model


def made(name: str, reduction: Any, **options: Any) -> tuple[SEDD, sf.losses.Objective]:
    """A network with an objective that fits it."""
    match name:
        case "score entropy" | "score entropy, uniform":
            model = tiny("uniform" if "uniform" in name else "absorbing")
            return model, sf.ScoreEntropyLoss(model.graph, NOISE, reduction, **options)
        case "masked cross entropy":
            model = posterior("absorbing")
            return model, sf.MaskedCrossEntropy(model.graph, NOISE, reduction, **options)
        case "d3pm":
            model = posterior("absorbing")
            return model, sf.D3PMLoss(model.graph, NOISE, reduction, **options)
    model = tiny()
    return model, sf.ConcreteScoreMatching(model.graph, NOISE, reduction, **options)


NAMES = ["score entropy", "score entropy, uniform", "masked cross entropy", "d3pm", "concrete"]


def loss_positions(text: Tensor) -> Tensor:
    """The first two tokens are a prompt."""
    return torch.arange(len(text)) >= 2


def noised(model: SEDD, texts: list[Tensor], t: Tensor) -> list[Tensor]:
    """Documents noised at positions with loss, all at one time."""
    found = []
    for text in texts:
        x_t = sf.sample_transition(text[None], model.noise.sigma(t), model.graph)[0]
        found.append(torch.where(loss_positions(text), x_t, text))
    return found


@each_layout
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("per_token", [False, True])
def test_loss_and_gradients_are_those_one_by_one(
    name: str, layout: Callable[..., Rows], per_token: bool
) -> None:
    torch.manual_seed(1)
    model, objective = made(name, "sum", per_token=per_token)
    texts, t = documents(11), torch.tensor([0.6])
    noisy = noised(model, texts, t)
    clean, x_t = layout(texts), layout(noisy)
    loss_mask = layout([loss_positions(text).long() for text in texts]).tokens.bool()
    loss_mask &= clean.mask != 0
    rows = sorted({row for row, _ in clean.places})
    given = {"loss_mask": loss_mask[rows], "attention_mask": clean.mask[rows]}
    times = t.expand(len(rows))
    total = objective(model, clean.tokens[rows], t=times, x_t=x_t.tokens[rows], **given)
    total.backward()
    found = gradients(model)
    alone = [
        objective(model, text[None], loss_positions(text)[None], t=t, x_t=x[None])
        for text, x in zip(texts, noisy, strict=True)
    ]
    expected: Tensor = torch.stack(alone).sum()
    expected.backward()
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradients(found, gradients(model))
    if per_token:  # a document's own mean
        _, plain = made(name, "sum")
        nats = plain(model, texts[1][None], loss_positions(texts[1])[None], t=t, x_t=noisy[1][None])
        torch.testing.assert_close(alone[1], nats / 10, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("per_token", [False, True])
def test_reductions(name: str, per_token: bool) -> None:
    """With per_token the mean is over documents, of which one row has four and the other one."""
    torch.manual_seed(1)
    model, objective = made(name, "none", per_token=per_token)
    rows = LAYOUTS["packed"](documents(11))
    mask = rows.mask.clone()
    mask[1] = torch.where(mask[1] == 2, 2, 0)
    given = {"t": torch.tensor([0.4, 0.8]), "attention_mask": mask}
    given["x_t"] = sf.sample_transition(rows.tokens, model.noise.sigma(given["t"]), model.graph)
    each = objective(model, rows.tokens, **given)
    assert each.shape == (2,)
    for reduction in ("sum", "mean"):
        _, reduced = made(name, reduction, per_token=per_token)
        divisor = 1 if reduction == "sum" else 5 if per_token else 2
        torch.testing.assert_close(
            reduced(model, rows.tokens, **given), each.sum() / divisor, rtol=1e-5, atol=1e-6
        )


def test_tokens_at_padding_are_not_read() -> None:
    model, objective = made("score entropy", "mean")
    rows = LAYOUTS["padded"](documents(11))
    drawn = []
    for padding in (0, 10, -100, model.graph.mask_index, 10**6):
        tokens = torch.where(rows.mask != 0, rows.tokens, padding)
        generator = torch.Generator().manual_seed(3)
        loss = objective(model, tokens, attention_mask=rows.mask, generator=generator)
        drawn.append(float(loss.detach()))
    assert len(set(drawn)) == 1
    noisy = torch.where(rows.mask != 0, rows.tokens, -100)
    assert objective(model, noisy, x_t=noisy, attention_mask=rows.mask).isfinite()


def test_prompts_are_never_noised(monkeypatch: pytest.MonkeyPatch) -> None:
    model, objective = made("score entropy", "mean")
    rows = LAYOUTS["packed"](documents(11))
    loss_mask = torch.rand(rows.tokens.shape) < 0.7
    seen: list[Tensor] = []
    answer = module.answer

    def watched(network: Any, graph: sf.Graph, x_t: Tensor, *rest: Any) -> Tensor:
        seen.append(x_t)
        return answer(network, graph, x_t, *rest)

    monkeypatch.setattr(module, "answer", watched)
    objective(model, rows.tokens, loss_mask, t=torch.ones(2), attention_mask=rows.mask)
    with_loss = loss_mask & (rows.mask != 0)
    assert bool((seen[0][~with_loss] == rows.tokens[~with_loss]).all())
    assert float((seen[0][with_loss] == model.graph.mask_index).float().mean()) > 0.9


def test_a_sequence_without_loss_has_none() -> None:
    for per_token in (False, True):
        model, objective = made("score entropy", "none", per_token=per_token)
        rows = LAYOUTS["padded"](documents(11))
        loss_mask = torch.ones_like(rows.tokens, dtype=torch.bool)
        loss_mask[1] = False
        loss = objective(model, rows.tokens, loss_mask, attention_mask=rows.mask).detach()
        assert float(loss[1]) == 0
        mean = made("score entropy", "mean", per_token=per_token)[1]
        assert float(mean(model, rows.tokens, torch.zeros_like(loss_mask)).detach()) == 0
        assert all(float(loss[i]) > 0 for i in (0, 2, 3)), loss
        assert math.isfinite(float(loss.sum()))


# Dropout

CONFIG = {"vocab_size": 11, "hidden_size": 16, "cond_dim": 8, "n_blocks": 1, "n_heads": 2}


@pytest.fixture
def warned() -> Any:
    interface._warn.cache_clear()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield found
    interface._warn.cache_clear()


@pytest.mark.parametrize("kind", ["sedd", "ar"])
def test_training_without_dropout_is_warned_of_once(warned: Any, kind: str) -> None:
    config = sf.SEDDConfig(**CONFIG, dropout=0.1)
    model = Autoregressive(config) if kind == "ar" else sf.SEDD(config)
    objective = (
        sf.losses.NextTokenLoss() if kind == "ar" else sf.ScoreEntropyLoss(model.graph, NOISE)
    )
    x_0 = torch.zeros(2, 6, dtype=torch.int64)
    model.train()
    objective(model, x_0)
    model.eval()
    with torch.no_grad():
        objective(model, x_0)
    assert not warned
    objective(model, x_0)
    objective(model, x_0)
    assert len(warned) == 1
    assert "call model.train()" in str(warned[0].message)
    assert warned[0].filename == __file__


def test_networks_without_dropout_are_not_warned_of(warned: Any) -> None:
    x_0 = torch.zeros(2, 6, dtype=torch.int64)
    model = sf.SEDD(sf.SEDDConfig(**CONFIG, dropout=0.0)).eval()
    objective = sf.ScoreEntropyLoss(model.graph, NOISE)
    objective(model, x_0)
    objective(lambda x, sigma: torch.zeros(*x.shape, 12), x_0)
    frozen = sf.SEDD(sf.SEDDConfig(**CONFIG, dropout=0.1)).eval().requires_grad_(False)
    objective(frozen, x_0)
    assert not warned
