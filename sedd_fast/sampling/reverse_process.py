"""The reverse process of a network: every network call of a sampler, with the draw that follows it.

The samplers decide when, where and how far to step. How the next tokens are drawn from a network
is decided here alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sedd_fast.models.attention import masked
from sedd_fast.models.interface import ReverseStepRequest, ScoreModel, takes_request
from sedd_fast.names import STEP_METHODS, Method, StepMethod
from sedd_fast.ops import TouchedRows, reverse_probs, reverse_step
from sedd_fast.ops._uniforms import Generator, RowStreams, uniforms
from sedd_fast.process.dense_graph import DenseGraph, categorical, reverse_weights
from sedd_fast.process.graphs import Graph
from sedd_fast.process.noise import Noise
from sedd_fast.sampling.config import SamplerConfig
from sedd_fast.sampling.legacy_gumbel import gumbel_argmax
from sedd_fast.sampling.tau_leap import tau_leap
from sedd_fast.sampling.token_filter import filter_scores


@dataclass(frozen=True)
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
    """

    model: ScoreModel
    graph: Graph
    noise: Noise
    config: SamplerConfig
    generator: Generator | None = None
    attention_mask: Tensor | None = None

    def __post_init__(self) -> None:
        self.config.check_graph(self.graph)

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
            return self._call(x, sigma, request, sequence=sequence)[row, column]
        log_score = self._call(x, sigma, sequence=sequence)[row, column].unsqueeze(1)  # (K, 1, dim)
        here, u = x[row, column].unsqueeze(1), drawn.unsqueeze(1)
        shares = self._shares
        return reverse_step(
            log_score, here, sigma[row], None, self.graph, "denoise", u=u, **shares
        ).squeeze(1)

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
        if mask is not None and sequence is not None:
            mask = mask[sequence]
        return network(x, sigma.float().expand(x.shape[0]), *request, **masked(mask))

    @property
    def _shares(self) -> dict[str, Any]:
        return {"temperature": self.config.temperature, "top_p": self.config.top_p}

    @property
    def _is_fused(self) -> bool:
        """Whether the network draws the tokens itself, and computes no scores besides."""
        fused = takes_request(self.model, self.graph, ReverseStepRequest)
        return fused and not self.config.legacy_fp32_gumbel
