"""The row functions of the CUDA kernels on the CPU: inputs for them, and their expected results.

cuda_rows_host.cpp runs the threads of a block as coroutines, counts vector accesses by their width,
and fails where one is not aligned. NaNs surround the rows and sentinels the gradients, so a read or
a write outside is found.
"""

import ctypes
import math
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sedd_fast.backends import reference
from sedd_fast.backends.coefficients import entropy_coefficients
from sedd_fast.backends.inputs import NO_MASK, EntropyInputs, ReverseInputs

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
GRAPHS = {"absorbing": 0, "uniform": 1}
METHODS = {"analytic": 0, "euler": 1, "denoise": 2}
#: Elements before the first row and between rows; stride over states.
LAYOUTS = {"aligned": (0, 0, 1), "odd start": (3, 0, 1), "padded": (1, 6, 1), "strided": (2, 5, 3)}
#: The name of a layout, or its three numbers.
Placement = str | tuple[int, int, int]
SENTINEL = 77.0
#: A chunk is 256 or 512 states of 4 bytes, 512 or 1024 of 2: at, below and above, and odd ones.
STATES = (2, 3, 31, 129, 512, 1024, 2051, 5000)
#: A whole chunk of every dtype, and more.
ODD = 1301
#: The meaning of a status other than 0.
FAILURES = ("", "stuck at a barrier", "an access is not aligned", "a chunk more than there is room")


def library(folder: Path) -> ctypes.CDLL:
    """The row functions, compiled into that folder; skips the test where that cannot be."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the host block needs Linux's ucontext")
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    compiler = next((name for name in names if shutil.which(shlex.split(name)[0])), None)
    if compiler is None:
        pytest.skip("no C++ compiler")
    target, root = folder / "rows.so", Path(__file__).resolve().parents[2]
    # A fortified longjmp (the default of some systems) refuses to leave for another stack.
    command = [*shlex.split(compiler), "-std=c++17", "-O1", "-U_FORTIFY_SOURCE", "-shared", "-fPIC"]
    source = Path(__file__).with_suffix(".cpp")
    done = subprocess.run(
        [*command, f"-I{root / 'csrc'}", str(source), "-o", str(target)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    loaded = ctypes.CDLL(str(target))
    names = "round_trip_errors wide_loads wide_stores most_states_of_a_step shared_bytes_of_a_step"
    for name in names.split():
        getattr(loaded, name).restype = ctypes.c_int64
    return loaded


class Layout(ctypes.Structure):
    """csrc/common/traverse.h."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("length", "dim", "stride_batch", "stride_length", "stride_state")
    ]


class Process(ctypes.Structure):
    """csrc/common/process.h."""

    _fields_ = [("graph", ctypes.c_int), ("vocab", ctypes.c_int64), ("mask", ctypes.c_int64)]


class EntropyArguments(ctypes.Structure):
    """csrc/common/entropy_row.h."""

    _fields_ = [
        ("log_score", ctypes.c_void_p),
        ("scores", Layout),
        ("sigma", ctypes.c_void_p),
        ("x_t", ctypes.c_void_p),
        ("x_0", ctypes.c_void_p),
        ("row_weight", ctypes.c_void_p),
        ("upstream", ctypes.c_void_p),
        ("scale", ctypes.c_double),
        ("loss", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        ("gradient", Layout),
        ("process", Process),
    ]


class ReverseArguments(ctypes.Structure):
    """csrc/common/reverse_row.h."""

    _fields_ = [
        ("log_score", ctypes.c_void_p),
        ("scores", Layout),
        ("x_t", ctypes.c_void_p),
        ("sigma", ctypes.c_void_p),
        ("dsigma", ctypes.c_void_p),
        ("u", ctypes.c_void_p),
        ("x_s", ctypes.c_void_p),
        ("process", Process),
        ("method", ctypes.c_int),
        ("inverse_temperature", ctypes.c_double),
        ("top_p", ctypes.c_double),
    ]


class TransitionArguments(ctypes.Structure):
    """csrc/common/transition.h."""

    _fields_ = [
        ("x_0", ctypes.c_void_p),
        ("sigma", ctypes.c_void_p),
        ("u", ctypes.c_void_p),
        ("x_t", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("length", ctypes.c_int64),
        ("process", Process),
    ]


def placed(values: Tensor, layout: Placement, fill: float) -> tuple[Tensor, Tensor]:
    """``values`` (B, L, dim) at odd addresses and strides among ``fill``; and the whole buffer."""
    start, gap, step = LAYOUTS[layout] if isinstance(layout, str) else layout
    batch, length, dim = values.shape
    stride = dim * step + gap
    buffer = torch.full((start + batch * length * stride + 32,), fill, dtype=values.dtype)
    # torch's allocations are aligned to 64 bytes: `start` is the misalignment.
    view = buffer.as_strided((batch, length, dim), (length * stride, stride, step), start)
    view.copy_(values)
    return view, buffer


def layout_of(tensor: Tensor) -> Layout:
    return Layout(tensor.shape[1], tensor.shape[2], *tensor.stride())


def pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class Rows:
    """Inputs for one graph; x_t and x_0 also lie at the edges of a row."""

    def __init__(
        self,
        graph: str,
        dim: int,
        dtype: torch.dtype = torch.float32,
        layout: Placement = "aligned",
        seed: int = 0,
        mask: int | None = None,
    ) -> None:
        self.graph, self.dim, self.dtype = graph, dim, dtype
        self.vocab = dim - (graph == "absorbing")
        self.mask = NO_MASK if graph == "uniform" else self.vocab if mask is None else mask
        g = torch.Generator().manual_seed(seed)
        edges = [0, 1, 2, 5, 8, dim // 2, dim - 9, dim - 2, dim - 1, dim - 1, 3, 7]
        edges = [min(max(edge, 0), dim - 1) for edge in edges]
        shape = (2, 6)
        self.x_0 = torch.tensor(edges).flip(0).clamp(max=self.vocab - 1).view(shape)
        self.x_0 += (self.mask != NO_MASK) & (self.x_0 >= self.mask)  # all states but the mask
        self.x_t = torch.tensor(edges).view(shape).clone()
        if graph == "absorbing":
            masked = torch.rand(shape, generator=g) < 0.7
            self.x_t = torch.where(masked, self.mask, self.x_t)
        else:
            self.x_t[0, :2] = self.x_0[0, :2]
        self.sigma = torch.tensor([0.3, 2.0], dtype=torch.float64)
        self.dsigma = torch.tensor([0.05, 1.0], dtype=torch.float64)
        self.weight = torch.rand(shape, generator=g, dtype=torch.float64) + 0.5
        self.weight[1, 3] = 0
        self.upstream = torch.randn(shape, generator=g, dtype=torch.float64)
        self.temperature = self.top_p = 1.0
        self.u = torch.rand((*shape, 2), generator=g, dtype=torch.float64)
        values = 2 * torch.randn((*shape, dim), generator=g, dtype=torch.float64) - 1
        values.scatter_(-1, self.x_t[..., None], 0)
        self.log_score, self.buffer = placed(values.to(dtype), layout, math.nan)

    def scores(self, values: Tensor) -> None:
        """Replace the scores in place."""
        self.log_score.copy_(values)

    def process(self) -> Process:
        return Process(GRAPHS[self.graph], self.vocab, self.mask)

    @property
    def inputs(self) -> EntropyInputs:
        """The arguments of the reference's score entropy."""
        process = self.graph, self.vocab, self.mask
        return EntropyInputs(self.sigma, self.x_t, self.x_0, self.weight, *process)

    def step(self, method: str) -> ReverseInputs:
        """The arguments of the reference's reverse step."""
        process = (self.graph, self.vocab, self.mask, method, False, self.temperature, self.top_p)
        return ReverseInputs(self.x_t, self.sigma, self.dsigma, self.u, *process)

    def weights(self, method: str) -> tuple[Tensor, Tensor]:
        """Weights of moving (B, L, dim) and of staying (B, L), float64."""
        return reference.reverse_weights(self.log_score.double(), self.step(method))

    def entropy(
        self,
        library: ctypes.CDLL,
        kind: str,
        threads: int = 64,
        backwards: bool = False,
        layout: Placement | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """("loss" | "backward" | "both") -> (loss, gradient), the gradient in that layout."""
        shape = tuple(self.x_t.shape)
        grad_fp32 = self.dtype == torch.float16 and kind == "both"
        loss_dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        loss = None if kind == "backward" else torch.empty(shape, dtype=loss_dtype)
        grad = buffer = None
        if kind != "loss":
            empty = torch.full((*shape, self.dim), SENTINEL, dtype=self.dtype)
            if layout is None:
                layout = "padded" if self.log_score.stride(1) != self.dim else "aligned"
            grad, buffer = placed(empty.float() if grad_fp32 else empty, layout, SENTINEL)
        upstream = self.upstream if kind == "backward" else None
        arguments = EntropyArguments(
            pointer(self.log_score), layout_of(self.log_score), pointer(self.sigma),
            pointer(self.x_t), pointer(self.x_0), pointer(self.weight), pointer(upstream), 1.0,
            pointer(loss), pointer(grad), layout_of(grad) if grad is not None else Layout(),
            self.process(),
        )  # fmt: skip
        status = library.run_entropy(
            ctypes.byref(arguments), DTYPES[self.dtype], int(grad_fp32),
            ctypes.c_int64(self.x_t.numel()), threads, int(backwards),
        )  # fmt: skip
        assert status == 0, FAILURES[status]
        if grad is not None:
            outside = torch.ones_like(buffer, dtype=torch.bool)
            outside.as_strided(grad.shape, grad.stride(), grad.storage_offset()).fill_(False)
            assert (buffer[outside] == SENTINEL).all()
        return loss, grad

    def reverse(
        self, library: ctypes.CDLL, method: str, threads: int = 64, backwards: bool = False
    ) -> Tensor:
        x_s = torch.full_like(self.x_t, -7)
        arguments = ReverseArguments(
            pointer(self.log_score), layout_of(self.log_score), pointer(self.x_t),
            pointer(self.sigma), pointer(self.dsigma), pointer(self.u), pointer(x_s),
            self.process(), METHODS[method], self.step(method).inverse_temperature, self.top_p,
        )  # fmt: skip
        status = library.run_reverse(
            ctypes.byref(arguments), DTYPES[self.dtype], ctypes.c_int64(x_s.numel()), threads,
            int(backwards),
        )  # fmt: skip
        assert status == 0, FAILURES[status]
        return x_s


def every_row() -> Iterable[tuple[str, int, torch.dtype, str]]:
    """Cases: every size in one layout and two dtypes, every layout and dtype at one size."""
    for graph in GRAPHS:
        for dim in STATES:
            yield graph, dim, torch.float32, "aligned"
            yield graph, dim, torch.bfloat16, "odd start"
        for dtype in DTYPES:
            for layout in LAYOUTS:
                yield graph, ODD, dtype, layout


def offsets(dtype: torch.dtype) -> range:
    """The possible distances, in elements, of an address from a multiple of 16 bytes."""
    return range(16 // dtype.itemsize)


def bytes_by_width(rows: ctypes.CDLL) -> dict[int, int]:
    """Width of a load -> bytes that the last run read with that width."""
    counts = {width: width * rows.wide_loads(width) for width in (2, 4, 8, 16)}
    return {width: count for width, count in counts.items() if count}


def assert_loss(case: Rows, loss: Tensor) -> None:
    """Check the loss, up to float32 rounding of its largest terms."""
    a, b, c, k = entropy_coefficients(case.inputs)
    scores = case.log_score.double()
    sum_exp = scores.exp().where(reference.other_states(case.x_t, case.dim), 0).sum(-1)
    at_x_0 = scores.gather(-1, case.x_0[..., None]).squeeze(-1).abs()
    terms = case.weight * (a * sum_exp + b * scores.abs().sum(-1) + c * at_x_0 + k.abs())
    exact = reference.score_entropy(scores, case.inputs)
    little = 1e-14 if case.dtype == torch.float64 else 1e-6
    assert ((loss - exact).abs() <= little * terms + 1e-30).all()


def assert_gradient(case: Rows, grad: Tensor, upstream: Tensor) -> None:
    """Check the gradient: a * exp(l) - b in float32, rounded once to its dtype."""
    scores = case.log_score.double()
    exact = reference.score_entropy_backward(upstream, scores, case.inputs)
    a, b, *_ = entropy_coefficients(case.inputs)
    terms = a[..., None] * scores.exp() + b[..., None]
    terms = terms * (case.weight * upstream).abs()[..., None]
    info = torch.finfo(grad.dtype)
    little = 1e-14 if grad.dtype == torch.float64 else 5e-7
    allowed = info.eps * exact.abs() + little * terms + info.smallest_normal * info.eps
    assert ((grad.double() - exact).abs() <= allowed).all()
    assert (grad[exact.eq(0).all(-1)] == 0).all()


def assert_drawn(case: Rows, x_s: Tensor, method: str) -> None:
    """Check for the reference's token, or one whose float64 interval ends within 1e-5 of u."""
    weights, stay = case.weights(method)
    cdf = weights.cumsum(-1)
    moving = cdf[..., -1]
    limit = moving / (moving + stay)
    moved = x_s != case.x_t
    u0, u1 = case.u.unbind(-1)
    assert ((moved == (u0 < limit)) | ((u0 - limit).abs() < 1e-5)).all()
    token = x_s[..., None]
    upper = cdf.gather(-1, token).squeeze(-1) / moving
    lower = upper - weights.gather(-1, token).squeeze(-1) / moving
    assert ((lower - 1e-5 <= u1) & (u1 <= upper + 1e-5))[moved].all()
    assert (weights.gather(-1, token).squeeze(-1) > 0)[moved].all()
