"""Sampling steps of a network as CUDA graphs: a step is one launch instead of hundreds.

The host needs longer to launch the kernels of a SEDD-small, a thousand of a few microseconds each,
than a GPU to run them. A CUDA graph launches all of them at once.

    network = sf.CudaGraphNetwork(model)      # on a GPU
    tokens = sf.sample(network, model.graph, model.noise, (1, 1024))
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sedd_fast.models.interface import HeadRequest, ReverseStepRequest, ScoreModel
from sedd_fast.ops import touched_rows
from sedd_fast.process.graphs import Graph

#: Calls before a capture: they load kernels and choose algorithms, which a capture must not do.
WARM_UP = 2


class CudaGraphNetwork(nn.Module):
    """A network whose reverse steps are replayed as CUDA graphs; all other calls pass through.

    The first step of every shape, method and dtype is captured, body and head together, and its
    graph keeps the memory of one step. Replays read the parameters where they are, so changed
    weights take effect; a module that is replaced or hooked after the first step does not. A step
    gives the same tokens as without a graph.

    Args:
        model: a network on a GPU that answers :class:`ReverseStepRequest`, as ``SEDD`` does. On a
            CPU, in training mode, where gradients are recorded, and for requests that list their
            own rows, it is called as it is.

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
        self.model = model
        self._captured: dict[Any, _Captured] = {}

    @property
    def graph(self) -> Graph:
        """The graph that the network's scores belong to."""
        return self.model.graph  # type: ignore[attr-defined,no-any-return]

    @property
    def head_requests(self) -> tuple[type[HeadRequest], ...]:
        """What the network answers."""
        return self.model.head_requests  # type: ignore[attr-defined,no-any-return]

    def forward(self, indices: Tensor, sigma: Tensor, head: HeadRequest | None = None) -> Tensor:
        """As the network: (B, L), (B,) -> log scores (B, L, dim), or what the request asks for."""
        if head is None:
            return self.model(indices, sigma)
        if not self._may_capture(indices, head):
            return self.model(indices, sigma, head)
        assert isinstance(head, ReverseStepRequest)
        assert head.u is not None
        inputs = _Inputs(indices, sigma, head.dsigma, head.u)
        key = (inputs.key(), head.method, head.temperature, head.top_p, _autocast())
        captured = self._captured.get(key)
        if captured is None:
            captured = self._captured[key] = _capture(self.model, self.graph, head, inputs)
        return captured(inputs)

    def _may_capture(self, indices: Tensor, head: HeadRequest) -> bool:
        return (
            indices.is_cuda
            and isinstance(head, ReverseStepRequest)
            and head.rows is None
            and head.u is not None
            and not torch.is_grad_enabled()
            and not getattr(self.model, "training", False)
            and not torch.cuda.is_current_stream_capturing()
        )


def _autocast() -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")


@dataclass(frozen=True)
class _Inputs:
    """What changes from step to step; dsigma may be a number or absent."""

    indices: Tensor
    sigma: Tensor
    dsigma: Tensor | float | None
    u: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        found = (self.indices, self.sigma, self.dsigma, self.u)
        return tuple(value for value in found if isinstance(value, Tensor))

    def key(self) -> tuple[Any, ...]:
        about = tuple((t.shape, t.dtype, t.device) for t in self.tensors())
        return about, None if isinstance(self.dsigma, Tensor) else self.dsigma

    def clone(self) -> "_Inputs":
        dsigma = self.dsigma.clone() if isinstance(self.dsigma, Tensor) else self.dsigma
        return _Inputs(self.indices.clone(), self.sigma.clone(), dsigma, self.u.clone())


@dataclass(frozen=True)
class _Captured:
    """A graph, the tensors that it reads, and the one that it writes."""

    graph: torch.cuda.CUDAGraph
    inputs: _Inputs
    output: Tensor

    def __call__(self, inputs: _Inputs) -> Tensor:
        """The step from other inputs; the result is a tensor of its own."""
        for mine, given in zip(self.inputs.tensors(), inputs.tensors(), strict=True):
            mine.copy_(given)
        self.graph.replay()
        return self.output.clone()


def _capture(
    model: ScoreModel, graph: Graph, head: ReverseStepRequest, inputs: _Inputs
) -> _Captured:
    """The step as a graph, captured with copies of the inputs."""
    mine = inputs.clone()
    device = mine.indices.device

    def step() -> Tensor:
        rows = touched_rows(mine.indices, graph, max_rows=mine.indices.numel())
        request = replace(head, dsigma=mine.dsigma, u=mine.u, rows=rows)
        return model(mine.indices, mine.sigma, request)

    # Without autocast's cache: what it holds is freed when its context ends, the graph is not.
    enabled, dtype = _autocast()
    with torch.cuda.device(device), torch.autocast("cuda", dtype, enabled, cache_enabled=False):
        _on_side_stream(step)
        made = torch.cuda.CUDAGraph()
        with torch.cuda.graph(made):
            output = step()
    return _Captured(made, mine, output)


def _on_side_stream(step: Callable[[], Tensor]) -> None:
    """A few calls, as torch's documentation of CUDA graphs has it."""
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(main)
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    main.wait_stream(side)
