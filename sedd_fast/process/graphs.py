"""The two noise processes on tokens, as graphs whose edges are the jumps that noise makes.

``Absorbing(V)`` sends every token to a mask (state ``V``), ``Uniform(V)`` to a token chosen
uniformly. A graph is a small frozen value: the operations read its kind and size. The dense
formulas below (one row or matrix at a time) are for study, tests and small vocabularies; training
and sampling never build them.

Source: Lou, Meng, Ermon 2024 (arXiv 2310.16834), section 3.3 and equations 15-16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Graph:
    """A noise process over ``vocab_size`` real tokens; use :class:`Absorbing` or :class:`Uniform`.

    Attributes:
        vocab_size: number V of real tokens, 0 .. V-1.

    Raises:
        TypeError: ``vocab_size`` is not an int.
        ValueError: ``vocab_size`` is below 2.
    """

    vocab_size: int

    def __post_init__(self) -> None:
        if isinstance(self.vocab_size, bool) or not isinstance(self.vocab_size, int):
            raise TypeError(
                f"vocab_size must be an int, got {type(self.vocab_size).__name__}; "
                "pass the number of real tokens, e.g. Absorbing(50257)"
            )
        if self.vocab_size < 2:
            raise ValueError(
                f"vocab_size must be at least 2, got {self.vocab_size}; "
                "pass the number of real tokens, the mask not counted"
            )

    @property
    def kind(self) -> str:
        """``"absorbing"`` or ``"uniform"``: the name that the operations take."""
        raise NotImplementedError

    @property
    def dim(self) -> int:
        """Number of states, the last dimension of a log-score tensor."""
        raise NotImplementedError

    @property
    def mask_index(self) -> int | None:
        """The mask's state, or None where there is none."""
        raise NotImplementedError

    def rate_matrix(self) -> Tensor:
        """The generator Q, (dim, dim) float64; column i holds the rates out of state i.

        ``transition_matrix(sigma) = matrix_exp(sigma * Q)``.
        """
        raise NotImplementedError

    def transition_matrix(self, sigma: float) -> Tensor:
        """exp(sigma Q), (dim, dim) float64: entry [y, x] is p(x_t = y | x_0 = x)."""
        raise NotImplementedError

    def sample_limit(
        self,
        shape: tuple[int, ...],
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Tokens of the process at infinite noise, int64 of the given shape."""
        raise NotImplementedError


@dataclass(frozen=True)
class Absorbing(Graph):
    """Every token falls to the mask with rate 1 and stays there; ``dim`` is V + 1.

    Example:
        >>> graph = Absorbing(50257)
        >>> graph.dim, graph.mask_index
        (50258, 50257)
    """

    @property
    def kind(self) -> str:
        return "absorbing"

    @property
    def dim(self) -> int:
        return self.vocab_size + 1

    @property
    def mask_index(self) -> int:
        return self.vocab_size

    def rate_matrix(self) -> Tensor:
        rates = -torch.eye(self.dim, dtype=torch.float64)
        rates[self.mask_index] += 1
        return rates

    def transition_matrix(self, sigma: float) -> Tensor:
        keep = torch.exp(torch.tensor(-sigma, dtype=torch.float64))
        matrix = keep * torch.eye(self.dim, dtype=torch.float64)
        matrix[self.mask_index] += 1 - keep
        return matrix

    def sample_limit(
        self,
        shape: tuple[int, ...],
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return torch.full(shape, self.mask_index, dtype=torch.int64, device=device)


@dataclass(frozen=True)
class Uniform(Graph):
    """Every token jumps to each of the V tokens with rate 1/V; ``dim`` is V.

    Example:
        >>> Uniform(27).dim
        27
    """

    @property
    def kind(self) -> str:
        return "uniform"

    @property
    def dim(self) -> int:
        return self.vocab_size

    @property
    def mask_index(self) -> None:
        return None

    def rate_matrix(self) -> Tensor:
        size = self.vocab_size
        return torch.full((size, size), 1 / size, dtype=torch.float64) - torch.eye(
            size, dtype=torch.float64
        )

    def transition_matrix(self, sigma: float) -> Tensor:
        size = self.vocab_size
        keep = torch.exp(torch.tensor(-sigma, dtype=torch.float64))
        return keep * torch.eye(size, dtype=torch.float64) + (1 - keep) / size

    def sample_limit(
        self,
        shape: tuple[int, ...],
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        draw_on = generator.device if generator is not None else device
        tokens = torch.randint(
            self.vocab_size, shape, dtype=torch.int64, device=draw_on, generator=generator
        )
        return tokens.to(device) if device is not None else tokens


def make_graph(kind: str, vocab_size: int) -> Graph:
    """The graph of that name: "absorbing" (or the original's "absorb") or "uniform".

    Raises:
        ValueError: another name.
    """
    if kind in ("absorbing", "absorb"):
        return Absorbing(vocab_size)
    if kind == "uniform":
        return Uniform(vocab_size)
    raise ValueError(f"graph must be 'absorbing' or 'uniform', got {kind!r}")
