"""Sampling steps of a network as CUDA graphs: a step is one launch instead of hundreds.

The host needs longer to launch the kernels of a SEDD-small, a thousand of a few microseconds each,
than a GPU to run them. A CUDA graph launches all of them at once.

    network = sf.CudaGraphNetwork(model)      # on a GPU
    tokens = sf.sample(network, model.graph, model.noise, (1, 1024))
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sedd_fast.backends import cuda_graphs, registry, values
from sedd_fast.backends.triton.linear_reverse_step import GROUPED
from sedd_fast.models.attention import masked
from sedd_fast.models.interface import HeadRequest, ReverseStepRequest, ScoreModel
from sedd_fast.models.posterior import PosteriorModel
from sedd_fast.models.posterior_sedd import PosteriorSEDD
from sedd_fast.ops import touched_rows
from sedd_fast.process.graphs import Graph

#: Graphs that a network keeps; the one used least recently is dropped for a new one.
KEPT = 16
#: Most positions of a step for whose head all rows are formed, also those that cannot move.
MOST_ROWS = 4096


class CudaGraphNetwork(nn.Module):
    """A network whose reverse steps are replayed as CUDA graphs; all other calls pass through.

    The first step of every shape, method and dtype is captured, body and head together. A step
    draws the tokens that it draws without a graph, up to the rounding of products of other sizes.
    Replays read the parameters where they are: weights changed in place take effect, and where a
    parameter is replaced or moved, steps are captured anew. A submodule that is replaced or hooked
    after the first step does not take effect. Use it from one thread.

    Args:
        model: a network on a GPU that answers :class:`ReverseStepRequest`, as ``SEDD`` does. It is
            called as it is on a CPU, in training mode, where gradients are recorded, with
            SEDD_FAST_CHECK=1, for requests that list their own rows, and where a graph would form
            many rows of the head that cannot move (over MOST_ROWS positions in float32, or with a
            temperature or top-p).

    Raises:
        TypeError: the network does not say what it answers.
    """

    def __init__(self, model: ScoreModel) -> None:
        super().__init__()
        if not (hasattr(model, "graph") and hasattr(model, "head_requests")):
            raise TypeError(
                f"CudaGraphNetwork needs a network with a graph and head_requests, such as SEDD; "
                f"got {type(model).__name__}"
            )
        self.model: Callable[..., Tensor] = model
        self._forget()

    def _forget(self) -> None:
        self._captured: OrderedDict[Any, _Captured | None] = OrderedDict()
        self._weights: list[tuple[int, torch.dtype]] = []
        self._pool: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles have no graphs."""
        return self.__dict__ | {"_captured": OrderedDict(), "_weights": [], "_pool": None}

    @property
    def graph(self) -> Graph:
        """The graph that the network's scores belong to."""
        return self.model.graph  # type: ignore[attr-defined,no-any-return]

    @property
    def head_requests(self) -> tuple[type[HeadRequest], ...]:
        """What the network answers."""
        return self.model.head_requests  # type: ignore[attr-defined,no-any-return]

    def forward(
        self,
        indices: Tensor,
        sigma: Tensor,
        head: HeadRequest | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """As the network: (B, L), (B,) -> log scores (B, L, dim), or what the request asks for."""
        given = masked(attention_mask)
        if head is None:
            return self.model(indices, sigma, **given)
        if not isinstance(head, ReverseStepRequest) or not self._may_capture(indices, head):
            return self.model(indices, sigma, head, **given)
        is_training, weights = _state(self.model)
        if is_training:
            return self.model(indices, sigma, head, **given)
        inputs = _Inputs.of(indices, sigma, head, attention_mask)
        if weights != self._weights:
            self._forget()
            self._weights = weights
        key = (inputs.key(), head.method, head.temperature, head.top_p, *_settings())
        if key not in self._captured:
            self._pool = self._pool or _new_pool()
            self._captured[key] = _capture(self.model, self.graph, head, inputs, self._pool)
            if len(self._captured) > KEPT:
                self._captured.popitem(last=False)
        self._captured.move_to_end(key)
        captured = self._captured[key]
        if captured is None:
            return self.model(indices, sigma, head, **given)
        return captured(inputs)

    def _may_capture(self, indices: Tensor, head: ReverseStepRequest) -> bool:
        return (
            _can_record(indices)
            and indices.numel() > 0
            and head.rows is None
            and head.u is not None
            and not torch.is_grad_enabled()
            and not values.enabled(indices.device)
            and (indices.numel() <= MOST_ROWS or self._skips_rows(head))
        )

    def _skips_rows(self, head: ReverseStepRequest) -> bool:
        """Whether rows of the head that cannot move cost nothing, or there are none."""
        if self.graph.kind == "uniform":
            return True
        if isinstance(self.model, (PosteriorModel, PosteriorSEDD)):
            return False  # without a graph they list the rows that move; linear_denoise skips none
        enabled, dtype = _autocast()
        used = dtype if enabled else next((p.dtype for p in self.parameters()), torch.float32)
        return used in GROUPED and head.temperature == 1 and head.top_p == 1


def _can_record(indices: Tensor) -> bool:
    """Whether a step on these tokens can be recorded now."""
    return indices.is_cuda and not torch.cuda.is_current_stream_capturing()


def _autocast() -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")


def _settings() -> tuple[Any, ...]:
    """What besides its inputs decides which kernels a step launches."""
    return (*_autocast(), registry.requested(), torch.get_float32_matmul_precision())


def _state(model: object) -> tuple[bool, list[tuple[int, torch.dtype]]]:
    """Whether any module is in training mode, and where the parameters and buffers are."""
    is_training, places = False, []
    for module in model.modules() if isinstance(model, nn.Module) else ():
        is_training |= module.training
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                places.append((tensor.data_ptr(), tensor.dtype))
    return is_training, places


@dataclass(frozen=True)
class _Inputs:
    """What changes from step to step."""

    indices: Tensor
    sigma: Tensor
    dsigma: Tensor | None
    u: Tensor
    attention_mask: Tensor | None

    @classmethod
    def of(
        cls, indices: Tensor, sigma: Tensor, head: ReverseStepRequest, mask: Tensor | None
    ) -> "_Inputs":
        """The inputs of a request, a number as a tensor."""
        assert head.u is not None
        dsigma = head.dsigma
        if isinstance(dsigma, (int, float)):
            dsigma = torch.full((), dsigma, dtype=torch.float64, device=indices.device)
        dsigma = None if dsigma is None else dsigma.to(indices.device)
        return cls(indices, sigma, dsigma, head.u, mask)

    @property
    def _all(self) -> tuple[Tensor | None, ...]:
        return self.indices, self.sigma, self.dsigma, self.u, self.attention_mask

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(t for t in self._all if t is not None)

    def key(self) -> tuple[Any, ...]:
        """What a graph is captured for: shapes, dtypes, the device."""
        return tuple(None if t is None else (t.shape, t.dtype, t.device) for t in self._all)

    def clone(self) -> "_Inputs":
        return _Inputs(*(None if t is None else t.clone() for t in self._all))  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Captured:
    """A graph, the tensors that it reads, and the one that it writes."""

    recorded: "_Recorded"
    inputs: _Inputs

    def __call__(self, inputs: _Inputs) -> Tensor:
        """The step from other inputs; the result is a tensor of its own."""
        self.recorded.wait()
        for mine, given in zip(self.inputs.tensors(), inputs.tensors(), strict=True):
            mine.copy_(given)
        return self.recorded.replayed()


def _capture(
    model: Callable[..., Tensor], graph: Graph, head: ReverseStepRequest, inputs: _Inputs, pool: Any
) -> _Captured | None:
    """The step as a graph, captured with copies of the inputs; None where that fails."""
    # Inference tensors could not be overwritten outside of inference mode.
    with torch.inference_mode(False), torch.no_grad():
        mine = inputs.clone()

        def step() -> Tensor:
            rows = touched_rows(mine.indices, graph, max_rows=mine.indices.numel())
            request = replace(head, dsigma=mine.dsigma, u=mine.u, rows=rows)
            return model(mine.indices, mine.sigma, request, **masked(mine.attention_mask))

        # Without autocast's cache: what it holds is freed when its context ends, the graph is not.
        enabled, dtype = _autocast()
        with torch.autocast("cuda", dtype, enabled, cache_enabled=False):
            try:
                return _Captured(_record(step, mine.indices.device, pool), mine)
            except RuntimeError as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                warnings.warn(
                    f"a step of the network cannot be captured as a CUDA graph ({reason}); its "
                    "kernels are launched one by one",
                    RuntimeWarning,
                    stacklevel=4,
                )
                return None


@dataclass(frozen=True)
class _Recorded:
    """A graph, its result, and when its last replay ended."""

    graph: torch.cuda.CUDAGraph
    output: Tensor
    done: torch.cuda.Event

    def wait(self) -> None:
        """Let the current stream wait for the last replay, which may have been on another one."""
        torch.cuda.current_stream(self.output.device).wait_event(self.done)

    def replayed(self) -> Tensor:
        """The result of a replay."""
        with torch.cuda.device(self.output.device):
            self.graph.replay()
            made = self.output.clone()
            self.done.record(torch.cuda.current_stream())
        return made


def _new_pool() -> Any:
    """Memory that graphs share: they never run at the same time, and results are copied out."""
    return torch.cuda.graph_pool_handle()


def _record(step: Callable[[], Tensor], device: torch.device, pool: Any) -> _Recorded:
    """The step as a graph; RuntimeError where it cannot be captured."""
    graph, output = cuda_graphs.record(step, device, pool)
    with torch.cuda.device(device):
        return _Recorded(graph, output, torch.cuda.Event())
