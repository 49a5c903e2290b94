"""The likelihood of text under the autoregressive baseline: exact, without sampling."""

import torch
from torch import Tensor

from sedd_fast.evaluate.result import LikelihoodBound
from sedd_fast.evaluate.sequences import check_clean
from sedd_fast.losses.next_token import NextTokenLoss
from sedd_fast.models.autoregressive import Autoregressive
from sedd_fast.models.interface import device_of, evaluating
from sedd_fast.process.graphs import Absorbing


@torch.no_grad()
def exact_likelihood(
    model: Autoregressive, blocks: Tensor, batch_size: int = 16
) -> LikelihoodBound:
    """-ln p of each block; its first token is predicted from the start symbol alone.

        -ln p(x) = - sum over i of ln p(x_i | x_1 .. x_{i-1})

    Args:
        blocks: (N, L) int64 tokens, moved to the model's device batch by batch.
        batch_size: blocks read at once.

    Returns:
        A bound of mode "likelihood", standard errors 0.

    Raises:
        ValueError: tokens outside the vocabulary.
    """
    check_clean(blocks, Absorbing(model.config.vocab_size), "blocks")
    objective, device = NextTokenLoss(), device_of(model)
    with evaluating(model):
        nats = [objective(model, some.to(device)).cpu() for some in blocks.split(batch_size)]
    total = torch.cat(nats).double()
    zero = torch.zeros_like(total)
    return LikelihoodBound(total, zero, blocks.shape[1], "likelihood", 0, strict=True)
