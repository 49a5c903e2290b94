"""A token for every position from p(x_0 | x_t), and how sure the network is of the position.

Samplers that unmask first what the network is sure of (:mod:`sedd_fast.sampling.decoding`) ask for
it. A head answers by :func:`sedd_fast.linear_denoise`, without logits. Of other networks the rows
that are listed are taken from their logits, or from their scores s, a few at a time:

    absorbing, at a mask:  p = s / sum(s)         uniform:  the denoising step's distribution

**Classifier-free guidance** of weight w draws from softmax((1 + w) f - w f'), f' the logits of the
unconditional sequence. They come from one batch: the sequences, then the unconditional ones. The
head is linear, so its output for the hidden states (1 + w) h - w h' is this mixture up to its
bias, which (1 + w) - w = 1 leaves as it is: the guided distribution needs no logits either.

Source: Nie et al. 2024 (arXiv 2410.18514), equation 5 (guidance of masked models).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sedd_fast.backends import values
from sedd_fast.backends.dtypes import at_least_fp32
from sedd_fast.backends.reference.linear_denoise import of_outputs
from sedd_fast.backends.softmax import Denoised, DenoiseInputs
from sedd_fast.models.interface import HeadRequest
from sedd_fast.models.linear_head import LinearHead
from sedd_fast.models.mask_column import check_logits, with_mask
from sedd_fast.names import Certainty, Wanted
from sedd_fast.ops import TouchedRows, linear_denoise, reverse_probs
from sedd_fast.ops import _arguments as arguments
from sedd_fast.process.graphs import Graph

_PIECE = 1 << 22  #: number of logits worked on together


@dataclass(frozen=True)
class DenoiseRequest(HeadRequest):
    """Tokens and certainties of listed positions, (2, R, L) float64.

    The first part holds the tokens, -1 at positions that are not listed, the second how sure the
    network is of them, NaN there: more is surer. Certainties are those of p itself, at temperature
    1 and with all tokens. Neither the mask nor a row of the head that is no state is drawn.

    Args:
        rows: the positions b * L + i.
        certainty: "log_prob": ln p(token); "margin": p of the likeliest token less that of the
            second; "entropy": minus the entropy, in nats.
        u: (R, L, 2) float64, of which u[..., 1] draws the token; None for temperature 0.
        temperature, top_p: of the draw. Temperature 0 takes the likeliest token, the first of
            equal ones.
        guidance: w > 0: the network is called with 2 R sequences, the last R unconditional, and
            the answer is that of the first R.
    """

    rows: TouchedRows
    certainty: Certainty = "log_prob"
    u: Tensor | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    guidance: float = 0.0

    def __call__(self, hidden: Tensor, head: LinearHead, x_t: Tensor, sigma: Tensor) -> Tensor:
        if self.guidance:
            hidden = self._guided(at_least_fp32(hidden)).to(hidden.dtype)
        temperature = self.temperature or 1.0
        return self._answer(
            linear_denoise(
                hidden, head.weight, head.bias, self.u, temperature=temperature,
                top_p=self.top_p, softcap=head.softcap, excluded=head.excluded, want=self._wanted,
                rows=self.rows,
            )
        )  # fmt: skip

    def is_linear(self, softcap: float | None) -> bool:
        """Whether the answer is a function of the head's product alone."""
        return softcap is None or not self.guidance

    def of_scores(self, log_score: Tensor, x_t: Tensor, sigma: Tensor, graph: Graph) -> Tensor:
        arguments.check_rows(log_score, graph, x_t=x_t)
        if graph.mask_index is not None:
            return self.of_logits(log_score, x_t, graph)
        log_p = reverse_probs(log_score, x_t, sigma, None, graph, "denoise").log()
        return self.of_logits(log_p, x_t, graph)

    def of_logits(self, logits: Tensor, x_t: Tensor, graph: Graph) -> Tensor:
        """The answer from logits (R, L, V), or with a column for the mask (R, L, V + 1)."""
        check_logits(logits, graph)
        arguments.check_tokens("x_t", x_t, tuple(logits.shape[:2]))
        rows, width = self.rows.index, logits.shape[-1]
        sequences = len(logits) // 2 if self.guidance else len(logits)
        shape = (sequences, logits.shape[1])
        flat = logits.flatten(0, 1)
        made = logits.new_full((2, sequences * shape[1]), torch.nan, dtype=torch.float64)
        made[0] = -1
        for some in rows.split(max(1, _PIECE // width)):
            f = flat[some].double()
            if self.guidance:
                f = self._mixed(f, flat[some + sequences * shape[1]].double())
            f = with_mask(f, graph) if width == graph.vocab_size else f
            if graph.mask_index is not None:
                f[:, graph.mask_index] = -torch.inf
            made[:, some] = self._of_rows(f, some, shape[1])
        return made.view(2, *shape)

    def _of_rows(self, f: Tensor, rows: Tensor, length: int) -> Tensor:
        """The answer (2, N) of rows of logits (N, dim), which are changed."""
        u = None if self.u is None else self.u.flatten(0, 1)[rows, 1]
        inputs = DenoiseInputs(
            self.u, self.temperature or 1.0, self.top_p, [], 0.0,
            bool({"argmax", "margin", "max_log_prob"} & {*self._wanted}),
            self.certainty == "entropy", False,
        )  # fmt: skip
        found = of_outputs(f, u, inputs)
        assert found.log_sum_exp is not None
        values.check_rows_drawable(torch.isfinite(found.log_sum_exp), rows, length)
        return self._answer(found)

    @property
    def _wanted(self) -> tuple[Wanted, Wanted]:
        if self.temperature == 0:
            likeliest = "max_log_prob" if self.certainty == "log_prob" else self.certainty
            return "argmax", likeliest
        return "token", self.certainty

    def _answer(self, found: Denoised) -> Tensor:
        token, certainty = (getattr(found, name) for name in self._wanted)
        sign = -1 if self.certainty == "entropy" else 1
        return torch.stack((token.double(), sign * certainty.double()))

    def _guided(self, both: Tensor) -> Tensor:
        """Of the sequences and the unconditional ones, (2 R, ...) -> (R, ...)."""
        return self._mixed(*both.chunk(2))

    def _mixed(self, f: Tensor, unconditional: Tensor) -> Tensor:
        mixed = f + self.guidance * (f - unconditional)
        return torch.where(f == -torch.inf, f, mixed)
