"""Attention masks: padding, and several documents in a sequence.

An attention mask has a number for every position: 0 at padding, and the same number at the
positions of a document, which attend to each other alone (block-diagonal attention) and count their
places from the document's first position. So a padded batch has a mask of 1 and 0, as tokenizers of
`transformers` give it, and packed documents have 1, 2, 3, ...:

    tokens           a b c d e f . .
    attention_mask   1 1 1 2 2 2 0 0
    positions        0 1 2 0 1 2 0 1

A document has the same outputs in any of these batches, up to rounding. Positions of padding attend
to each other, so that no row of the attention is empty; their outputs mean nothing.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sedd_fast.backends.tracing import is_static
from sedd_fast.models.layers import Attend
from sedd_fast.ops import _arguments as arguments
from sedd_fast.process.graphs import Graph


def check_attention_mask(mask: Tensor, tokens: Tensor) -> None:
    """TypeError, ValueError unless the mask has numbers for the tokens (B, L), on their device."""
    if arguments.check_tensor("attention_mask", mask).is_floating_point() or mask.is_complex():
        raise TypeError(
            f"attention_mask must be bool or whole numbers, got {mask.dtype}: 0 at padding, and a "
            "number for every document; convert it with .long()"
        )
    if mask.shape != tokens.shape:
        raise ValueError(
            f"attention_mask must have shape {tuple(tokens.shape)}, a number for every token, got "
            f"{tuple(mask.shape)}"
        )
    arguments.check_device("attention_mask", mask, tokens, "the tokens")


def check_padding_alone(mask: Tensor) -> None:
    """ValueError for a mask of numbers other than 0 and 1; synchronises the device.

    Not checked while a graph is traced or captured.
    """
    if mask.dtype == torch.bool or is_static(mask):
        return
    if bool(((mask != 0) & (mask != 1)).any()):
        raise ValueError(
            "attention_mask has numbers other than 0 (padding) and 1, as for packed documents, "
            "which networks of transformers would read as one document: pad instead, or pass "
            "takes_documents=True to PosteriorModel for a network that keeps them apart"
        )


def masked(attention_mask: Tensor | None) -> dict[str, Tensor]:
    """The keyword argument of a network; none without a mask, for networks that take none."""
    return {} if attention_mask is None else {"attention_mask": attention_mask}


def same_document(mask: Tensor) -> Tensor:
    """(B, L, L) bool: whether two positions have the same number."""
    return torch.eq(mask[:, :, None], mask[:, None, :])


def positions(mask: Tensor) -> Tensor:
    """(B, L) int64: the place of every position within its document, from 0."""
    return same_document(mask).tril().sum(-1) - 1


def within_documents(mask: Tensor) -> Attend:
    """Attention of every position to those of its own document."""
    pairs = same_document(mask)[:, None]  # (B, 1, L, L)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=pairs)

    return attend


def without_padding(tokens: Tensor, mask: Tensor, graph: Graph) -> Tensor:
    """The tokens (B, L) with a token at padding, whatever was there: not the graph's mask."""
    return torch.where(mask != 0, tokens, 1 if graph.mask_index == 0 else 0)
