"""The operations in C++ for the CPU: one pass over a row, on all cores (csrc/cpu).

The compiled module ``sedd_fast._cpu`` takes raw addresses. This module owns what it cannot see:
dtypes, contiguity of the small tensors, lifetimes (a tensor stays referenced until the call
returns), the number of threads, and the wording of errors.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sedd_fast.backends import values

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
GRAPHS = {"absorbing": 0, "uniform": 1}
METHODS = {"analytic": 0, "euler": 1, "denoise": 2}


def devices() -> tuple[str, ...]:
    """The kinds of device it runs on."""
    return ("cpu",)


@functools.cache
def unavailable() -> str | None:
    """Why this backend cannot be used, or None."""
    try:
        kernels()
    except ImportError as error:
        return (
            f"its compiled module is missing ({error}); install a C++17 compiler and run "
            "`pip install` again"
        )
    return None


@functools.cache
def kernels() -> Any:
    """The compiled module, on the OpenMP threads that torch has where there are any.

    Threads of our own would find the cores taken by torch's, which spin for a while after every
    operation (docs/performance.md has the figures). A forked child has none of torch's threads, and
    its runtime would wait for them for ever: there the module uses its own.
    """
    compiled = importlib.import_module("sedd_fast._cpu")
    compiled.use_openmp(openmp_address())
    os.register_at_fork(after_in_child=functools.partial(compiled.use_openmp, 0))
    return compiled


def pool() -> str:
    """Whose threads are in use: "shared OpenMP" or "own"."""
    return "shared OpenMP" if kernels().uses_openmp() else "own"


def openmp_address() -> int:
    """Address of GOMP_parallel in the OpenMP runtime of this process, 0 if there is none.

    libgomp defines it, and the runtimes of LLVM and Intel do for compatibility.
    """
    for path in _openmp_runtimes():
        try:
            runtime = ctypes.CDLL(str(path))
        except OSError:  # the file was replaced while it is in use
            continue
        if (function := getattr(runtime, "GOMP_parallel", None)) is not None:
            return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0


def _openmp_runtimes() -> list[Path]:
    """OpenMP libraries in this process, torch's own before those that others brought along."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    mapped = (line.split(maxsplit=5) for line in lines)  # a path may hold spaces
    paths = {Path(fields[5]) for fields in mapped if len(fields) == 6}
    found = [p for p in paths if p.name.startswith(("libgomp", "libiomp5", "libomp"))]
    beside = Path(torch.__file__).parent
    return sorted(found, key=lambda path: (beside not in path.parents, path))


def sample_transition(x_0: Tensor, sigma: Tensor, u: Tensor, graph: str, vocab_size: int) -> Tensor:
    """x_t ~ p(. | x_0)."""
    x_0, sigma, u = x_0.contiguous(), sigma.contiguous(), u.contiguous()
    x_t = torch.empty_like(x_0)
    valid = kernels().sample_transition(
        x_0.data_ptr(),
        sigma.data_ptr(),
        u.data_ptr(),
        x_t.data_ptr(),
        *x_0.shape,
        GRAPHS[graph],
        vocab_size,
        torch.get_num_threads(),
    )
    if not valid:
        values.check(values.Noising(x_0, sigma, u), graph, vocab_size)
    return x_t


class _Entropy:
    """The inputs of a score entropy in memory, kept alive beside their addresses."""

    def __init__(
        self,
        log_score: Tensor,
        sigma: Tensor,
        x_t: Tensor,
        x_0: Tensor,
        row_weight: Tensor | None,
        graph: str,
        vocab_size: int,
    ) -> None:
        small = [sigma, x_t, x_0] + ([] if row_weight is None else [row_weight])
        self.tensors = [tensor.contiguous() for tensor in small]
        addresses = [tensor.data_ptr() for tensor in self.tensors] + [0] * (row_weight is None)
        self.log_score = log_score
        self.process = (graph, vocab_size)
        self.inputs = kernels().EntropyInputs(
            _scores(log_score), *addresses, GRAPHS[graph], vocab_size
        )

    def check(self, valid: bool) -> None:
        """Word the error where a value was out of range."""
        if not valid:
            sigma, x_t, x_0 = self.tensors[:3]
            values.check(values.Entropy(self.log_score, sigma, x_t, x_0), *self.process)

    def empty_loss(self) -> Tensor:
        """(B, L) float64, in which losses are formed."""
        return torch.empty(self.log_score.shape[:2], dtype=torch.float64)

    def rounded(self, loss: Tensor) -> Tensor:
        """The loss in its public dtype."""
        return loss if self.log_score.dtype == torch.float64 else loss.float()


def score_entropy(
    log_score: Tensor,
    sigma: Tensor,
    x_t: Tensor,
    x_0: Tensor,
    row_weight: Tensor | None,
    graph: str,
    vocab_size: int,
) -> Tensor:
    """(B, L) losses: one read of the touched rows."""
    call = _Entropy(log_score, sigma, x_t, x_0, row_weight, graph, vocab_size)
    loss = call.empty_loss()
    call.check(kernels().score_entropy(call.inputs, loss.data_ptr(), torch.get_num_threads()))
    return call.rounded(loss)


def score_entropy_backward(
    grad_loss: Tensor,
    log_score: Tensor,
    sigma: Tensor,
    x_t: Tensor,
    x_0: Tensor,
    row_weight: Tensor | None,
    graph: str,
    vocab_size: int,
) -> Tensor:
    """(B, L, dim) gradient: one read of the touched rows, one write."""
    call = _Entropy(log_score, sigma, x_t, x_0, row_weight, graph, vocab_size)
    grad_loss = grad_loss.to(torch.float64).contiguous()
    grad = torch.empty(log_score.shape, dtype=log_score.dtype)
    call.check(
        kernels().score_entropy_backward(
            call.inputs, grad_loss.data_ptr(), grad.data_ptr(), torch.get_num_threads()
        )
    )
    return grad


def score_entropy_with_grad(
    log_score: Tensor,
    sigma: Tensor,
    x_t: Tensor,
    x_0: Tensor,
    row_weight: Tensor | None,
    scale: float,
    graph: str,
    vocab_size: int,
) -> tuple[Tensor, Tensor]:
    """Losses and gradient of ``scale * loss.sum()``: one read, one write."""
    call = _Entropy(log_score, sigma, x_t, x_0, row_weight, graph, vocab_size)
    loss = call.empty_loss()
    grad = torch.empty(log_score.shape, dtype=values.gradient_dtype(log_score.dtype))
    call.check(
        kernels().score_entropy_with_grad(
            call.inputs, scale, loss.data_ptr(), grad.data_ptr(), torch.get_num_threads()
        )
    )
    return call.rounded(loss), grad


class _Reverse:
    """The inputs of a reverse step in memory, kept alive beside their addresses."""

    def __init__(
        self,
        log_score: Tensor,
        x_t: Tensor,
        sigma: Tensor,
        dsigma: Tensor,
        graph: str,
        vocab_size: int,
        method: str,
    ) -> None:
        self.tensors = [tensor.contiguous() for tensor in (x_t, sigma, dsigma)]
        self.log_score = log_score
        self.process = (graph, vocab_size)
        self.inputs = kernels().ReverseInputs(
            _scores(log_score),
            *(tensor.data_ptr() for tensor in self.tensors),
            GRAPHS[graph],
            vocab_size,
            METHODS[method],
        )

    def check(self, outcome: tuple[bool, int], u: Tensor | None) -> None:
        """Word the error where a value was out of range or a row gave no law."""
        valid, undrawable = outcome
        if not valid:
            x_t, sigma, dsigma = self.tensors
            values.check(values.Reverse(self.log_score, x_t, sigma, dsigma, u), *self.process)
        if undrawable >= 0:
            raise values.undrawable(divmod(undrawable, self.log_score.shape[1]))


def reverse_step(
    log_score: Tensor,
    x_t: Tensor,
    sigma: Tensor,
    dsigma: Tensor,
    u: Tensor,
    graph: str,
    vocab_size: int,
    method: str,
) -> Tensor:
    """x_s (B, L): one read of every row that may move, and one chunk of it again."""
    call = _Reverse(log_score, x_t, sigma, dsigma, graph, vocab_size, method)
    u = u.contiguous()
    x_s = torch.empty(x_t.shape, dtype=torch.int64)
    outcome = kernels().reverse_step(
        call.inputs, u.data_ptr(), x_s.data_ptr(), torch.get_num_threads()
    )
    call.check(outcome, u)
    return x_s


def reverse_probs(
    log_score: Tensor,
    x_t: Tensor,
    sigma: Tensor,
    dsigma: Tensor,
    graph: str,
    vocab_size: int,
    method: str,
) -> Tensor:
    """(B, L, dim): the law of :func:`reverse_step`."""
    call = _Reverse(log_score, x_t, sigma, dsigma, graph, vocab_size, method)
    dtype = torch.float64 if log_score.dtype == torch.float64 else torch.float32
    probs = torch.empty(log_score.shape, dtype=dtype)
    outcome = kernels().reverse_probs(call.inputs, probs.data_ptr(), torch.get_num_threads())
    call.check(outcome, None)
    return probs


def _scores(log_score: Tensor) -> object:
    return kernels().Scores(
        log_score.data_ptr(), DTYPES[log_score.dtype], tuple(log_score.shape), log_score.stride()
    )
