"""The sequences of an evaluation: their tokens, those that the bound is of, and their documents."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sedd_fast.models.attention import check_attention_mask, without_padding
from sedd_fast.ops._arguments import check_graph, check_mask, check_tokens
from sedd_fast.process.graphs import Graph


@dataclass(frozen=True)
class Sequences:
    """Sequences whose likelihood is bounded.

    Attributes:
        x_0: (N, L) int64, clean tokens.
        evaluated: (N, L) bool: the bound is that of these tokens given all others.
        attention_mask: (N, L), 0 at padding; None: every sequence is one document.
    """

    x_0: Tensor
    evaluated: Tensor
    attention_mask: Tensor | None

    @classmethod
    def checked(
        cls,
        x_0: Tensor,
        graph: Graph,
        loss_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        name: str = "x_0",
    ) -> "Sequences":
        """The sequences with their masks.

        Raises:
            TypeError, ValueError: a wrong dtype or shape, a token outside the vocabulary, or a
                sequence without a token to evaluate.
        """
        if attention_mask is not None:
            check_tokens(name, x_0)
            check_attention_mask(attention_mask, x_0)
            x_0 = without_padding(x_0, attention_mask, graph)
        check_clean(x_0, graph, name)
        evaluated = torch.ones_like(x_0, dtype=torch.bool)
        if loss_mask is not None:
            check_mask("loss_mask", loss_mask, x_0)
            evaluated = loss_mask
        if attention_mask is not None:
            evaluated = evaluated & (attention_mask != 0)
        none = ~evaluated.any(1)
        if x_0.shape[1] and bool(none.any()):
            raise ValueError(
                f"loss_mask, attention_mask: sequence {int(none.nonzero()[0])} of {name} has no "
                "token to evaluate; leave such sequences out"
            )
        return cls(x_0, evaluated, attention_mask)

    @property
    def counts(self) -> Tensor:
        """(N,) int64, the number of tokens that the bound of each sequence is of."""
        return self.evaluated.sum(1)

    def rows(self, number: Tensor, device: torch.device) -> "Sequences":
        """The sequences of these numbers (R,), on a device."""
        number = number.to(self.x_0.device)
        mask = self.attention_mask
        x_0, evaluated = (each[number].to(device) for each in (self.x_0, self.evaluated))
        return Sequences(x_0, evaluated, None if mask is None else mask[number].to(device))

    def where(self, rare: Tensor) -> "Sequences":
        """The sequences at which `rare` (N,) is True."""
        return self.rows(rare.nonzero().squeeze(-1), self.x_0.device)


def check_clean(x_0: Tensor, graph: Graph, name: str = "x_0") -> None:
    """Raise unless x_0 (B, L) int64, called `name` in messages, holds tokens of the vocabulary."""
    check_graph(graph)
    check_tokens(name, x_0)
    bad = ~graph.is_token(x_0)
    if bool(bad.any()):
        row, column = (int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"{name} holds {int(x_0[row, column])} at position ({row}, {column}); clean tokens are "
            f"{graph.tokens_in_words}: have model and tokenizer the same vocabulary?"
        )
