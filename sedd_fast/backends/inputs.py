"""The inputs of an operation besides log scores or a head: one class an operation.

The public functions make them of tensors whose dtypes and shapes were checked, and every backend
takes them. A graph is given by three scalars; ``*process(graph)`` has them in this order:

    graph       "absorbing" or "uniform"
    vocab_size  V, the number of real tokens: all states but the mask
    mask_index  the mask's state, NO_MASK where there is none

The tensors are

    sigma, dsigma  (B,)               noise; what a reverse step removes
    x_t, x_0       (B, L) int64       noised and clean tokens
    row_weight     (B, L)             factor of a position's loss, or None for 1
    u              (B, L, 2) float64  uniforms in [0, 1)

Noise and weights are float64, or float32 where the caller's are: each backend converts them, the
Triton kernels as they load them, because a conversion beforehand is a launch of its own on a GPU.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

_Inputs = TypeVar("_Inputs", bound="OpInputs")

#: The largest factor of a score, and one over the least, that kernels compute with in float32. At
#: either only the largest score, or every score alike, has weight.
EXTREME_FACTOR = 1e30


def inverse_temperature(temperature: float) -> float:
    """One over the temperature, as kernels take it: 0 or infinity times a score may be NaN."""
    return min(max(1 / temperature, 1 / EXTREME_FACTOR), EXTREME_FACTOR)


#: The ``mask_index`` of a graph without a mask.
NO_MASK = -1

#: The inputs that are token ids; the others are real numbers.
TOKENS = ("x_t", "x_0")


class OpInputs:
    """Tensors, and the diffusion process that they belong to.

    ``TENSORS`` names them: asking the dataclass in every call would take microseconds.
    """

    TENSORS: ClassVar[tuple[str, ...]]
    graph: str
    vocab_size: int
    mask_index: int

    @property
    def dim(self) -> int:
        """Number of states."""
        return number_of_states(self.vocab_size, self.mask_index)

    @property
    def read_states(self) -> int:
        """How many states, from the first, a head must form: a mask that is the last is not read.

        A mask elsewhere is among them. It is x_t wherever a row is read, and so left out.
        """
        return self.vocab_size if self.mask_index == self.vocab_size else self.dim

    @property
    def device(self) -> torch.device:
        """The device of every tensor."""
        return getattr(self, self.TENSORS[0]).device

    @property
    def is_empty(self) -> bool:
        """Whether there is no position."""
        return getattr(self, "x_0" if "x_0" in self.TENSORS else "x_t").numel() == 0

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are not None, by name."""
        named = ((name, getattr(self, name)) for name in self.TENSORS)
        return {name: value for name, value in named if value is not None}

    def contiguous(self: _Inputs, *, keep_fp32: bool = False) -> _Inputs:
        """The same with contiguous tensors; keep the result while its addresses are in use.

        Noise and weights in float64, or also float32 if the kernel takes that (``keep_fp32``).
        """
        changed: dict[str, Any] = {}
        for name in self.TENSORS:
            value = getattr(self, name)
            if value is None:
                continue
            fits = name in TOKENS or value.dtype == torch.float64
            if not fits and not (keep_fp32 and value.dtype == torch.float32):
                changed[name] = value.double().contiguous()
            elif not value.is_contiguous():
                changed[name] = value.contiguous()
        if not changed:
            return self
        made = object.__new__(type(self))  # dataclasses.replace takes microseconds
        vars(made).update(vars(self) | changed)
        return made

    def touched(self) -> Tensor:
        """(B, L) bool: the positions that carry a loss, or may move. Not for NoisingInputs."""
        tensors = self.tensors()
        return touched(tensors["x_t"], tensors.get("row_weight"), self.mask_index)

    def at(self: _Inputs, rows: Tensor) -> _Inputs:
        """The same for R positions b * L + i, each a sequence of its own: x_t (R, 1) and so on.

        Not for NoisingInputs, which have no x_t.
        """
        tensors = self.tensors()
        sequence = rows // max(tensors["x_t"].shape[1], 1)
        changed: dict[str, Any] = {}
        for name, value in tensors.items():
            of_sequences = value.dim() == 1
            changed[name] = value[sequence] if of_sequences else value.flatten(0, 1)[rows, None]
        return replace(self, **changed)  # type: ignore[type-var]


def number_of_states(vocab_size: int, mask_index: int) -> int:
    """The real tokens, and the mask if there is one."""
    return vocab_size + (mask_index != NO_MASK)


def is_token(states: Tensor, vocab_size: int, mask_index: int) -> Tensor:
    """bool: which states are real tokens, not the mask nor out of range."""
    inside = (states >= 0) & (states < number_of_states(vocab_size, mask_index))
    return inside & (states != mask_index)


def tokens_in_words(vocab_size: int, mask_index: int) -> str:
    """The real tokens, for messages: "0 .. 7", or "0 .. 8 without the mask 3"."""
    if mask_index in (NO_MASK, vocab_size):
        return f"0 .. {vocab_size - 1}"
    return f"0 .. {vocab_size} without the mask {mask_index}"


def touched(x_t: Tensor, row_weight: Tensor | None, mask_index: int) -> Tensor:
    """(B, L) bool: the positions that carry a loss of some weight, or may move.

    With a mask they are the masked ones, and those whose loss a weight that is not finite makes
    NaN.
    """
    found = torch.ones_like(x_t, dtype=torch.bool) if mask_index == NO_MASK else x_t == mask_index
    return found if row_weight is None else row_weight * found != 0


@dataclass(frozen=True)
class NoisingInputs(OpInputs):
    """Inputs of sample_transition."""

    TENSORS: ClassVar = ("x_0", "sigma", "u")
    x_0: Tensor
    sigma: Tensor
    u: Tensor
    graph: str
    vocab_size: int
    mask_index: int


@dataclass(frozen=True)
class EntropyInputs(OpInputs):
    """Inputs of score_entropy; with ``scale_by_sigma`` the scores are f of l = f - ln E - ln V."""

    TENSORS: ClassVar = ("sigma", "x_t", "x_0", "row_weight")
    sigma: Tensor
    x_t: Tensor
    x_0: Tensor
    row_weight: Tensor | None
    graph: str
    vocab_size: int
    mask_index: int
    scale_by_sigma: bool = False


@dataclass(frozen=True)
class ReverseInputs(OpInputs):
    """Inputs of reverse_step, and without ``u`` of reverse_probs.

    ``scale_by_sigma`` is that of EntropyInputs.
    """

    TENSORS: ClassVar = ("x_t", "sigma", "dsigma", "u")
    x_t: Tensor
    sigma: Tensor
    dsigma: Tensor
    u: Tensor | None
    graph: str
    vocab_size: int
    mask_index: int
    method: str
    scale_by_sigma: bool = False
    temperature: float = 1.0
    top_p: float = 1.0

    @property
    def changes_shares(self) -> bool:
        """Whether temperature or top_p change the shares of the tokens."""
        return self.temperature != 1 or self.top_p < 1

    @property
    def is_clamped(self) -> bool:
        """Whether weights are max(0, exp(l) + beta), with a beta that needs the sum of the row."""
        return self.graph == "uniform" and self.method != "euler"

    @property
    def inverse_temperature(self) -> float:
        """One over the temperature, as kernels take it."""
        return inverse_temperature(self.temperature)


@dataclass(frozen=True)
class RowSumInputs(OpInputs):
    """Inputs of row_sums: f(a exp(l) + b), f by ``term``; a and b (B, L) float64."""

    TENSORS: ClassVar = ("x_t", "x_0", "a", "b")
    x_t: Tensor
    x_0: Tensor
    a: Tensor
    b: Tensor
    term: str
    graph: str
    vocab_size: int
    mask_index: int
