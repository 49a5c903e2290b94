"""graph_lib: the noise processes as the original's ``Absorbing`` and ``Uniform``.

``sample_transition`` and ``score_entropy`` are the fused operations; the rest builds rows of size
``dim`` for each position, in plain torch, for code that asks for them. Nothing in
``sedd_fast.compat`` itself does: the sampler draws with :func:`sedd_fast.reverse_step`.

Scores are exponentiated everywhere but in ``score_entropy``, which takes log scores.

Source of the formulas: Lou, Meng, Ermon 2024 (arXiv 2310.16834), section 3 and equations 15-19.
"""

import abc
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sedd_fast import ops
from sedd_fast.backends.dtypes import at_least_fp32, fp32_or_fp64
from sedd_fast.compat.catsample import sample_categorical
from sedd_fast.process import graphs


def get_graph(config: Any, device: torch.device | str | None = None) -> "Graph":
    """The graph of ``config.graph.type`` ("uniform", "absorb") over ``config.tokens`` tokens.

    ``device`` is not read: a graph holds no tensors.
    """
    kind, kinds = config.graph.type, {"uniform": Uniform, "absorb": Absorbing}
    if kind not in kinds:
        raise ValueError(f"graph.type must be 'uniform' or 'absorb', got {kind!r}")
    return kinds[kind](config.tokens)


def unsqueeze_as(x: Tensor, y: Tensor, back: bool = True) -> Tensor:
    """x with dimensions of size 1 behind (or before) its own, as many as y has."""
    ones = (1,) * (y.dim() - x.dim())
    return x.reshape(*x.shape, *ones) if back else x.reshape(*ones, *x.shape)


class Graph(abc.ABC):
    """A noise process with generator Q. Tokens i are (...) int64; rows are (..., dim)."""

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """Number of states."""

    @property
    @abc.abstractmethod
    def absorb(self) -> bool:
        """Whether the last state is a mask."""

    @abc.abstractmethod
    def rate(self, i: Tensor) -> Tensor:
        """Column i of Q: the rates out of i."""

    @abc.abstractmethod
    def transp_rate(self, i: Tensor) -> Tensor:
        """Row i of Q: the rates into i."""

    @abc.abstractmethod
    def transition(self, i: Tensor, sigma: Tensor) -> Tensor:
        """Column i of exp(sigma Q): p(x_t = y | x_0 = i) over y. sigma broadcasts from the left."""

    def transp_transition(self, i: Tensor, sigma: Tensor) -> Tensor:
        """Row i of exp(sigma Q): p(x_t = i | x_0 = y) over y."""
        raise NotImplementedError

    @abc.abstractmethod
    def staggered_score(self, score: Tensor, dsigma: Tensor) -> Tensor:
        """exp(-dsigma Q) score: p at noise sigma - dsigma over p(x_t) at sigma (equation 19)."""

    @abc.abstractmethod
    def sample_limit(self, *batch_dims: int) -> Tensor:
        """Tokens at infinite noise, on the CPU."""

    @abc.abstractmethod
    def score_entropy(self, score: Tensor, sigma: Tensor, x: Tensor, x0: Tensor) -> Tensor:
        """Loss of each position, in nats, from LOG scores."""

    def sample_transition(self, i: Tensor, sigma: Tensor) -> Tensor:
        """x_t ~ p(. | x_0 = i)."""
        return sample_categorical(self.transition(i, sigma))

    def reverse_rate(self, i: Tensor, score: Tensor) -> Tensor:
        """Rates of the reverse process: score * transp_rate, each row summing to 0."""
        away = (self.transp_rate(i) * score).scatter(-1, i[..., None], 0.0)
        return away.scatter(-1, i[..., None], -away.sum(-1, keepdim=True))

    def sample_rate(self, i: Tensor, rate: Tensor) -> Tensor:
        """One Euler step: a draw from one_hot(i) + rate, rate already times the step size."""
        return sample_categorical(F.one_hot(i, num_classes=self.dim).to(rate.dtype) + rate)


class _Fused(Graph):
    """What both graphs share; to the operations it is the graph that it wraps."""

    def __init__(self, graph: graphs.Graph) -> None:
        self.kind, self.vocab_size, self._graph = graph.kind, graph.vocab_size, graph

    @property
    def dim(self) -> int:
        return self._graph.dim

    @property
    def mask_index(self) -> int | None:
        return self._graph.mask_index

    @property
    def absorb(self) -> bool:
        return self._graph.mask_index is not None

    def sample_limit(self, *batch_dims: int) -> Tensor:
        return self._graph.sample_limit(batch_dims)

    def sample_transition(self, i: Tensor, sigma: Tensor) -> Tensor:
        tokens, sigma = _as_sequences(i, sigma)
        return ops.sample_transition(tokens, sigma, self._graph).reshape(i.shape)

    def score_entropy(self, score: Tensor, sigma: Tensor, x: Tensor, x0: Tensor) -> Tensor:
        tokens, sigma = _as_sequences(x, sigma)
        score = score.reshape(*tokens.shape, score.shape[-1])
        loss = ops.score_entropy(score, sigma, tokens, x0.reshape(tokens.shape), self._graph)
        return loss.reshape(x.shape)

    def _one_hot(self, i: Tensor) -> Tensor:
        return F.one_hot(i, num_classes=self.dim).to(_row_dtype())


class Uniform(_Fused):
    """Every token jumps to each of the ``dim`` tokens with rate 1 / dim."""

    def __init__(self, dim: int) -> None:
        super().__init__(graphs.Uniform(dim))

    def rate(self, i: Tensor) -> Tensor:
        return 1 / self.dim - self._one_hot(i)

    transp_rate = rate  # Q is symmetric

    def transition(self, i: Tensor, sigma: Tensor) -> Tensor:
        sigma = unsqueeze_as(at_least_fp32(sigma), i[..., None])
        return torch.exp(-sigma) * self._one_hot(i) - torch.expm1(-sigma) / self.dim

    transp_transition = transition

    def staggered_score(self, score: Tensor, dsigma: Tensor) -> Tensor:
        dsigma = unsqueeze_as(at_least_fp32(dsigma), score)
        mean = score.mean(-1, keepdim=True)
        return torch.exp(dsigma) * score - torch.expm1(dsigma) * mean


class Absorbing(_Fused):
    """Every token falls to the mask, state ``dim - 1``, with rate 1."""

    def __init__(self, dim: int) -> None:
        super().__init__(graphs.Absorbing(dim))

    def rate(self, i: Tensor) -> Tensor:
        return self._mask_at(i) - self._one_hot(i)

    def transp_rate(self, i: Tensor) -> Tensor:
        return self._from_anywhere(i) - self._one_hot(i)

    def transition(self, i: Tensor, sigma: Tensor) -> Tensor:
        sigma = unsqueeze_as(at_least_fp32(sigma), i[..., None])
        return torch.exp(-sigma) * self._one_hot(i) - torch.expm1(-sigma) * self._mask_at(i)

    def transp_transition(self, i: Tensor, sigma: Tensor) -> Tensor:
        sigma = unsqueeze_as(at_least_fp32(sigma), i[..., None])
        return torch.exp(-sigma) * self._one_hot(i) - torch.expm1(-sigma) * self._from_anywhere(i)

    def staggered_score(self, score: Tensor, dsigma: Tensor) -> Tensor:
        dsigma = unsqueeze_as(at_least_fp32(dsigma), score)
        fallen = torch.expm1(dsigma) * score.sum(-1, keepdim=True)  # (..., 1), taken off the mask
        return torch.exp(dsigma) * score - F.pad(fallen, (self.dim - 1, 0))

    def _mask_at(self, i: Tensor) -> Tensor:
        """1 at the mask, for every token: (..., dim)."""
        return self._one_hot(torch.full_like(i, self.dim - 1))

    def _from_anywhere(self, i: Tensor) -> Tensor:
        """A row of ones where i is the mask, of zeros elsewhere: (..., 1)."""
        return (i == self.dim - 1).to(_row_dtype())[..., None]


def _row_dtype() -> torch.dtype:
    """torch's default dtype, but float32 for a 16-bit one."""
    return fp32_or_fp64(torch.get_default_dtype())


def _as_sequences(i: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (B, L) and noise (B,), as the operations take them.

    The original broadcasts sigma against the tokens; where it differs within a sequence, or the
    tokens are not (B, L), every position becomes a sequence of its own.
    """
    if i.dim() == 2 and sigma.shape in ((), i.shape[:1], (i.shape[0], 1)):
        return i, sigma
    return i.reshape(-1, 1), unsqueeze_as(sigma, i).expand(i.shape).reshape(-1)
