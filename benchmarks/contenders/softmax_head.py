"""Heads over p(x_0 | x_t) as others write them: cross entropy, and what a denoising step asks of p.

Shapes: hidden (N, H); weight (dim, H); bias (dim,); target, row_weight (N,); index (R,), the rows
that carry a loss.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sedd_fast.backends.dtypes import at_least_fp32

#: Bytes of logits that the row chunks form at a time, as the workspace of ours.
CHUNK = {"cpu": 32 << 20, "cuda": 256 << 20}


def cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor, row_weight: Tensor, index: Tensor
) -> Tensor:
    """The scalar sum of row_weight * cross entropy, from the logits of the rows that carry a loss:
    what MDLM's and LLaDA's training code computes.
    """
    logits = at_least_fp32(F.linear(hidden[index], weight, bias))
    nats = F.cross_entropy(logits, target[index], reduction="none")
    return (row_weight[index] * nats).sum()


@torch.no_grad()
def row_chunks(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    target: Tensor,
    row_weight: Tensor,
    index: Tensor,
    chunk_bytes: int | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """The same loss, and its gradients of hidden, weight and bias, some rows at a time.

    As Liger Kernel does it (Hsu et al. 2024, arXiv 2410.10989): the gradient of the logits is
    formed in the forward pass, in their memory. Here in plain torch. The weight of a row is applied
    to its hidden state and to the gradient of that, which is smaller than a row of logits. The
    chunks are as large as ``chunk_bytes`` allows: Liger's own rule would take 4 rows of 50,258
    states, and read the weight for each. Like Liger's default, the weight's gradient is added up in
    the dtype of the weight.
    """
    rows, factor = hidden[index], row_weight[index]
    size = CHUNK[hidden.device.type] if chunk_bytes is None else chunk_bytes
    count = max(1, size // (len(weight) * hidden.element_size()))
    memory = hidden.new_empty(min(count, len(rows)), len(weight))
    of_rows, of_weight = torch.empty_like(rows), torch.zeros_like(weight)
    of_bias, loss = torch.zeros_like(bias), factor.new_zeros(())
    labels_of = target[index][:, None]
    for start in range(0, len(rows), count):
        part = slice(start, start + count)
        h, own, labels = rows[part], factor[part], labels_of[part]
        f = torch.addmm(bias, h, weight.T, out=memory[: len(h)])
        log_p = at_least_fp32(f)
        torch.log_softmax(log_p, -1, out=log_p)
        loss -= (own * log_p.gather(1, labels).squeeze(1)).sum()
        torch.exp(log_p, out=f)
        f.scatter_add_(1, labels, f.new_full((), -1).expand_as(labels))
        scale = own[:, None].to(f.dtype)
        torch.mm(f, weight, out=of_rows[part]).mul_(scale)
        of_weight.addmm_(f.T, h * scale)
        of_bias.addmv_(f.T, scale.squeeze(1))
    of_hidden = torch.zeros_like(hidden).index_copy_(0, index, of_rows)
    return loss, (of_hidden, of_weight, of_bias)


def everything(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Token, its log probability, argmax, its log probability and the entropy, (N,) each.

    As ``sample_tokens`` of Dream (arXiv 2508.15487) computes them of float32 logits, but all from
    one softmax. Its margin, which sorts every row, is left out.
    """
    p = at_least_fp32(F.linear(hidden, weight, bias)).softmax(-1)
    return _statistics(p, torch.multinomial(p, 1))


def token(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(N,), the token alone."""
    p = at_least_fp32(F.linear(hidden, weight, bias)).softmax(-1)
    return torch.multinomial(p, 1).squeeze(-1)


def gumbel_everything(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """The same as ``everything`` by LLaDA's draw and in its float64 (arXiv 2502.09992)."""
    f = F.linear(hidden, weight, bias).double()
    return _statistics(f.softmax(-1), _gumbel_argmax(f))


def gumbel_token(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(N,), the token alone by LLaDA's draw."""
    return _gumbel_argmax(F.linear(hidden, weight, bias).double()).squeeze(-1)


def _gumbel_argmax(f: Tensor) -> Tensor:
    """(N, 1): the argmax of LLaDA's ``add_gumbel_noise`` at temperature 1."""
    return (f.exp() / -torch.log(torch.rand_like(f))).argmax(-1, keepdim=True)


def _statistics(p: Tensor, drawn: Tensor) -> tuple[Tensor, ...]:
    log_p = p.gather(-1, drawn).squeeze(-1).log()
    most, argmax = p.max(-1)
    entropy = -(p * torch.log(p + 1e-10)).sum(-1)
    return drawn.squeeze(-1), log_p, argmax, most.log(), entropy
