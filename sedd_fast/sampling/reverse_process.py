"""The reverse process of a network: every network call of a sampler, with the draw that follows it.

The samplers decide when, where and how far to step. How the next tokens are drawn from a network
is decided here alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sedd_fast.backends.values import UndrawableError
from sedd_fast.models.attention import masked
from sedd_fast.models.denoise_request import DenoiseRequest
from sedd_fast.models.interface import ReverseStepRequest, ScoreModel, answer, takes_request
from sedd_fast.names import STEP_METHODS, Certainty, Method, StepMethod
from sedd_fast.ops import TouchedRows, reverse_probs, reverse_step
from sedd_fast.ops._uniforms import Generator, RowStreams, uniforms
from sedd_fast.process.dense_graph import DenseGraph, categorical, reverse_weights
from sedd_fast.process.graphs import Graph
from sedd_fast.process.noise import Noise
from sedd_fast.sampling.config import SamplerConfig
from sedd_fast.sampling.legacy_gumbel import gumbel_argmax
from sedd_fast.sampling.tau_leap import tau_leap
from sedd_fast.sampling.token_filter import filter_scores


@dataclass
class ReverseProcess:
    """Draws next tokens from a network.

    Args:
        model: ``(tokens (B, L), sigma (B,)) -> log_score (B, L, graph.dim)``.
        graph: ``Absorbing(V)``, ``Uniform(V)`` or a ``DenseGraph``.
        noise: the schedule that the network was trained with.
        config: the settings; they are checked against the graph.
        generator: source of all randomness: of the batch, or a stream for every row; torch's own if
            None.
        attention_mask: (B, L), passed to the network; None: the network is passed none.
        known: (B, L) bool, given tokens and padding; None: there are none.
        unconditional: (B, L), what the unconditional sequences of classifier-free guidance hold at
            known positions; None: the mask.

    Attributes:
        network_calls: (B,) int64, how often each sequence has gone through the network with a
            token left to draw.
    """

    model: ScoreModel
    graph: Graph
    noise: Noise
    config: SamplerConfig
    generator: Generator | None = None
    attention_mask: Tensor | None = None
    known: Tensor | None = None
    unconditional: Tensor | None = None
    network_calls: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.config.check_graph(self.graph)

    def begin(self, x: Tensor) -> None:
        """Count the network calls of the sequences x (B, L) from 0."""
        self.network_calls = torch.zeros(len(x), dtype=torch.int64, device=x.device)

    def known_of(self, x: Tensor) -> Tensor:
        """(B, L) bool: ``known``, False without any."""
        return torch.zeros_like(x, dtype=torch.bool) if self.known is None else self.known

    def text_of(self, x: Tensor) -> Tensor:
        """(B, L) bool: what is not padding."""
        if self.attention_mask is None:
            return torch.ones_like(x, dtype=torch.bool)
        return self.attention_mask != 0

    def begin_draw(self, step: int, number: int = 0) -> None:
        """Streams of rows go on at a place of this draw alone, number 0 or 1 of the step.

        A draw is left out where no sequence of the batch can change; it must not move the others.
        """
        if isinstance(self.generator, RowStreams):
            self.generator.begin(1 + 2 * step + number)

    def step(
        self, x: Tensor, sigma: Tensor, removed: Tensor, method: Method | StepMethod
    ) -> Tensor:
        """The next token of every position: one network call, one draw a position.

        Args:
            x: (B, L) tokens now.
            sigma: () float64, total noise now.
            removed: () float64: for "analytic" the noise removed, for "euler" and "tau_leaping"
                the step size times the noise rate; not read by "denoise".
            method: "tau_leaping" or a method of :func:`sedd_fast.reverse_step`.

        Returns:
            (B, L) int64; x itself, without a network call, where no position can change.
        """
        graph, generator = self.graph, self.generator
        if self.all_unmasked(x):
            return x
        if method == "tau_leaping":
            log_score = self._call(x, sigma)
            return tau_leap(log_score, x, removed, graph, generator, **self._shares)
        assert method in STEP_METHODS, method
        if self._is_fused:
            u = uniforms(x, None, generator)
            return self._call(x, sigma, ReverseStepRequest(method, removed, u, **self._shares))
        log_score = self._call(x, sigma)
        if isinstance(graph, DenseGraph):
            weights = reverse_weights(log_score, x, sigma, removed, graph, method)
            return categorical(weights, x, generator)
        if self.config.legacy_fp32_gumbel:
            probs = reverse_probs(log_score, x, sigma, removed, graph, method, **self._shares)
            # As the original, which draws no number for the mask, its last state, when it denoises.
            ends_in_mask = method == "denoise" and graph.mask_index == graph.vocab_size
            return gumbel_argmax(probs[..., :-1] if ends_in_mask else probs, generator)
        u = uniforms(x, None, generator)
        return reverse_step(log_score, x, sigma, removed, graph, method, u=u, **self._shares)

    def unmask(
        self,
        x: Tensor,
        sigma: Tensor,
        row: Tensor,
        column: Tensor,
        drawn: Tensor,
        sequence: Tensor,
    ) -> Tensor:
        """Tokens at chosen masked positions, in proportion to the scores: p(y) = s_y / sum(s).

        One network call; only its scores at these positions are read.

        Args:
            x: (R, L) the sequences in which a position is to be drawn; the graph is absorbing.
            sigma: (R,) float64, their noise.
            row, column: (K,) int64, the masked positions in x.
            drawn: (K, 2) float64, their uniforms.
            sequence: (R,) int64, the numbers of the sequences x in the batch.

        Returns:
            (K,) int64, never the mask.
        """
        if self._is_fused:
            u = torch.zeros((*x.shape, 2), dtype=torch.float64, device=x.device)  # unread elsewhere
            u[row, column] = drawn
            rows = TouchedRows.at(row * x.shape[1] + column)
            request = ReverseStepRequest("denoise", None, u, rows, **self._shares)
            with _numbered_in_batch(lambda r, i: (sequence[r], i)):
                return self._call(x, sigma, request, sequence=sequence)[row, column]
        log_score = self._call(x, sigma, sequence=sequence)[row, column].unsqueeze(1)  # (K, 1, dim)
        here, u = x[row, column].unsqueeze(1), drawn.unsqueeze(1)
        shares = self._shares
        with _numbered_in_batch(lambda k, _: (sequence[row[k]], column[k])):
            return reverse_step(
                log_score, here, sigma[row], None, self.graph, "denoise", u=u, **shares
            ).squeeze(1)

    def denoise(
        self,
        x: Tensor,
        sigma: Tensor,
        where: Tensor,
        u: Tensor | None,
        sequence: Tensor,
        certainty: Certainty,
    ) -> tuple[Tensor, Tensor]:
        """A token from p(x_0 | x_t) at chosen positions, and how sure the network is of them.

        One network call, with the temperature, top-p and guidance of the settings.

        Args:
            x: (R, L) tokens now; with guidance (2 R, L), the unconditional sequences last.
            sigma: as many noise levels as sequences.
            where: (R, L) bool, the chosen positions.
            u: (R, L, 2) uniforms; None for temperature 0.
            sequence: (R,) int64, the numbers of the sequences in the batch.
            certainty: what is returned besides.

        Returns:
            (R, L) int64 and (R, L) float64; -1 and NaN elsewhere.

        Raises:
            ValueError: a row that gives no distribution; the message names it.
        """
        rows = TouchedRows.at(where.flatten().nonzero().squeeze(-1))
        guidance = self.config.guidance
        request = DenoiseRequest(rows, certainty, u, guidance=guidance, **self._shares)
        of_all = sequence.repeat(len(x) // len(sequence))
        self.network_calls.index_add_(0, of_all, torch.ones_like(of_all))
        mask = self.attention_mask
        mask = mask if mask is None else mask[of_all]
        with _numbered_in_batch(lambda r, i: (sequence[r], i)):
            token, value = answer(self.model, self.graph, x, sigma.float(), request, mask)
            bad = where & ~((token >= 0) & value.isfinite())
            if bool(bad.any()):  # where an operation did not look, on a GPU
                raise UndrawableError(tuple(bad.nonzero()[0].tolist()))
        return token.long(), value

    def log_score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Log scores (B, L, dim) of x (B, L) at noise sigma (), with temperature and top-p."""
        return filter_scores(self._call(x, sigma), x, self.graph, **self._shares)

    def all_unmasked(self, x: Tensor) -> bool:
        """Whether no mask is left, so that no token can change.

        On a GPU the answer is always False: to find out would synchronise the device.
        """
        mask = self.graph.mask_index
        return mask is not None and x.device.type == "cpu" and not bool((x == mask).any())

    def _call(
        self,
        x: Tensor,
        sigma: Tensor,
        *request: ReverseStepRequest,
        sequence: Tensor | None = None,
    ) -> Tensor:
        network: Callable[..., Tensor] = self.model
        mask = self.attention_mask
        if sequence is None:
            mask_index = self.graph.mask_index
            self.network_calls += 1 if mask_index is None else (x == mask_index).any(-1)
        else:
            self.network_calls[sequence] += 1
            mask = mask if mask is None else mask[sequence]
        return network(x, sigma.float().expand(x.shape[0]), *request, **masked(mask))

    @property
    def _shares(self) -> dict[str, Any]:
        return {"temperature": self.config.temperature, "top_p": self.config.top_p}

    @property
    def _is_fused(self) -> bool:
        """Whether the network draws the tokens itself, and computes no scores besides."""
        fused = takes_request(self.model, self.graph, ReverseStepRequest)
        return fused and not self.config.legacy_fp32_gumbel


@contextmanager
def _numbered_in_batch(place: Callable[[int, int], tuple[Any, Any]]) -> Iterator[None]:
    """Errors of rows name their place in the batch, found from that in the network call."""
    try:
        yield
    except UndrawableError as error:
        row, column = place(*error.position)
        raise UndrawableError((int(row), int(column)), error.of) from None
