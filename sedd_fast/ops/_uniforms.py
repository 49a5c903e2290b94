"""Where the operations' randomness comes from: two float64 uniforms a position.

u0 decides whether a token stays or moves, u1 where it goes. float64, because float32 uniforms
cannot hit a token of probability 1e-8 and are biased near 0 and 1.

On a CPU torch.rand takes longer than most operations, because its generator makes one number after
the other. There, one number of torch's generator is the key of a counter-based generator (Philox),
which makes all uniforms of the call, on all threads. They depend neither on the number of threads
nor on the backend. On other devices, and under torch.compile or torch.func, torch.rand draws.

``RowStreams`` are a generator for each row of a batch: the numbers of a row depend on no other row.
"""

import functools
import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from sedd_fast.backends import registry
from sedd_fast.backends.tracing import is_traced
from sedd_fast.ops._arguments import check_device, check_tensor

_CPU = torch.device("cpu")
_PART = 1 << 40  # blocks of Philox in a part of a stream


class RowStreams:
    """A stream of uniforms for every row of a batch: Philox, with a key for each row.

    It may stand for a ``torch.Generator``. :func:`sedd_fast.sample` and its like read the streams
    from their beginning, so that the same streams give the same samples.

    Args:
        keys: one a row, each in [0, 2^64).

    Example:
        >>> streams = RowStreams.of_texts(seed=1, numbers=range(16, 20))
        >>> tokens = sedd_fast.sample(model, graph, noise, (4, 1024), generator=streams)
    """

    device = _CPU  #: where the numbers are made

    def __init__(self, keys: Sequence[int]) -> None:
        self.keys, self._block = tuple(keys), 0

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def of_texts(cls, seed: int, numbers: Sequence[int], request: int = 0) -> "RowStreams":
        """The streams of texts by their numbers, of one seed; those of other numbers are unrelated.

        Args:
            seed, request, numbers: integers of at least 0. ``request`` is for texts of several
                kinds, each kind numbered from 0.
        """
        return cls([_mixed(seed, request, number) for number in numbers])

    @classmethod
    def of_generators(cls, generators: Sequence[torch.Generator | None]) -> "RowStreams":
        """Each row's key is the next number of its own generator; None is torch's default one."""
        return cls([_key(generator) for generator in generators])

    def begin(self, part: int) -> None:
        """Go on at the start of a part: what is drawn there does not depend on earlier draws."""
        self._block = part * _PART

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        """The next uniforms of every row: (B, ...) float64 on the CPU, B the number of keys."""
        if not shape or shape[0] != len(self):
            raise ValueError(
                f"generator has streams for {len(self)} rows, but numbers of shape {shape} "
                "are to be drawn; give one for each sequence"
            )
        u, fill = torch.empty(shape, dtype=torch.float64, device=_CPU), _fill()
        for row, key in zip(u.unbind(), self.keys, strict=True):
            fill(row, key, self._block)
        self._block += (u[:1].numel() + 1) // 2  # two numbers a block
        return u


#: What draws the numbers of a batch.
Generator = torch.Generator | RowStreams
#: The same, or a generator for each row.
Generators = Generator | Sequence[torch.Generator]


def for_rows(generator: Generators | None, rows: int) -> Generator | None:
    """A batch's generator: itself where there is one, streams at their beginning where many.

    Raises:
        TypeError: neither a generator nor a sequence of them.
        ValueError: not as many as there are rows.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    if not isinstance(generator, RowStreams) and not (
        isinstance(generator, Sequence) and all(isinstance(g, torch.Generator) for g in generator)
    ):
        raise TypeError(
            "generator must be a torch.Generator, RowStreams, or a list with a torch.Generator for "
            f"every sequence, got {type(generator).__name__}"
        )
    if len(generator) != rows:
        raise ValueError(
            f"generator: got {len(generator)} for {rows} sequences; pass one for each, or a single "
            "torch.Generator for all"
        )
    if isinstance(generator, RowStreams):
        return RowStreams(generator.keys)
    return RowStreams.of_generators(generator)


def uniform(
    shape: tuple[int, ...], device: torch.device, generator: Generator | None = None
) -> Tensor:
    """Uniforms in [0, 1), float64, on that device; drawn on the generator's, where there is one."""
    if isinstance(generator, RowStreams):
        return generator.uniform(shape).to(device)
    draw_on = device if generator is None else generator.device
    # torch.func.vmap has its own rules for randomness, which torch.rand follows.
    if draw_on != _CPU or is_traced():
        return torch_uniform(shape, device, generator)
    u = torch.empty(shape, dtype=torch.float64, device=_CPU)
    if type(u) is not Tensor:  # a FakeTensor, which holds no numbers
        return torch_uniform(shape, device, generator)
    _fill()(u, _key(generator))
    return u if device == _CPU else u.to(device)


def torch_uniform(
    shape: tuple[int, ...],
    device: torch.device,
    generator: Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The same by torch.rand, in other dtypes too; ``RowStreams`` give float64 or float32."""
    if isinstance(generator, RowStreams):
        u = generator.uniform(shape)
        if dtype == torch.float32:
            u = (u * 2**24).floor() / 2**24  # as torch.rand: rounding would reach 1
        return u.to(device, dtype)
    if generator is None:  # generator=None cannot be traced with a batch size that varies
        return torch.rand(shape, dtype=dtype, device=device)
    return torch.rand(shape, dtype=dtype, device=generator.device, generator=generator).to(device)


def uniforms(tokens: Tensor, u: Tensor | None, generator: Generator | None) -> Tensor:
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


def _key(generator: torch.Generator | None) -> int:
    """The next number of a generator, in [0, 2^63)."""
    if generator is None or generator.device == _CPU:
        return int(_thread.key.random_(generator=generator))
    number = torch.empty((), dtype=torch.int64, device=generator.device)
    return int(number.random_(generator=generator))


def _mixed(*numbers: int) -> int:
    """A key of 64 bits from integers of at least 0."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


@functools.cache
def _fill() -> Callable[..., None]:
    """Fills a tensor with the uniforms of a key: any backend's function, they all agree."""
    backend = "cpp" if registry.unavailable("cpp") is None else "reference"
    return registry.module(backend).fill_uniforms
