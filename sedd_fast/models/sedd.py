"""The score network of SEDD: a bidirectional transformer whose blocks are modulated by the noise.

Tokens and the total noise sigma go in, log scores come out (Lou, Meng, Ermon 2024, arXiv
2310.16834, appendix C). :mod:`sedd_fast.models.layers` has its blocks. Names of parameters and
their order are those of the published checkpoints: EMA weights are stored by order.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sedd_fast.backends.coefficients import log_output_scale
from sedd_fast.backends.dtypes import at_least_fp32
from sedd_fast.backends.tracing import is_traced
from sedd_fast.models import layers, overrides
from sedd_fast.models.attention import check_attention_mask, masked, positions, within_documents
from sedd_fast.models.config import SEDDConfig
from sedd_fast.models.cross_entropy import CrossEntropyRequest
from sedd_fast.models.denoise_request import DenoiseRequest
from sedd_fast.models.interface import HeadRequest, ReverseStepRequest, ScoreEntropyRequest
from sedd_fast.models.linear_head import LinearHead
from sedd_fast.models.transformer import Transformer
from sedd_fast.names import NetworkKind
from sedd_fast.ops._arguments import check_device, check_tokens
from sedd_fast.process.graphs import Graph, make_graph
from sedd_fast.process.noise import Noise, make_noise


class SEDD(Transformer):
    """Log scores of every state at every position.

        log_score = model(indices, sigma)      # (B, L) int64, (B,) -> (B, L, dim) fp32
        loss = model(x_t, sigma, ScoreEntropyRequest(x_0))      # never forms the log scores
        x_s = model(x_t, sigma, ReverseStepRequest("denoise"))  # nor does this

    log_score[b, i, y] estimates ln p_t(x with x_i := y) - ln p_t(x); it is 0 at y = indices[b, i].
    With f the output of the head, it is f for the uniform graph and
    f - ln(expm1(sigma)) - ln(vocab_size) for the absorbing one (`scale_by_sigma`; appendix C.2).
    A fresh network gives f = 0: a loss of about L * ln(vocab_size) nats per sequence.

    The network may run under torch.autocast; log scores come out in fp32 (fp64 in a double model).

        model = SEDD(SEDDConfig(vocab_size=96, hidden_size=256, n_blocks=6, n_heads=4, length=256))
        model = SEDD.from_pretrained("louaaron/sedd-small")
    """

    kind: ClassVar[NetworkKind] = "sedd"

    @staticmethod
    def states(config: SEDDConfig) -> tuple[int, int]:
        dim = make_graph(config.graph, config.vocab_size).dim
        return dim, dim

    @property
    def graph(self) -> Graph:
        """The graph the network was made for: `Absorbing` or `Uniform`."""
        return make_graph(self.config.graph, self.config.vocab_size)

    @property
    def noise(self) -> Noise:
        """The noise schedule the network was made for."""
        c = self.config
        return make_noise(c.noise, eps=c.noise_eps, sigma_min=c.sigma_min, sigma_max=c.sigma_max)

    @property
    def head_requests(self) -> tuple[type[HeadRequest], ...]:
        """What the fused head computes; nothing where the head is not the plain layer.

        Hooks on the head or the network, adapters, pruned, quantised or sharded heads and
        overridden methods, `__call__` too, give log scores.
        """
        usable = self._fused_linear() is not None
        own = overrides.forwards_requests(self, SEDD.forward)
        return self._answers() if usable and own else ()

    def forward(
        self,
        indices: Tensor,
        sigma: Tensor,
        head: HeadRequest | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Log scores (B, L, dim) or, of a request, what it asks for.

        A request among `head_requests` never forms log scores; any other is answered from them.

        Args:
            indices: (B, L) int64, tokens now.
            sigma: (B,), (B, 1) or a scalar tensor, total noise.
            head: a :class:`sedd_fast.models.interface.ScoreEntropyRequest` (a loss), a
                :class:`sedd_fast.models.interface.ReverseStepRequest` (the next tokens), a
                :class:`sedd_fast.models.cross_entropy.CrossEntropyRequest` (a loss), a
                :class:`sedd_fast.models.denoise_request.DenoiseRequest` (tokens, and how sure the
                network is of them), or None.
            attention_mask: (B, L), 0 at padding; positions of equal number attend to each other,
                and count their places from the first of them (:mod:`sedd_fast.models.attention`).
                Outputs at padding mean nothing. None: every sequence is one document.

        Raises:
            TypeError, ValueError: a wrong dtype, shape, device or value; the message names it.
        """
        if attention_mask is not None:
            check_attention_mask(attention_mask, indices)
        given = masked(attention_mask)
        if head is None:
            return self._all_log_scores(indices, sigma, **given)
        linear = self._fused_linear()
        # Only here, since FSDP2 gathers the weight when forward is called.
        if (
            linear is None
            or not overrides.is_dense(linear)
            or not isinstance(head, self._answers())
        ):
            log_score = self._all_log_scores(indices, sigma, **given)
            return head.of_scores(log_score, indices, sigma, self.graph)
        parameters = self._linear_head(linear)
        if not is_traced():
            head = head.prepared(indices, sigma, parameters)
        return head(self.features(indices, sigma, **given), parameters, indices, sigma)

    def _answers(self) -> tuple[type[HeadRequest], ...]:
        """What a plain head computes without log scores."""
        requests = ScoreEntropyRequest, ReverseStepRequest, CrossEntropyRequest
        return requests if self.graph.mask_index is None else (*requests, DenoiseRequest)

    def _linear_head(self, linear: nn.Linear) -> LinearHead:
        """The head as requests take it."""
        graph = self.graph
        mask = () if graph.mask_index is None else (graph.mask_index,)
        scaled = self.config.scale_by_sigma
        return LinearHead(linear.weight, linear.bias, graph, scaled, excluded=mask)

    def _all_log_scores(self, indices: Tensor, sigma: Tensor, **given: Tensor) -> Tensor:
        if overrides.has_own_methods(self, "features", "_log_score"):
            # The layer is called as one module: its hooks run, and FSDP2 gathers its parameters.
            output = self.output_layer(*self._body(indices, sigma, **given))
            return self._from_output(output, indices, sigma)
        if not layers.may_be_called_by_parts(self.output_layer):
            raise ValueError(
                f"{type(self).__name__} overrides features or _log_score, which call the parts of "
                "output_layer, and a hook, a wrapper or a forward of its own on output_layer would "
                "not run; override _from_output instead, or remove that from output_layer"
            )
        return self._log_score(self.features(indices, sigma, **given), indices, sigma)

    def _log_score(self, hidden: Tensor, indices: Tensor, sigma: Tensor) -> Tensor:
        """Log scores from the `features`, for subclasses that change either."""
        return self._from_output(self.output_layer.project(hidden), indices, sigma)

    def _from_output(self, output: Tensor, indices: Tensor, sigma: Tensor) -> Tensor:
        """Log scores from the head's output f, (B, L, dim)."""
        # In place: no derivative needs the output of a plain layer, and a copy is B * L * dim
        # numbers. The output of any other layer may be needed by it.
        log_score = at_least_fp32(output)
        if layers.plain_linear(self.output_layer) is None:
            log_score = log_score.clone()
        if self.config.scale_by_sigma:
            scale = log_output_scale(at_least_fp32(sigma), self.config.vocab_size)
            scale = scale.reshape(-1, 1, 1).to(log_score.dtype)  # (B, 1, 1)
            log_score.sub_(scale)
        return log_score.scatter_(-1, indices[..., None], 0.0)

    def features(
        self, indices: Tensor, sigma: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """What the head `output_layer.linear` is applied to: (B, L), (B,) -> (B, L, hidden_size).

        sigma may also be (B, 1) or a scalar tensor; attention_mask as in `forward`. Raises
        TypeError or ValueError for a wrong dtype, shape or device, and on the CPU for a token
        outside [0, dim).
        """
        body = self._body(indices, sigma, **masked(attention_mask))
        return self.output_layer.features(*body)

    def _body(
        self, indices: Tensor, sigma: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the output layer takes: (B, L, hidden_size), and the noise embedding."""
        sigma = _check_input(indices, sigma)
        x = self._embed(indices)
        c = F.silu(self.sigma_map(sigma))  # (B, cond_dim)
        if attention_mask is None:
            rotary = self.rotary_emb(indices.shape[1])
            for block in self.blocks:
                x = block(x, c, rotary)
            return x, c
        rotary = self.rotary_emb(positions(attention_mask))
        attend = within_documents(attention_mask)
        for block in self.blocks:
            x = block(x, c, rotary, attend)
        return x, c

    def _embed(self, indices: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self.vocab_embed(indices)
        try:
            return self.vocab_embed(indices)
        except IndexError:
            raise ValueError(
                f"indices must lie in [0, {self.graph.dim}), got {int(indices.min())} to "
                f"{int(indices.max())}; was the text encoded with the tokenizer of this model?"
            ) from None


def _check_input(indices: Tensor, sigma: Tensor) -> Tensor:
    """Check what the caller gave, and return sigma as (B,)."""
    check_tokens("indices", indices)
    if not sigma.is_floating_point():
        raise TypeError(f"sigma must be floating point, got {sigma.dtype}; call .float()")
    check_device("sigma", sigma, indices, "indices")
    batch = indices.shape[0]
    if sigma.shape not in ((), (batch,), (batch, 1)):
        raise ValueError(
            f"sigma must have shape ({batch},), one total noise per sequence of indices, got "
            f"{tuple(sigma.shape)}"
        )
    return at_least_fp32(sigma).reshape(-1).expand(batch)


overrides.record(SEDD, "features", "_log_score", "_from_output")
