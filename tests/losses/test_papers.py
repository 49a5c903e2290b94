"""The losses of two papers, written after their code in float64, for the same x_t and t."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sedd_fast as sf
from helpers.exposed import GRAPH, X_0, X_T, B, L, T, models
from helpers.tiny_models import gradients

MASK = GRAPH.mask_index


def mdlm(logits: Tensor, t: Tensor) -> Tensor:
    """kuleshov-group/mdlm: SUBS parameterisation, log-linear noise; nats, the mean of sequences."""
    kept = 1 - 1e-3
    sigma, dsigma = -torch.log1p(-kept * t), kept / (1 - kept * t)
    columns = torch.arange(GRAPH.dim)
    log_p = logits.masked_fill(columns == MASK, -torch.inf)
    log_p = log_p - torch.logsumexp(log_p, -1, keepdim=True)
    carried = torch.where(columns == X_T[..., None], 0.0, -torch.inf)
    log_p = torch.where((X_T != MASK)[..., None], carried, log_p)
    log_p_x_0 = log_p.gather(-1, X_0[..., None]).squeeze(-1)
    return (-log_p_x_0 * (dsigma / torch.expm1(sigma))[:, None]).sum(-1).mean()


def llada(logits: Tensor, p_mask: Tensor) -> Tensor:
    """ML-GSAI/LLaDA, its guidelines: over the whole vocabulary, the mask's logit included."""
    masked = X_T == MASK
    nats = F.cross_entropy(logits[masked], X_0[masked], reduction="none")
    return (nats / p_mask[:, None].expand(B, L)[masked]).sum() / (B * L)


def of_mdlm(model: sf.PosteriorModel, t: Tensor) -> Tensor:
    return sf.MaskedCrossEntropy(GRAPH, sf.LogLinearNoise(1e-3), "mean")(model, X_0, t=t, x_t=X_T)


def of_llada(model: sf.PosteriorModel, t: Tensor) -> Tensor:
    objective = sf.MaskedCrossEntropy(GRAPH, sf.LogLinearNoise(), "mean", over="lambda")
    return objective(model, X_0, t=t, x_t=X_T) / L


@pytest.mark.parametrize(
    ("kind", "paper", "ours"),
    [("plain", mdlm, of_mdlm), ("with the mask's logit", llada, of_llada)],
    ids=["MDLM", "LLaDA"],
)
@pytest.mark.parametrize("exposed", [True, False], ids=["hidden states", "logits"])
def test_the_loss_of_the_paper(
    kind: str, paper: Callable[..., Tensor], ours: Callable[..., Tensor], exposed: bool
):
    with_hidden, logits = models(kind)
    network = with_hidden.double().network
    found = []
    for run in (
        lambda: paper(network(X_T).logits, T.double()),
        lambda: ours(with_hidden if exposed else logits, T.double()),
    ):
        loss = run()
        loss.backward()
        found.append([loss.detach(), *gradients(network).values()])
    for expected, got in zip(*found, strict=True):
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-13)
