"""Calls recorded as CUDA graphs, and torch's state after a recording that failed."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")

#: Calls before a capture: they load kernels and choose algorithms, which a capture must not do.
WARM_UP = 2


def record(
    call: Callable[[], Result], device: torch.device, pool: Any = None
) -> tuple[torch.cuda.CUDAGraph, Result]:
    """A call as a graph, and its result, which every replay overwrites.

    It runs WARM_UP times first, as torch's documentation has it.

    Args:
        call: must not wait for the device, and always launch the same kernels.
        device: a GPU.
        pool: of ``torch.cuda.graph_pool_handle``, for the memory of the call; None: one of its own.

    Raises:
        RuntimeError: the call cannot be captured. Other calls and captures go on.
    """
    with torch.cuda.device(device):
        main, side = torch.cuda.current_stream(), _side_stream(device)
        side.wait_stream(main)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                call()
        main.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool, side):  # by default a stream of the first device
                result = call()
        except BaseException:
            _restore(main)
            raise
        return graph, result


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures: each stream has a workspace of cuBLAS that is never freed."""
    return torch.cuda.Stream(device)


def _restore(stream: torch.cuda.Stream) -> None:
    """Make ``stream`` the current one, and torch's generator draw outside of captures again.

    A failed capture leaves its own stream as the current one. The generator takes every later draw
    for one of a capture, and refuses it, until a capture succeeds: so next to nothing is captured.
    """
    torch.cuda.set_stream(stream)
    torch.cuda.synchronize(stream.device)
    with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=torch.cuda.Stream(stream.device)):
        torch.zeros(1, device=stream.device)
