"""Where the operations' randomness comes from: two float64 uniforms a position.

u0 decides whether a token stays or moves, u1 where it goes. float64, because float32 uniforms
cannot hit a token of probability 1e-8 and are biased near 0 and 1.

On a CPU torch.rand takes longer than most operations, because its generator makes one number after
the other. There, one number of torch's generator is the key of a counter-based generator (Philox),
which makes all uniforms of the call, on all threads. They depend neither on the number of threads
nor on the backend. On other devices, and under torch.compile or torch.func, torch.rand draws.
"""

import functools
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from sedd_fast.backends import registry
from sedd_fast.backends.tracing import is_traced
from sedd_fast.ops._arguments import check_device, check_tensor

_CPU = torch.device("cpu")


def uniform(
    shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """Uniforms in [0, 1), float64, on that device; drawn on the generator's, where there is one."""
    draw_on = device if generator is None else generator.device
    # torch.func.vmap has its own rules for randomness, which torch.rand follows.
    if draw_on != _CPU or is_traced():
        return torch_uniform(shape, device, generator)
    u = torch.empty(shape, dtype=torch.float64, device=_CPU)
    if type(u) is not Tensor:  # a FakeTensor, which holds no numbers
        return torch_uniform(shape, device, generator)
    _fill()(u, int(_thread.key.random_(generator=generator)))
    return u if device == _CPU else u.to(device)


def torch_uniform(
    shape: tuple[int, ...],
    device: torch.device,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The same by torch.rand: where calls are to share one stream of numbers, or other dtypes."""
    if generator is None:  # generator=None cannot be traced with a batch size that varies
        return torch.rand(shape, dtype=dtype, device=device)
    return torch.rand(shape, dtype=dtype, device=generator.device, generator=generator).to(device)


def uniforms(tokens: Tensor, u: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """``u`` itself when given (checked), else a fresh draw of shape (B, L, 2), float64.

    A CPU generator with CUDA tokens draws on the CPU and copies, so that one seed gives one text
    on every device.

    Raises:
        ValueError: both u and generator; u of another shape, dtype or device.
        RuntimeError: a generator under torch.compile (it cannot be traced), or a CPU generator
            during CUDA graph capture. The remedy for both is ``u=``.
    """
    shape = (*tokens.shape, 2)
    if u is not None:
        if generator is not None:
            raise ValueError("u and generator were both given; pass one of them")
        if check_tensor("u", u).dtype != torch.float64:
            raise TypeError(f"u must be float64, got {u.dtype}; draw it with dtype=torch.float64")
        if tuple(u.shape) != shape:
            raise ValueError(f"u must have shape {shape}, got {tuple(u.shape)}")
        check_device("u", u, tokens, "the tokens")
        return u
    if generator is None:
        return uniform(shape, tokens.device)
    if torch.compiler.is_compiling():
        raise RuntimeError(
            "a torch.Generator cannot be traced by torch.compile; draw "
            "u = torch.rand(B, L, 2, dtype=torch.float64, generator=...) outside and pass u="
        )
    on_cpu = generator.device.type == "cpu"
    if on_cpu and tokens.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a CPU generator cannot be used while a CUDA graph is captured; pass u= or a CUDA "
            "generator registered with the graph"
        )
    return uniform(shape, tokens.device, generator)


class _Thread(threading.local):
    """The tensor in which a thread gets its keys: a new one for every call takes a microsecond."""

    def __init__(self) -> None:
        with torch.inference_mode(False):
            self.key = torch.zeros((), dtype=torch.int64, device=_CPU)


_thread = _Thread()


@functools.cache
def _fill() -> Callable[[Tensor, int], None]:
    """Fills a tensor with the uniforms of a key: any backend's function, they all agree."""
    backend = "cpp" if registry.unavailable("cpp") is None else "reference"
    return registry.module(backend).fill_uniforms
