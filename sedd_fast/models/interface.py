"""What the rest of the package asks of a network.

A network is any callable ``model(x_t (B, L), sigma (B,)) -> log_score (B, L, graph.dim)``. One that
owns a linear head over the vocabulary can do better than form all log scores: called as
``model(x_t, sigma, request)`` it computes what the request asks for from its last hidden states.
A network of p(x_0 | x_t) without such a head answers one request, a cross entropy, from its logits.
Such a network says so by two attributes (:class:`FusedHeadModel`):

    graph            the graph that its scores belong to
    head_requests    the kinds of :class:`HeadRequest` that its forward takes

The network's own forward answers the request, so that DDP, FSDP2, activation checkpointing and
torch.compile see the head's parameters used in the forward of the module that owns them. Wrappers
of torch that pass their arguments on are looked through (:func:`takes_request`), and the wrapper is
called; a wrapper of another kind takes part by giving itself these two attributes (passing on the
network's by ``__getattr__`` is not enough). A user's hook on any of them, and a subclass's own
forward of a wrapper of torch, see plain calls and log scores only.
"""

import contextlib
import functools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from sedd_fast.backends.inputs import EntropyInputs, ReverseInputs
from sedd_fast.backends.tracing import is_traced
from sedd_fast.models import overrides
from sedd_fast.models.attention import masked
from sedd_fast.models.linear_head import (
    LinearHead,
    listed_rows,
    moves,
    normalised_score_entropy,
    normalised_step,
)
from sedd_fast.names import STEP_METHODS, Reduction, StepMethod
from sedd_fast.ops import (
    TouchedRows,
    linear_reverse_step,
    linear_score_entropy,
    reverse_step,
    score_entropy,
)
from sedd_fast.ops import _arguments as arguments
from sedd_fast.ops._uniforms import uniforms
from sedd_fast.process.graphs import Graph

#: A network: (tokens (B, L) int64, sigma (B,)) -> log scores (B, L, dim). For type checkers: any
#: callable of two tensors, whatever its parameters are called; every ``nn.Module`` is one.
ScoreModel = Callable[[Tensor, Tensor], Tensor]


class HeadRequest(ABC):
    """What a network computes from its hidden states in place of log scores.

    Attributes:
        rows: the positions that the head is needed at; None: all that noise touched.
        row_weight: (B, L); positions of weight 0 are not needed either.
    """

    rows: TouchedRows | None
    row_weight: Tensor | None = None

    def prepared(self, x_t: Tensor, sigma: Tensor, head: LinearHead) -> "HeadRequest":
        """The request with its rows listed; their number reaches the host while the body runs."""
        if self.rows is not None:
            return self
        return replace(self, rows=listed_rows(x_t, head.graph, self.row_weight))  # type: ignore[type-var]

    @abstractmethod
    def __call__(self, hidden: Tensor, head: LinearHead, x_t: Tensor, sigma: Tensor) -> Tensor:
        """The answer, from hidden states (B, L, H) of tokens x_t (B, L) at noise sigma (B,)."""

    @abstractmethod
    def of_scores(self, log_score: Tensor, x_t: Tensor, sigma: Tensor, graph: Graph) -> Tensor:
        """The same answer from log scores (B, L, graph.dim)."""

    def listed(self, x_t: Tensor) -> Tensor | None:
        """(B, L) bool, the positions that ``rows`` lists; None where that is every touched one."""
        if self.rows is None or self.rows.overflow is not None:
            return None
        listed = torch.zeros(x_t.numel(), dtype=torch.bool, device=x_t.device)
        return listed.index_fill(0, self.rows.index, True).view(x_t.shape)

    def weight_of_rows(self, x_t: Tensor) -> Tensor | None:
        """``row_weight``, or 1 without one, and 0 outside the positions that ``rows`` lists."""
        listed = self.listed(x_t)
        if listed is None:
            return self.row_weight
        return listed.double() if self.row_weight is None else self.row_weight * listed


@dataclass(frozen=True)
class ScoreEntropyRequest(HeadRequest):
    """Score entropy: :func:`sedd_fast.linear_score_entropy`, (B, L) or () nats.

    Args:
        x_0: (B, L) int64, clean tokens.
        row_weight: (B, L), factor of every position's entropy; None: 1.
        reduction: "none", "mean" or "sum".
        rows: the positions that the head is needed at; None: all that noise touched.
    """

    x_0: Tensor
    row_weight: Tensor | None = None
    reduction: Reduction = "none"
    rows: TouchedRows | None = None

    def __call__(self, hidden: Tensor, head: LinearHead, x_t: Tensor, sigma: Tensor) -> Tensor:
        if head.normalised:
            level = arguments.per_sequence("sigma", sigma, x_t)
            process = arguments.process(head.graph)
            entropy = EntropyInputs(level, x_t, self.x_0, self.row_weight, *process)
            return normalised_score_entropy(hidden, head, entropy, self.reduction, self.rows)
        return linear_score_entropy(
            hidden, head.weight, head.bias, sigma, x_t, self.x_0, head.graph, head.scale_by_sigma,
            self.row_weight, self.reduction, self.rows,
        )  # fmt: skip

    def of_scores(self, log_score: Tensor, x_t: Tensor, sigma: Tensor, graph: Graph) -> Tensor:
        weight = self.weight_of_rows(x_t)
        return score_entropy(log_score, sigma, x_t, self.x_0, graph, weight, self.reduction)


@dataclass(frozen=True)
class ReverseStepRequest(HeadRequest):
    """The next tokens: :func:`sedd_fast.linear_reverse_step`, (B, L) int64.

    Args:
        method, dsigma, u, temperature, top_p: as in that function.
        rows: the positions that the head is needed at; None: all that noise touched.
    """

    method: StepMethod
    dsigma: Tensor | float | None = None
    u: Tensor | None = None
    rows: TouchedRows | None = None
    temperature: float = 1.0
    top_p: float = 1.0

    def prepared(self, x_t: Tensor, sigma: Tensor, head: LinearHead) -> HeadRequest:
        """Also with its uniforms drawn: of normalised scores they decide which rows are needed."""
        if self.rows is not None or not head.normalised:
            return super().prepared(x_t, sigma, head)
        step = self._step(x_t, sigma, head.graph)
        return replace(self, u=step.u, rows=listed_rows(x_t, head.graph, moves(step)))

    def __call__(self, hidden: Tensor, head: LinearHead, x_t: Tensor, sigma: Tensor) -> Tensor:
        if head.normalised:
            return normalised_step(hidden, head, self._step(x_t, sigma, head.graph), self.rows)
        return linear_reverse_step(
            hidden, head.weight, head.bias, x_t, sigma, self.dsigma, head.graph, self.method,
            head.scale_by_sigma, u=self.u, rows=self.rows, temperature=self.temperature,
            top_p=self.top_p,
        )  # fmt: skip

    def _step(self, x_t: Tensor, sigma: Tensor, graph: Graph) -> ReverseInputs:
        """What the operation is given, after its checks; with uniforms drawn where none are."""
        arguments.check_choice("method", self.method, STEP_METHODS)
        shares = arguments.check_shares(self.temperature, self.top_p)
        arguments.check_tokens("x_t", x_t)
        level, removed = arguments.noise_removed(sigma, self.dsigma, self.method, x_t)
        u, process = uniforms(x_t, self.u, None), arguments.process(graph)
        return ReverseInputs(x_t, level, removed, u, *process, self.method, False, *shares)

    def of_scores(self, log_score: Tensor, x_t: Tensor, sigma: Tensor, graph: Graph) -> Tensor:
        after = reverse_step(
            log_score, x_t, sigma, self.dsigma, graph, self.method, u=self.u,
            temperature=self.temperature, top_p=self.top_p,
        )  # fmt: skip
        listed = self.listed(x_t)
        return after if listed is None else torch.where(listed, after, x_t)


class FusedHeadModel(Protocol):
    """A network whose forward takes a request; the module's docstring says what that means."""

    @property
    def graph(self) -> Graph: ...
    @property
    def head_requests(self) -> tuple[type[HeadRequest], ...]: ...
    def __call__(self, indices: Tensor, sigma: Tensor, head: HeadRequest, /) -> Tensor: ...


def takes_request(model: object, graph: Graph | None, request: type[Any]) -> bool:
    """Whether a network, under whatever wrappers of torch, answers such requests for that graph.

    None stands for a network that belongs to no graph.
    """
    inner: object | None = model
    while inner is not None:
        taken = _declared(inner, "head_requests")
        if taken is not None:
            if isinstance(inner, nn.Module) and not overrides.hooks_take_requests(inner):
                return False
            return request in taken and getattr(inner, "graph", None) == graph
        inner = _wrapped(inner)
    return False


def _declared(model: object, name: str) -> Any:
    """An attribute of the object itself or of its class, or None.

    Not what its ``__getattr__`` finds: a wrapper that hands on the attributes of a network does not
    say by that what its own forward takes.
    """
    found = getattr(model, name, None)
    if found is None or hasattr(type(model), name) or name in getattr(model, "__dict__", ()):
        return found
    return None


def answer(
    model: ScoreModel,
    graph: Graph,
    x_t: Tensor,
    sigma: Tensor,
    request: HeadRequest,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """What a request asks for, from the network itself where it takes the request, else from its
    log scores.

    Args:
        model: ``(x_t (B, L), sigma (B,)) -> log_score (B, L, graph.dim)``; one that takes requests
            never forms these.
        graph: ``Absorbing(V)`` or ``Uniform(V)``.
        x_t: (B, L) int64.
        sigma: (B,), the noise level passed to the network.
        request: the loss or the tokens that are wanted.
        attention_mask: (B, L), passed to the network where it is given.
    """
    network: Callable[..., Tensor] = model
    given = masked(attention_mask)
    if takes_request(model, graph, type(request)):
        return network(x_t, sigma, request, **given)
    return request.of_scores(network(x_t, sigma, **given), x_t, sigma, graph)


def wrapped_by_torch(module: object) -> nn.Module | None:
    """What a wrapper of torch holds and calls with its own arguments; None for any other object."""
    from torch.nn.parallel import DataParallel, DistributedDataParallel
    from torch.optim.swa_utils import AveragedModel

    if isinstance(module, (DistributedDataParallel, DataParallel, AveragedModel)):
        return module.module  # type: ignore[no-any-return]
    inner = None
    for name in ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"):
        # torch.compile and activation checkpointing: private classes
        inner = getattr(module, "_modules", {}).get(name, inner)
    return inner


def _wrapped(module: object) -> object | None:
    """That of a wrapper that does nothing more: no user's hook on it, no subclass's forward."""
    inner = wrapped_by_torch(module)
    forwards = isinstance(module, nn.Module) and overrides.forwards_requests(module)
    return inner if inner is not None and forwards else None


@contextlib.contextmanager
def evaluating(model: object) -> Iterator[None]:
    """Run a model in eval mode (no dropout); each of its modules gets its own mode back.

    A model that is not an ``nn.Module`` is left alone.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@functools.cache
def _warn(message: str) -> None:
    """A warning that is given once in a process."""
    warnings.warn(message, UserWarning, stacklevel=4)


def warn_of_evaluation_mode(model: object) -> None:
    """Warn, once, where a network with dropout is trained in evaluation mode."""
    if not isinstance(model, nn.Module) or model.training or is_traced():
        return
    if not torch.is_grad_enabled() or not any(p.requires_grad for p in model.parameters()):
        return
    if any(_has_dropout(module) for module in model.modules()):
        _warn(
            "the network is in evaluation mode, in which its dropout has no effect: call "
            "model.train() before training (from_pretrained returns evaluation mode), and "
            "evaluate under torch.no_grad()"
        )


def _has_dropout(module: nn.Module) -> bool:
    rate = module.p if isinstance(module, _DropoutNd) else getattr(module, "dropout", None)
    return isinstance(rate, float) and rate > 0


def device_of(model: object) -> torch.device:
    """Where a module's parameters are; the CPU for any other callable."""
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    return torch.device("cpu")
