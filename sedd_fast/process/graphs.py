"""The two noise processes on tokens, as graphs whose edges are the jumps that noise makes.

``Absorbing(V)`` sends every token to a mask (state ``V``), ``Uniform(V)`` to a token chosen
uniformly. A graph is a small frozen value: the operations read its kind and size. The dense
formulas below (one row or matrix at a time) are for study, tests and small vocabularies; training
and sampling never build them.

Source: Lou, Meng, Ermon 2024 (arXiv 2310.16834), section 3.3 and equations 15-16.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.types import Device

from sedd_fast.names import GRAPH_NAMES, GraphName
from sedd_fast.ops._arguments import check_choice, check_count
from sedd_fast.ops._uniforms import Generator, RowStreams


@dataclass(frozen=True)
class Graph:
    """A noise process over ``vocab_size`` real tokens; use :class:`Absorbing` or :class:`Uniform`.

    Attributes:
        vocab_size: number V of real tokens, 0 .. V-1.
        kind: ``"absorbing"`` or ``"uniform"``, the name that the operations take.

    Raises:
        TypeError: ``vocab_size`` is not an int.
        ValueError: ``vocab_size`` is below 2.
    """

    vocab_size: int
    kind: ClassVar[str]

    def __post_init__(self) -> None:
        remedy = "; pass the number of real tokens, the mask not counted, e.g. Absorbing(50257)"
        size = check_count("vocab_size", self.vocab_size, 2, remedy)
        object.__setattr__(self, "vocab_size", size)

    @property
    def dim(self) -> int:
        """Number of states, the last dimension of a log-score tensor."""
        return self.vocab_size

    @property
    def mask_index(self) -> int | None:
        """The mask's state, or None where there is none."""
        return None

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
        generator: Generator | None = None,
    ) -> Tensor:
        """Tokens of the process at infinite noise, int64 of the given shape."""
        tokens = self._limit(shape, device if generator is None else generator.device, generator)
        return tokens if device is None else tokens.to(device)

    def _limit(self, shape: tuple[int, ...], device: Device, generator: Generator | None) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Absorbing(Graph):
    """Every token falls to the mask with rate 1 and stays there; ``dim`` is V + 1.

    Example:
        >>> graph = Absorbing(50257)
        >>> graph.dim, graph.mask_index
        (50258, 50257)
    """

    kind = "absorbing"

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

    def _limit(self, shape: tuple[int, ...], device: Device, generator: Generator | None) -> Tensor:
        return torch.full(shape, self.mask_index, dtype=torch.int64, device=device)


@dataclass(frozen=True)
class Uniform(Graph):
    """Every token jumps to each of the V tokens with rate 1/V; ``dim`` is V.

    Example:
        >>> Uniform(27).dim
        27
    """

    kind = "uniform"

    def rate_matrix(self) -> Tensor:
        return 1 / self.dim - torch.eye(self.dim, dtype=torch.float64)

    def transition_matrix(self, sigma: float) -> Tensor:
        keep = torch.exp(torch.tensor(-sigma, dtype=torch.float64))
        return keep * torch.eye(self.dim, dtype=torch.float64) + (1 - keep) / self.dim

    def _limit(self, shape: tuple[int, ...], device: Device, generator: Generator | None) -> Tensor:
        if isinstance(generator, RowStreams):
            return (generator.uniform(shape) * self.vocab_size).long()
        return torch.randint(self.vocab_size, shape, device=device, generator=generator)


def make_graph(kind: GraphName, vocab_size: int) -> Graph:
    """The graph of that name: "absorbing" (or the original's "absorb") or "uniform".

    Raises:
        ValueError: another name.
    """
    check_choice("graph", kind, GRAPH_NAMES)
    return Uniform(vocab_size) if kind == "uniform" else Absorbing(vocab_size)
