"""Cross entropy of p(x_0 | x_t) at masked positions, from logits, log scores or hidden states.

    -ln p(x_0) = ln(sum over y of exp(l_y)) - l_{x_0}

with l the logits of a network that predicts x_0, or log scores of the absorbing graph: a constant
added to a row changes nothing. Only rows of masked positions are read. A network that owns a head
answers :class:`CrossEntropyRequest` from its hidden states, and no logits are made; one that owns
its logits from these, and no scores are made of them.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sedd_fast.backends.dtypes import at_least_fp32, fp32_or_fp64
from sedd_fast.backends.inputs import EntropyInputs
from sedd_fast.backends.tracing import is_static
from sedd_fast.models.interface import HeadRequest
from sedd_fast.models.linear_head import (
    LinearHead,
    check_masked_tokens,
    is_masked,
    masked_cross_entropy,
)
from sedd_fast.models.mask_column import check_logits, column_of, without_mask
from sedd_fast.names import Reduction
from sedd_fast.ops import TouchedRows, row_sums
from sedd_fast.ops import _arguments as arguments
from sedd_fast.process.graphs import Graph

_LEAST = 1e-290  #: a sum of scores below this has lost digits, and its slope 1 / sum overflows


def posterior_cross_entropy(
    logits: Tensor,
    x_t: Tensor,
    x_0: Tensor,
    graph: Graph,
    weight: Tensor | None = None,
    zero_masking: bool = True,
) -> Tensor:
    """-ln p(x_0 | x_t) of every masked position, 0 elsewhere: what MDLM, RADD and LLaDA minimise.

    ``MaskedCrossEntropy`` is its sum over positions, weighted by the noise schedule, at a random
    time.

    Args:
        logits: (B, L, V) or, with a column for the mask, (B, L, V + 1): logits of p(x_0 | x_t), or
            log scores; up to a constant a row, -inf for probability 0. The columns are the states
            in their order. float32, bfloat16, float16 or float64.
        x_t: (B, L) int64, noised tokens.
        x_0: (B, L) int64, clean tokens.
        graph: ``Absorbing(V)``.
        weight: (B, L), factor of every position; 1 if None. Rows of weight 0 are never read.
        zero_masking: the mask's column of (B, L, V + 1) logits is left out of the softmax. False:
            it is part of the softmax, as in LLaDA's own loss.

    Returns:
        (B, L) float64 nats, differentiable in ``logits``.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or value; another graph.

    Example:
        >>> nats = posterior_cross_entropy(network(x_t), x_t, x_0, graph)
        >>> loss = (nats / mask_probability[:, None]).sum(-1).mean()

    Source: Sahoo et al. 2024 (arXiv 2406.07524), equation 10; Nie et al. 2025 (arXiv 2502.09992),
    equation 3.
    """
    check_logits(logits, graph)
    check_masked_tokens(logits, "logits", _tokens(x_t, x_0, graph), graph)
    weight = arguments.per_position("weight", weight, x_t)
    read = is_masked(x_t, graph)
    if weight is not None:
        read = read & (weight != 0)
    if zero_masking and logits.shape[-1] == graph.dim and not is_static(logits):
        total, log_x_0 = row_sums(logits, x_t, x_0, graph, "affine", read.double())
        nats = _logarithm(total, logits, read, graph) - log_x_0
    else:
        logits = without_mask(logits, graph) if zero_masking else logits
        target = x_0 if logits.shape[-1] == graph.dim else column_of(x_0, graph)
        nats = _of_rows(logits, target, read)
    return torch.where(read, nats if weight is None else weight * nats, 0.0)


@dataclass(frozen=True)
class CrossEntropyRequest(HeadRequest):
    """Cross entropy of the network's p(x_0 | x_t) at masked positions, (B, L) or () nats.

    Args:
        x_0: (B, L) int64, clean tokens.
        row_weight: (B, L), factor of every position; None: 1.
        reduction: "none", "mean" or "sum".
        rows: the positions that the head is needed at; None: all masked ones of weight not 0.

    The answer is float64 for a float64 network, else float32.
    """

    x_0: Tensor
    row_weight: Tensor | None = None
    reduction: Reduction = "none"
    rows: TouchedRows | None = None

    def __call__(self, hidden: Tensor, head: LinearHead, x_t: Tensor, sigma: Tensor) -> Tensor:
        entropy = _tokens(x_t, self.x_0, head.graph, self.row_weight)
        return masked_cross_entropy(hidden, head, entropy, self.reduction, self.rows)

    def of_scores(self, log_score: Tensor, x_t: Tensor, sigma: Tensor, graph: Graph) -> Tensor:
        return self.of_logits(log_score, x_t, graph)

    def of_logits(
        self, logits: Tensor, x_t: Tensor, graph: Graph, zero_masking: bool = True
    ) -> Tensor:
        """The answer from logits as :func:`posterior_cross_entropy` takes them."""
        weight = self.weight_of_rows(x_t)
        nats = posterior_cross_entropy(logits, x_t, self.x_0, graph, weight, zero_masking)
        return arguments.reduce(nats, self.reduction).to(fp32_or_fp64(logits.dtype))


def _tokens(
    x_t: Tensor, x_0: Tensor, graph: Graph, row_weight: Tensor | None = None
) -> EntropyInputs:
    """The tokens as an operation's inputs, at any noise level."""
    sigma = torch.ones(len(x_t), dtype=torch.float64, device=x_t.device)
    return EntropyInputs(sigma, x_t, x_0, row_weight, *arguments.process(graph))


def _nats(logits: Tensor, x_0: Tensor) -> Tensor:
    return F.cross_entropy(at_least_fp32(logits), x_0, reduction="none")


def _of_rows(logits: Tensor, x_0: Tensor, read: Tensor) -> Tensor:
    """Cross entropy of the rows that are read, 0 elsewhere: (B, L, n), (B, L) -> (B, L) float64."""
    if is_static(read):
        # Rows that are not read may hold anything; their gradient must not be 0 * NaN.
        logits = torch.where(read[..., None], logits, 0.0)
        nats = _nats(logits.transpose(1, 2), torch.where(read, x_0, 0)).double()
        return torch.where(read, nats, 0.0)
    nats = _nats(logits[read], x_0[read]).double()
    return nats.new_zeros(read.shape).masked_scatter(read, nats)


def _logarithm(total: Tensor, logits: Tensor, read: Tensor, graph: Graph) -> Tensor:
    """ln of the sums of the rows that are read, (B, L) float64.

    Where the scale of scores has drifted, a row's sum may be no float64. Such rows are summed again
    from their largest score down. Whether there are any is asked of the device.
    """
    in_range = (total > _LEAST) & total.isfinite()
    found, lost = torch.where(read & in_range, total, 1.0).log(), read & ~in_range
    if not bool(lost.any()):
        return found
    rows = without_mask(logits[lost], graph).double()  # (N, V)
    return found.masked_scatter(lost, rows.logsumexp(-1))
