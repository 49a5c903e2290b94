"""The result of an evaluation: nats of each sequence, their standard errors, and totals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from sedd_fast.evaluate.standard_error import covering_error, student_factor, total
from sedd_fast.names import Mode, Times


@dataclass(frozen=True)
class LikelihoodBound:
    """A bound on the negative log likelihood of sequences, with its standard error.

    A standard error here is the Monte Carlo error of the bound on this very text (it shrinks with
    ``samples``); it does not say how another text would fare. Bound +- 1.96 standard errors is its
    95 % interval by Student's t (:mod:`sedd_fast.evaluate.standard_error`), for every figure.

    Attributes:
        nats: (N,) float64 on the CPU, the bound of each sequence.
        stderr: (N,) float64, its standard error.
        tokens: tokens in each sequence: L, or (N,) int64 where they differ.
        mode: "exact", "paper", "normalised"; "likelihood" where -log p itself is known.
        samples: Monte Carlo samples of each sequence; 0 for "likelihood".
        strict: whether the expected value is an upper bound; False for "paper".
        times: how the noise levels and masks were drawn: "balanced", "stratified" or "antithetic".
        degrees: (N,) float64, the degrees of freedom of ``stderr``; None for infinitely many.
    """

    nats: Tensor
    stderr: Tensor
    tokens: int | Tensor
    mode: Mode | Literal["likelihood"]
    samples: int
    strict: bool
    times: Times = "stratified"
    degrees: Tensor | None = None

    @property
    def total_nats(self) -> float:
        """The bound of all sequences together."""
        return float(self.nats.sum())

    @property
    def total_tokens(self) -> int:
        """Tokens in all sequences together."""
        if isinstance(self.tokens, Tensor):
            return int(self.tokens.sum())
        return self.nats.numel() * self.tokens

    @property
    def total_stderr(self) -> float:
        """Standard error of :attr:`total_nats`; the sequences are drawn independently."""
        variances = (self.stderr / student_factor(self._degrees)).square()
        return float(covering_error(*total(variances, self._degrees)))

    @property
    def perplexity(self) -> float:
        """exp(total nats / total tokens)."""
        return _exp(self.total_nats / self.total_tokens) if self.total_tokens else math.nan

    @property
    def perplexity_stderr(self) -> float:
        """Standard error of :attr:`perplexity`, to first order."""
        return self.perplexity * self.bits_per_token_stderr * math.log(2)

    @property
    def bits_per_token(self) -> float:
        """Total bits over total tokens."""
        return self.bits_per(self.total_tokens)

    @property
    def bits_per_token_stderr(self) -> float:
        """Standard error of :attr:`bits_per_token`."""
        bits = self.total_stderr / math.log(2)
        return bits / self.total_tokens if self.total_tokens else math.nan

    @property
    def _degrees(self) -> Tensor:
        return torch.full_like(self.stderr, torch.inf) if self.degrees is None else self.degrees

    def bits_per(self, units: int) -> float:
        """Total bits over any count of units: characters, bytes, words of the same text."""
        return self.total_nats / math.log(2) / units if units else math.nan

    @property
    def description(self) -> str:
        """The estimator in a few words."""
        if self.mode == "likelihood":
            return "exact likelihood, nothing is drawn"
        strictness = "upper bound" if self.strict else "not a strict bound"
        return f"{self.mode}, {strictness}, {self.samples} samples a sequence, {self.times}"


def join(bounds: Sequence[LikelihoodBound]) -> LikelihoodBound:
    """The bound of several batches together, sequences in order; their lengths may differ.

    Raises:
        ValueError: nothing to join, or the batches differ in mode, samples or times.
    """
    if not bounds:
        raise ValueError("bounds: expected at least one to join, got none")
    kinds = {(b.mode, b.samples, b.times) for b in bounds}
    if len(kinds) > 1:
        raise ValueError(f"bounds: expected one mode, samples and times, got {sorted(kinds)}")
    nats = torch.cat([bound.nats for bound in bounds])
    stderr = torch.cat([bound.stderr for bound in bounds])
    degrees = torch.cat([bound._degrees for bound in bounds])
    lengths = torch.cat([torch.as_tensor(b.tokens).expand(len(b.nats)) for b in bounds])
    same = bool((lengths == lengths[:1]).all()) and len(lengths) > 0
    tokens = int(lengths[0]) if same else lengths
    return replace(bounds[0], nats=nats, stderr=stderr, tokens=tokens, degrees=degrees)


def _exp(x: float) -> float:
    return math.exp(x) if x < 709 else math.inf
