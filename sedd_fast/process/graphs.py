"""The two noise processes on tokens, as graphs whose edges are the jumps that noise makes.

``Absorbing(V)`` sends every token to a mask, a state of its own, ``Uniform(V)`` to a token chosen
uniformly. A graph is a small frozen value: the operations read its kind, its size and its mask. The
dense formulas below (one row or matrix at a time) are for study, tests and small vocabularies;
training and sampling never build them.

Source: Lou, Meng, Ermon 2024 (arXiv 2310.16834), section 3.3 and equations 15-16.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.types import Device

from sedd_fast.backends.inputs import is_token, tokens_in_words
from sedd_fast.names import GRAPH_NAMES, GraphName
from sedd_fast.ops._arguments import check_choice, check_count, process
from sedd_fast.ops._uniforms import Generator, RowStreams


@dataclass(frozen=True)
class Graph:
    """A noise process over ``vocab_size`` real tokens; use :class:`Absorbing` or :class:`Uniform`.

    Attributes:
        vocab_size: number V of real tokens: all states but the mask.
        kind: ``"absorbing"`` or ``"uniform"``, the name that the operations take.
        mask_index: the mask's state, or None where there is none.

    Raises:
        TypeError: ``vocab_size`` is not an int.
        ValueError: ``vocab_size`` is below 2.
    """

    vocab_size: int
    kind: ClassVar[str]
    mask_index: int | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        remedy = "; pass the number of real tokens, the mask not counted, e.g. Absorbing(50257)"
        size = check_count("vocab_size", self.vocab_size, 2, remedy)
        object.__setattr__(self, "vocab_size", size)

    @property
    def dim(self) -> int:
        """Number of states, the last dimension of a log-score tensor."""
        return self.vocab_size

    def is_token(self, states: Tensor) -> Tensor:
        """Whether each state is a real token; int64 -> bool, of the same shape."""
        return is_token(states, *process(self)[1:])

    @property
    def tokens_in_words(self) -> str:
        """The real tokens, for messages: "0 .. 7", or "0 .. 8 without the mask 3"."""
        return tokens_in_words(*process(self)[1:])

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


@dataclass(frozen=True, init=False)
class Absorbing(Graph):
    """Every token falls to the mask with rate 1 and stays there; ``dim`` is V + 1.

    Args:
        vocab_size: number V of real tokens, the mask not counted.
        mask_index: the mask's state, any of 0 .. V; the last one, V, if None. All other states are
            real tokens, so a vocabulary that has its mask among the tokens keeps its numbers.

    Raises:
        TypeError: an argument is not an int.
        ValueError: ``vocab_size`` is below 2, or ``mask_index`` is no state.

    Example:
        >>> graph = Absorbing(50257)
        >>> graph.dim, graph.mask_index
        (50258, 50257)
        >>> Absorbing(126463, mask_index=126336).dim  # LLaDA
        126464
    """

    kind = "absorbing"
    mask_index: int

    def __init__(self, vocab_size: int, mask_index: int | None = None) -> None:
        super().__init__(vocab_size)
        last = self.vocab_size
        if mask_index is not None:
            remedy = f"; the states of {last} tokens and a mask are 0 .. {last}"
            mask_index = check_count("mask_index", mask_index, 0, remedy, most=last)
        object.__setattr__(self, "mask_index", last if mask_index is None else mask_index)

    def __repr__(self) -> str:
        mask = "" if self.mask_index == self.vocab_size else f", mask_index={self.mask_index}"
        return f"{type(self).__name__}(vocab_size={self.vocab_size}{mask})"

    @property
    def dim(self) -> int:
        return self.vocab_size + 1

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
