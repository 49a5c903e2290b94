"""A batch of sequences: the tokens, the positions that carry loss, and the documents."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Sequences for training, with masks.

    Args:
        tokens: (B, L) int64.
        loss_mask: (B, L) bool, True at the positions that are noised and carry loss; None: all.
        attention_mask: (B, L) int64. Positions of a row with equal numbers form one document, 0 is
            padding; None: each row is one document without padding.
        global_loss_tokens: `loss_tokens` of the global batch, which is that of all processes and
            all accumulation steps. 0: this batch is the whole of it.
        global_documents: `documents` of the global batch, likewise.
        global_tokens: `real_tokens` of the global batch, likewise.

    Raises:
        ValueError: a mask of another shape or dtype.
    """

    tokens: Tensor
    loss_mask: Tensor | None = None
    attention_mask: Tensor | None = None
    global_loss_tokens: int = 0
    global_documents: int = 0
    global_tokens: int = 0

    def __post_init__(self) -> None:
        for name, dtype in (("loss_mask", torch.bool), ("attention_mask", torch.int64)):
            mask = getattr(self, name)
            if mask is not None and (mask.shape != self.tokens.shape or mask.dtype != dtype):
                raise ValueError(
                    f"{name}: expected {dtype} of shape {tuple(self.tokens.shape)} as tokens has, "
                    f"got {mask.dtype} of shape {tuple(mask.shape)}"
                )
        own = {"loss_tokens": "loss_tokens", "documents": "documents", "tokens": "real_tokens"}
        for name, of_batch in own.items():
            if not getattr(self, f"global_{name}"):
                object.__setattr__(self, f"global_{name}", getattr(self, of_batch))

    @classmethod
    def of_blocks(cls, tokens: Tensor, count: int) -> "Batch":
        """Blocks (B, L) without masks, of a global batch of `count` blocks."""
        number = count * tokens.shape[1]
        return cls(tokens, global_loss_tokens=number, global_documents=count, global_tokens=number)

    def __len__(self) -> int:
        """The number of rows, B."""
        return self.tokens.shape[0]

    @property
    def loss_tokens(self) -> int:
        """The number of positions with loss. Synchronises the device."""
        return self.tokens.numel() if self.loss_mask is None else int(self.loss_mask.sum())

    @property
    def real_tokens(self) -> int:
        """The number of positions that are not padding. Synchronises the device."""
        if self.attention_mask is None:
            return self.tokens.numel()
        return int((self.attention_mask > 0).sum())

    @property
    def documents(self) -> int:
        """The number of documents with loss. Synchronises the device."""
        if self.tokens.numel() == 0 or (self.loss_mask is None and self.attention_mask is None):
            return len(self)
        numbers = self.attention_mask
        if numbers is None:
            numbers = torch.ones_like(self.tokens)
        has_loss = numbers > 0 if self.loss_mask is None else self.loss_mask & (numbers > 0)
        counts = numbers.new_zeros(len(self), int(numbers.max()) + 1)
        counts.scatter_add_(1, numbers, has_loss.to(counts.dtype))
        return int((counts > 0).sum())

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on `device`; the global numbers stay."""
        return self._with([each if each is None else each.to(device) for each in self._tensors])

    def chunk(self, n: int) -> list["Batch"]:
        """At most `n` parts along B, as `torch.chunk` cuts; each has the same global numbers."""
        parts = [
            [None] * n if each is None else [*each.chunk(n)]  # of an empty share: one, empty
            for each in self._tensors
        ]
        return [self._with(part) for part in zip(*parts, strict=False)]

    def rows(self, part: slice) -> "Batch":
        """These rows, with the same global numbers."""
        return self._with([each if each is None else each[part] for each in self._tensors])

    @property
    def masks(self) -> dict[str, Tensor]:
        """The masks that there are, as arguments of an objective or a bound."""
        found = {"loss_mask": self.loss_mask, "attention_mask": self.attention_mask}
        return {name: mask for name, mask in found.items() if mask is not None}

    @property
    def _tensors(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self.tokens, self.loss_mask, self.attention_mask

    def _with(self, tensors: Sequence[Tensor | None]) -> "Batch":
        tokens, loss_mask, attention_mask = tensors
        assert tokens is not None
        numbers = self.global_loss_tokens, self.global_documents, self.global_tokens
        return Batch(tokens, loss_mask, attention_mask, *numbers)
