"""From p(x_0 | x_t) to scores and back: runs the networks of MDLM, RADD, D3PM and LLaDA.

With E = expm1(sigma), rho = E / (E + V), and p(y) = p(x_0 = y | x_t) at one position, the ratios
that noise makes give s_y = sum over x_0 of p(x_0) p(y | x_0) / p(x_t | x_0) in closed form:

    absorbing, x_t = mask:  s_y = p(y) / E                              p(y) = s_y / sum(s)
    uniform, y != x_t:      s_y = (V/E) p(y) + c                        p(y) = (E/V) (s_y - c)
                            c = 1 - p(x_t) + rho p(x_t)                 c = (1 - exp(-sigma)) T / V

with T = 1 + the sum of s over y != x_t, and p(x_t) what is missing to 1. A position of the
absorbing graph that is not masked has p = [y = x_t], and its scores are never read.

Source: Lou, Meng, Ermon 2024 (arXiv 2310.16834), section 3.3; Ou et al. 2024 (arXiv 2406.03736),
theorem 1 (absorbing); Sahoo et al. 2024 (arXiv 2406.07524), section 3.2.3 (SUBS).
"""

import math
import typing
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sedd_fast.backends import values
from sedd_fast.backends.coefficients import log_expm1
from sedd_fast.backends.dtypes import at_least_fp32
from sedd_fast.backends.inputs import ReverseInputs
from sedd_fast.backends.tracing import is_traced
from sedd_fast.models import exposed_head, overrides
from sedd_fast.models.attention import check_padding_alone, masked
from sedd_fast.models.cross_entropy import CrossEntropyRequest
from sedd_fast.models.denoise_request import DenoiseRequest
from sedd_fast.models.interface import (
    HeadRequest,
    ReverseStepRequest,
    ScoreEntropyRequest,
    evaluating,
)
from sedd_fast.models.linear_head import LinearHead
from sedd_fast.models.mask_column import check_logits, with_mask, without_mask
from sedd_fast.ops import _arguments as arguments
from sedd_fast.ops import reverse_probs
from sedd_fast.process.graphs import Graph


def score_from_posterior(
    logits: Tensor, sigma: Tensor | float, x_t: Tensor, graph: Graph, zero_masking: bool = True
) -> Tensor:
    """Log scores of a network that predicts x_0; the module's docstring has the formulas.

    Args:
        logits: (B, L, V), log p(x_0 = y | x_t) up to a constant a row: log probabilities or raw
            logits, float32, bfloat16, float16 or float64; -inf for probability 0. The columns are
            the real tokens in the order of their states. With the absorbing graph also
            (B, L, V + 1), a column for every state, that of the mask included.
        sigma: total noise, a number, (B,) or (B, 1); positive.
        x_t: (B, L) int64, noised tokens.
        graph: ``Absorbing(V)`` or ``Uniform(V)``.
        zero_masking: the mask's column of (B, L, V + 1) logits is left out of the softmax, since
            x_0 holds no mask (SUBS's zero masking probability). False: it is part of the softmax,
            and the scores of the real tokens sum to less than 1/E.

    Returns:
        (B, L, graph.dim) log scores, 0 at x_t; float64 for float64 logits, else float32. Sums over
        a row are used in float64. Differentiable in ``logits``.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or value; the message says which.

    Example:
        >>> log_score = score_from_posterior(network(x_t), sigma, x_t, graph)
    """
    sigma = _checked(logits, sigma, x_t, graph)
    if graph.kind == "uniform":
        return _uniform_score(at_least_fp32(logits), sigma, x_t, graph.vocab_size)
    real = without_mask(at_least_fp32(logits), graph)
    total = (real if zero_masking else at_least_fp32(logits)).logsumexp(-1).double()
    shift = total + log_expm1(sigma)[:, None]  # (B, L)
    log_score = real - shift[..., None].to(real.dtype)
    return with_mask(log_score, graph).scatter(-1, x_t[..., None], 0.0)


def posterior_from_score(
    log_score: Tensor, sigma: Tensor | float, x_t: Tensor, graph: Graph
) -> Tensor:
    """p(x_0 = y | x_t) of every token and position; the inverse of :func:`score_from_posterior`.

    The denoising step of the samplers draws from this distribution. Scores that belong to no
    posterior are made into one: negative weights become 0, and rows are normalised.

    Args:
        log_score: (B, L, graph.dim) log scores; the value at x_t is not read.
        sigma, x_t, graph: as in :func:`score_from_posterior`.

    Returns:
        (B, L, V) probabilities of the real tokens in the order of their states, each row summing to
        1; float64 for float64 scores, else float32. Where the mask is not the last state, tokens
        above it are a column to the left. Differentiable in ``log_score``.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or value; the message says which.

    Example:
        >>> p = posterior_from_score(model(x_t, sigma), sigma, x_t, graph)
        >>> best = p.argmax(-1)  # a token where the mask is the last state
    """
    probs = reverse_probs(log_score, x_t, sigma, None, graph, "denoise")
    return without_mask(probs, graph)


class PosteriorModel(nn.Module):
    """Wraps a network of p(x_0 | x_t) as a score network, for every sampler, loss and bound.

    Unmasked positions of the absorbing graph keep their token under every sampler, whatever the
    network predicts there, so SUBS's carry-over unmasking needs no option.

    With ``hidden`` and ``head`` the logits are never formed with the absorbing graph: cross
    entropies, score entropies, bounds and reverse steps are computed from hidden states, as far as
    the head remains a plain layer. Where it has been changed (hooks, adapters, pruning,
    quantisation), and for the uniform graph, the network is called for its logits. What the network
    does besides, its own hooks and wrappers, is bypassed: they are refused, or give logits too.

    Args:
        network: ``(x_t (B, L), sigma (B,)) -> logits`` as :func:`score_from_posterior` takes them,
            or an object that has them as ``.logits`` (Hugging Face).
        graph: ``Absorbing(V)`` or ``Uniform(V)``. Where the network's vocabulary has its mask among
            the tokens, ``Absorbing(V, mask_index)`` keeps its numbers.
        takes_sigma: False: the network is called as ``network(x_t)`` (RADD, LLaDA: for the
            absorbing graph the posterior does not depend on time).
        zero_masking: as in :func:`score_from_posterior`. False: a step needs the mask's
            probability, so samplers form log scores; a cross entropy does not.
        hidden: function ``(network, x_t, sigma) -> (B, L, H)``, or ``(network, x_t)`` without
            ``takes_sigma``: what the network applies its head to. It gets the network as an
            argument, so that a copy of the model (a moving average) runs its own weights.
        head: the network's last layer, an ``nn.Linear`` among its modules, with a row for every
            state. Logits are its output for ``hidden``, and nothing else but the ``softcap``
            (:meth:`check_head` compares them). Further rows, the padding of an embedding, have no
            probability. It may be tied to the embedding.
        softcap: s, of a network whose logits are s * tanh(f / s) (Gemma).
        takes_documents: the network reads the numbers of an attention mask as
            :mod:`sedd_fast.models.attention` describes them. False: it reads a mask as networks of
            `transformers` do, so one of 0 (padding) and 1 alone is accepted.

    Raises:
        TypeError, ValueError: ``network`` is not callable, another graph; one of ``hidden`` and
            ``head`` alone, a network or a layer of another kind.

    Example:
        >>> graph = Absorbing(126463, mask_index=126336)  # LLaDA
        >>> model = PosteriorModel(network, graph, takes_sigma=False)
        >>> tokens = sedd_fast.sample(model, model.graph, noise, shape=(4, 1024), method="hit")
        >>> model = PosteriorModel(  # without logits; a network of Hugging Face
        ...     network, graph, takes_sigma=False, head=network.get_output_embeddings(),
        ...     hidden=lambda network, x_t: network.base_model(x_t).last_hidden_state,
        ... )
        >>> model.check_head(x_t)
    """

    def __init__(
        self,
        network: Callable[..., Any],
        graph: Graph,
        takes_sigma: bool = True,
        zero_masking: bool = True,
        *,
        hidden: Callable[..., Tensor] | None = None,
        head: nn.Module | None = None,
        softcap: float | None = None,
        takes_documents: bool = False,
    ) -> None:
        super().__init__()
        arguments.check_graph(graph)
        if not callable(network):
            raise TypeError(
                f"network must be callable as network(x_t, sigma), got {type(network).__name__}"
            )
        #: Where the head is in the network; kept by name, so that a layer put in its place is seen.
        self._head_name: str | None = None
        if hidden is not None or head is not None or softcap is not None:
            self._head_name = exposed_head.checked(network, graph, hidden, head, softcap)
        self.network, self.graph = network, graph
        self.takes_sigma, self.zero_masking = takes_sigma, zero_masking
        self.hidden, self.softcap = hidden, softcap
        self.takes_documents = takes_documents

    @property
    def head_requests(self) -> tuple[type[HeadRequest], ...]:
        """What needs no scores; nothing where a call does more than forward.

        From logits a cross entropy (absorbing) and tokens with their certainties; from hidden
        states also a score entropy and a reverse step.
        """
        own = overrides.forwards_requests(self, PosteriorModel.forward)
        if not own:
            return ()
        if self.graph.mask_index is None:
            return (DenoiseRequest,)
        fused = self.zero_masking and self._fused_linear() is not None
        others = (ScoreEntropyRequest, ReverseStepRequest) if fused else ()
        return (CrossEntropyRequest, DenoiseRequest, *others)

    def forward(
        self,
        indices: Tensor,
        sigma: Tensor,
        head: HeadRequest | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """(B, L) int64, (B,) -> (B, L, graph.dim) log scores, float32 or float64.

        Of a request, ``head``, the answer: from hidden states where they are known, else a cross
        entropy from the logits and any other from scores. ``attention_mask`` (B, L) is passed to
        the network, and to ``hidden``, under this name.
        """
        given = masked(attention_mask)
        if attention_mask is not None and not self.takes_documents:
            check_padding_alone(attention_mask)
        if head is not None and (linear := self._linear_head(head)) is not None:
            if not is_traced():
                head = head.prepared(indices, sigma, linear)
            return head(self._run(self.hidden, indices, sigma, **given), linear, indices, sigma)
        out = self._run(None, indices, sigma, **given)
        logits = out if isinstance(out, Tensor) else getattr(out, "logits", out)
        if self._head_name is not None:
            logits = logits[..., : self.graph.dim]  # further columns are padding
        if isinstance(head, CrossEntropyRequest):
            return head.of_logits(logits, indices, self.graph, self.zero_masking)
        if isinstance(head, DenoiseRequest):
            return head.of_logits(logits, indices, self.graph)
        scores = score_from_posterior(logits, sigma, indices, self.graph, self.zero_masking)
        return scores if head is None else head.of_scores(scores, indices, sigma, self.graph)

    @torch.no_grad()
    def check_head(self, x_t: Tensor, sigma: Tensor | float = 1.0) -> None:
        """Raise a ValueError unless ``hidden``, ``head`` and ``softcap`` give the network's logits.

        Call it once after the model is made: a transform between hidden states and head (BERT), a
        factor or a cap of the logits are easily overlooked, and losses would be wrong. The network
        runs in evaluation mode, and forms the logits of these tokens.

        Args:
            x_t: (B, L) int64, any tokens.
            sigma: their noise, passed to a network that takes it.
        """
        linear = self._fused_linear()
        if linear is None:
            raise ValueError(
                "check_head: the model has no hidden states to compare; pass hidden and head, an "
                "unchanged nn.Linear, to PosteriorModel"
            )
        sigma = arguments.per_sequence("sigma", sigma, x_t).float()
        with evaluating(self):
            f = linear(self._run(self.hidden, x_t, sigma))
            out = self._run(None, x_t, sigma)
        logits = out if isinstance(out, Tensor) else out.logits
        exposed_head.compare(f, logits, self.softcap)

    def _run(
        self, hidden: Callable[..., Any] | None, indices: Tensor, sigma: Tensor, **given: Tensor
    ) -> Any:
        """What the network returns, or that function of it."""
        inputs = (indices, sigma) if self.takes_sigma else (indices,)
        if hidden is None:
            return self.network(*inputs, **given)
        return hidden(self.network, *inputs, **given)

    def _fused_linear(self) -> nn.Linear | None:
        """The head, if the network's logits are its plain output for the hidden states."""
        if self._head_name is None:
            return None
        return exposed_head.plain(typing.cast(nn.Module, self.network), self._head_name)

    def _linear_head(self, request: HeadRequest) -> LinearHead | None:
        """The head as requests take it; None for one that is not answered from hidden states."""
        if isinstance(request, DenoiseRequest):
            answered, zero_masking = request.is_linear(self.softcap), True
        else:
            zero_masking = self.zero_masking
            answered = self.graph.mask_index is not None and (
                zero_masking or isinstance(request, CrossEntropyRequest)
            )
        linear = self._fused_linear() if answered else None
        # Only here, since FSDP2 gathers the weight when forward is called.
        if linear is None or not overrides.is_dense(linear):
            return None
        excluded = exposed_head.excluded(linear, self.graph, zero_masking)
        return LinearHead(
            linear.weight, linear.bias, self.graph, normalised=zero_masking,
            excluded=excluded, softcap=self.softcap,
        )  # fmt: skip


def _uniform_score(logits: Tensor, sigma: Tensor, x_t: Tensor, size: int) -> Tensor:
    """ln((V/E) p(y) + c), 0 at x_t."""
    own = x_t[..., None]
    others = logits.scatter(-1, own, -torch.inf).logsumexp(-1).double()  # (B, L)
    odds = logits.gather(-1, own).squeeze(-1).double() - others  # of p(x_t) against the rest
    log_kappa = (math.log(size) - log_expm1(sigma))[:, None]
    # c of two positive parts: 1 - p(x_t) from the rest of the row, not by subtraction.
    rest = F.logsigmoid(odds) - F.softplus(log_kappa, threshold=40)  # ln (rho p(x_t))
    log_c = torch.logaddexp(F.logsigmoid(-odds), rest)
    shift = log_kappa - torch.logaddexp(others, logits.gather(-1, own).squeeze(-1).double())
    scaled = logits + shift[..., None].to(logits.dtype)  # ln((V/E) p)
    return torch.logaddexp(scaled, log_c[..., None].to(logits.dtype)).scatter(-1, own, 0.0)


def _checked(logits: Tensor, sigma: Tensor | float, x_t: Tensor, graph: Graph) -> Tensor:
    """sigma as (B,) float64, after all checks."""
    check_logits(logits, graph)
    arguments.check_tokens("x_t", x_t, tuple(logits.shape[:2]))
    arguments.check_device("x_t", x_t, logits, "logits")
    sigma = arguments.per_sequence("sigma", sigma, x_t)
    values.check(ReverseInputs(x_t, sigma, sigma, None, *arguments.process(graph), "denoise"))
    return sigma.double()
