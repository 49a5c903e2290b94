"""What is computed from a network's hidden states and its last layer, in place of log scores.

A head of scores s = exp(f) answers by the operations of its own name (:mod:`sedd_fast.ops`). Here
is what needs p(x_0 | x_t) = softmax(f) alone. With E = expm1(sigma) and normalised scores
s = softmax(f) / E of the absorbing graph, S = sum(s) = 1 / E is known before the head is applied:

    score entropy      cross entropy / E: the rest of it, Z - 1 - ln Z with Z = E S, is 0
    a reverse step     whether a mask moves does not depend on the text; only where it moves a token
                       is drawn from softmax(f)
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from sedd_fast.backends import values
from sedd_fast.backends.coefficients import log_expm1, reverse_coefficients
from sedd_fast.backends.inputs import EntropyInputs, ReverseInputs
from sedd_fast.backends.tracing import is_captured
from sedd_fast.names import Reduction
from sedd_fast.ops import TouchedRows, linear_cross_entropy, linear_denoise, touched_rows
from sedd_fast.ops import _arguments as arguments
from sedd_fast.process.graphs import Graph


class LinearHead(NamedTuple):
    """A network's last layer: f = hidden @ weight.T + bias, weight (states, H), bias (states,).

    Attributes:
        weight, bias, graph: the layer, and the graph that its states belong to.
        scale_by_sigma: log scores are f - ln(expm1(sigma)) - ln(vocab_size), else f.
        normalised: scores are softmax(f) / expm1(sigma) instead (absorbing graph).
        excluded: states that have no part in softmax(f): the mask, rows that are no state.
        softcap: s: f is s * tanh(f / s). None for none. Only where p(x_0 | x_t) is read.
    """

    weight: Tensor
    bias: Tensor | None
    graph: Graph
    scale_by_sigma: bool = False
    normalised: bool = False
    excluded: tuple[int, ...] = ()
    softcap: float | None = None


def masked_cross_entropy(
    hidden: Tensor,
    head: LinearHead,
    entropy: EntropyInputs,
    reduction: Reduction,
    rows: TouchedRows | None,
) -> Tensor:
    """-ln softmax(f) at x_0 of masked positions, 0 elsewhere, (B, L) or () nats.

    ``row_weight`` of ``entropy`` is a factor of each; sigma is checked, and not used.

    Raises:
        TypeError, ValueError: another graph, a wrong dtype, shape, device or value.
    """
    check_masked_tokens(hidden, "hidden", entropy, head.graph)
    masked = is_masked(entropy.x_t, head.graph)
    weight = arguments.per_position("row_weight", entropy.row_weight, entropy.x_t)
    weight = masked.double() if weight is None else torch.where(masked, weight, 0.0)
    return linear_cross_entropy(
        hidden, head.weight, head.bias, entropy.x_0, weight, excluded=head.excluded,
        softcap=head.softcap, reduction=reduction, rows=rows,
    )  # fmt: skip


def normalised_score_entropy(
    hidden: Tensor,
    head: LinearHead,
    entropy: EntropyInputs,
    reduction: Reduction,
    rows: TouchedRows | None,
) -> Tensor:
    """Score entropy of normalised scores, (B, L) or () nats: the cross entropy over E.

    Raises:
        TypeError, ValueError: as :func:`masked_cross_entropy`.
    """
    inverse = torch.exp(-log_expm1(entropy.sigma.double()))[:, None]  # (B, 1)
    weight = arguments.per_position("row_weight", entropy.row_weight, entropy.x_t)
    weight = inverse.expand(entropy.x_t.shape) if weight is None else inverse * weight
    return masked_cross_entropy(hidden, head, replace(entropy, row_weight=weight), reduction, rows)


def moves(step: ReverseInputs) -> Tensor:
    """(B, L) bool: which positions a step of normalised scores moves; u[..., 0] alone decides."""
    assert step.u is not None
    # The weights of reverse_step for S = 1 / E, in units of S.
    log_sum = -log_expm1(step.sigma.double())[:, None].expand(step.x_t.shape)
    alpha, _, gamma = reverse_coefficients(step, torch.ones_like(log_sum), log_sum)
    return step.u[..., 0] * (alpha + gamma.clamp(min=0)) < alpha  # never where alpha is 0


def normalised_step(
    hidden: Tensor, head: LinearHead, step: ReverseInputs, rows: TouchedRows | None
) -> Tensor:
    """The tokens of :func:`sedd_fast.reverse_step` from normalised scores, (B, L) int64.

    The head is applied to ``rows``, of which others than :func:`moves` stay; None: to these.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or value, or (on the CPU) a row that
            gives no distribution.
    """
    arguments.check_all_tokens({"x_t": step.x_t}, hidden, "hidden")
    values.check(step)
    moving = moves(step)
    if rows is None:
        rows = listed_rows(step.x_t, head.graph, moving, fixed=True)
    token = linear_denoise(
        hidden, head.weight, head.bias, step.u, temperature=step.temperature, top_p=step.top_p,
        softcap=head.softcap, excluded=head.excluded, want=("token",), rows=rows,
    ).token  # fmt: skip
    assert token is not None
    return torch.where(moving & (token >= 0), token, step.x_t)


def listed_rows(
    x_t: Tensor, graph: Graph, row_weight: Tensor | None, fixed: bool = False
) -> TouchedRows:
    """The rows that the head is needed at: touched ones whose weight is not 0.

    Args:
        x_t: (B, L) int64.
        graph: that of the head.
        row_weight: (B, L), a number or a bool each.
        fixed: a list of B * L entries, whose number the host need not know: while a graph is
            traced. (Where a CUDA graph is captured the list is that in any case.)
    """
    fixed = fixed or is_captured(x_t)
    return touched_rows(x_t, graph, row_weight, max(x_t.numel(), 1) if fixed else None)


def is_masked(x_t: Tensor, graph: Graph) -> Tensor:
    """bool: where the state is the mask of the absorbing graph."""
    assert graph.mask_index is not None  # check_masked_tokens
    return torch.eq(x_t, graph.mask_index)


def check_masked_tokens(like: Tensor, name: str, entropy: EntropyInputs, graph: Graph) -> None:
    """Tokens (B, L) beside ``like`` (B, L, ...), their values in range, the graph absorbing."""
    if graph.mask_index is None:
        raise ValueError(
            f"a cross entropy at masked positions is for the absorbing graph, got {graph}; for the "
            "uniform one take ScoreEntropyLoss or D3PMLoss"
        )
    arguments.check_all_tokens({"x_t": entropy.x_t, "x_0": entropy.x_0}, like, name)
    values.check(entropy)
