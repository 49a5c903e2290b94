"""The row functions of the CUDA kernels (csrc/common), run on the CPU by a host block.

What they share with the GPU is everything but three primitives and the launch: how a row is cut
into edge, vectors and tail, the reductions, the search for the drawn state, overflow, bad values.
cuda_rows_host.cpp runs the threads of a block as coroutines; it also counts 16-byte accesses that
are not aligned. Rows lie between NaNs and gradients between sentinels, so a read or a write outside
shows.
"""

from __future__ import annotations

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

ROOT = Path(__file__).resolve().parents[2]
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
GRAPHS = {"absorbing": 0, "uniform": 1}
METHODS = {"analytic": 0, "euler": 1, "denoise": 2}
#: A chunk is 512 states of 2 bytes, 256 of 4, 128 of 8: at, below and above, and odd ones.
STATES = (2, 3, 31, 129, 512, 777, 2051, 5000)
#: Elements before the first row and between rows; stride over states.
LAYOUTS = {"aligned": (0, 0, 1), "odd start": (3, 0, 1), "padded": (1, 6, 1), "strided": (2, 5, 3)}
SENTINEL = 77.0


class Layout(ctypes.Structure):
    """csrc/common/traverse.h."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("length", "dim", "stride_batch", "stride_length", "stride_state")
    ]


class Process(ctypes.Structure):
    """csrc/common/process.h."""

    _fields_ = [("graph", ctypes.c_int), ("vocab", ctypes.c_int64)]


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


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The row functions as a library."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the host block needs Linux's ucontext")
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    compiler = next((name for name in names if shutil.which(shlex.split(name)[0])), None)
    if compiler is None:
        pytest.skip("no C++ compiler")
    library = tmp_path_factory.mktemp("rows") / "rows.so"
    source = ROOT / "tests" / "ops" / "cuda_rows_host.cpp"
    command = [*shlex.split(compiler), "-std=c++17", "-O1", "-shared", "-fPIC"]
    done = subprocess.run(
        [*command, f"-I{ROOT / 'csrc'}", str(source), "-o", str(library)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = ctypes.CDLL(str(library))
    loaded.round_trip_errors.restype = ctypes.c_int64
    return loaded


def placed(values: Tensor, layout: str, fill: float) -> tuple[Tensor, Tensor]:
    """``values`` (B, L, dim) at odd addresses and strides among ``fill``; and the whole buffer."""
    start, gap, step = LAYOUTS[layout]
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
    """Positions of one graph; x_t and x_0 at the edges of a row too."""

    def __init__(
        self,
        graph: str,
        dim: int,
        dtype: torch.dtype = torch.float32,
        layout: str = "aligned",
        seed: int = 0,
    ) -> None:
        self.graph, self.dim, self.dtype = graph, dim, dtype
        self.vocab = dim - (graph == "absorbing")
        g = torch.Generator().manual_seed(seed)
        edges = [0, 1, 2, 5, 8, dim // 2, dim - 9, dim - 2, dim - 1, dim - 1, 3, 7]
        edges = [min(max(edge, 0), dim - 1) for edge in edges]
        shape = (2, 6)
        self.x_0 = torch.tensor(edges).flip(0).clamp(max=self.vocab - 1).view(shape)
        self.x_t = torch.tensor(edges).view(shape).clone()
        if graph == "absorbing":
            masked = torch.rand(shape, generator=g) < 0.7
            self.x_t = torch.where(masked, self.vocab, self.x_t)
        else:
            self.x_t[0, :2] = self.x_0[0, :2]
        self.sigma = torch.tensor([0.3, 2.0], dtype=torch.float64)
        self.dsigma = torch.tensor([0.05, 1.0], dtype=torch.float64)
        self.weight = torch.rand(shape, generator=g, dtype=torch.float64) + 0.5
        self.weight[1, 3] = 0
        self.upstream = torch.randn(shape, generator=g, dtype=torch.float64)
        self.u = torch.rand((*shape, 2), generator=g, dtype=torch.float64)
        values = 2 * torch.randn((*shape, dim), generator=g, dtype=torch.float64) - 1
        values.scatter_(-1, self.x_t[..., None], 0)
        self.log_score, self.buffer = placed(values.to(dtype), layout, math.nan)

    def scores(self, values: Tensor) -> None:
        """Other scores in place."""
        self.log_score.copy_(values)

    def process(self) -> Process:
        return Process(GRAPHS[self.graph], self.vocab)

    def entropy_inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.log_score.double(), self.sigma, self.x_t, self.x_0

    def entropy(
        self, library: ctypes.CDLL, kind: str, threads: int = 64, backwards: bool = False
    ) -> tuple[Tensor | None, Tensor | None]:
        """("loss" | "backward" | "both") -> (loss, gradient)."""
        shape = tuple(self.x_t.shape)
        wide = self.dtype == torch.float16 and kind == "both"
        loss_dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        loss = None if kind == "backward" else torch.empty(shape, dtype=loss_dtype)
        grad = buffer = None
        if kind != "loss":
            empty = torch.full((*shape, self.dim), SENTINEL, dtype=self.dtype)
            layout = "padded" if self.log_score.stride(1) != self.dim else "aligned"
            grad, buffer = placed(empty.float() if wide else empty, layout, SENTINEL)
        upstream = self.upstream if kind == "backward" else None
        arguments = EntropyArguments(
            pointer(self.log_score), layout_of(self.log_score), pointer(self.sigma),
            pointer(self.x_t), pointer(self.x_0), pointer(self.weight), pointer(upstream), 1.0,
            pointer(loss), pointer(grad), layout_of(grad) if grad is not None else Layout(),
            self.process(),
        )  # fmt: skip
        status = library.run_entropy(
            ctypes.byref(arguments), DTYPES[self.dtype], int(wide),
            ctypes.c_int64(self.x_t.numel()), threads, int(backwards),
        )  # fmt: skip
        assert status == 0, ("stuck at a barrier", "a 16-byte access is not aligned")[status - 1]
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
            self.process(), METHODS[method],
        )  # fmt: skip
        status = library.run_reverse(
            ctypes.byref(arguments), DTYPES[self.dtype], ctypes.c_int64(x_s.numel()), threads,
            int(backwards),
        )  # fmt: skip
        assert status == 0, ("stuck at a barrier", "a 16-byte access is not aligned")[status - 1]
        return x_s


def every_row() -> Iterable[tuple[str, int, torch.dtype, str]]:
    """Every size in one layout and two dtypes, every layout and dtype at one size."""
    for graph in GRAPHS:
        for dim in STATES:
            yield graph, dim, torch.float32, "aligned"
            yield graph, dim, torch.bfloat16, "odd start"
        for dtype in DTYPES:
            for layout in LAYOUTS:
                yield graph, 777, dtype, layout


EVERY_ROW = pytest.mark.parametrize(("graph", "dim", "dtype", "layout"), list(every_row()))


def assert_loss(case: Rows, loss: Tensor) -> None:
    """Within float32's rounding of its largest terms."""
    a, b, c, k = entropy_coefficients(case.sigma, case.x_t, case.x_0, case.graph, case.vocab)
    scores = case.log_score.double()
    sum_exp = scores.exp().where(reference.other_states(case.x_t, case.dim), 0).sum(-1)
    at_x_0 = scores.gather(-1, case.x_0[..., None]).squeeze(-1).abs()
    terms = case.weight * (a * sum_exp + b * scores.abs().sum(-1) + c * at_x_0 + k.abs())
    exact = reference.score_entropy(*case.entropy_inputs(), case.weight, case.graph, case.vocab)
    little = 1e-14 if case.dtype == torch.float64 else 1e-6
    assert ((loss - exact).abs() <= little * terms + 1e-30).all()


def assert_gradient(case: Rows, grad: Tensor, upstream: Tensor) -> None:
    """Rounded once into its dtype from float32's a * exp(l) - b."""
    inputs = case.entropy_inputs()
    exact = reference.score_entropy_backward(upstream, *inputs, case.weight, case.graph, case.vocab)
    a, b, *_ = entropy_coefficients(case.sigma, case.x_t, case.x_0, case.graph, case.vocab)
    terms = a[..., None] * inputs[0].exp() + b[..., None]
    terms = terms * (case.weight * upstream).abs()[..., None]
    info = torch.finfo(grad.dtype)
    little = 1e-14 if grad.dtype == torch.float64 else 5e-7
    allowed = info.eps * exact.abs() + little * terms + info.smallest_normal * info.eps
    assert ((grad.double() - exact).abs() <= allowed).all()
    assert (grad[exact.eq(0).all(-1)] == 0).all()


@EVERY_ROW
def test_loss_and_gradient(
    rows: ctypes.CDLL, graph: str, dim: int, dtype: torch.dtype, layout: str
) -> None:
    case = Rows(graph, dim, dtype, layout)
    loss, _ = case.entropy(rows, "loss")
    assert_loss(case, loss)
    loss, grad = case.entropy(rows, "both", threads=96)
    assert_loss(case, loss)
    assert_gradient(case, grad, torch.ones_like(case.upstream))
    _, grad = case.entropy(rows, "backward", threads=32)
    assert_gradient(case, grad, case.upstream)


def assert_drawn(case: Rows, x_s: Tensor, method: str) -> None:
    """The reference's token, or one whose interval of the float64 law ends within 1e-5 of u."""
    inputs = (case.log_score.double(), case.x_t, case.sigma, case.dsigma)
    weights, stay = reference.reverse_weights(*inputs, case.graph, case.vocab, method)
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


@EVERY_ROW
@pytest.mark.parametrize("method", METHODS)
def test_draws(
    rows: ctypes.CDLL, graph: str, dim: int, dtype: torch.dtype, layout: str, method: str
) -> None:
    case = Rows(graph, dim, dtype, layout, seed=dim)
    if graph == "uniform":  # keep S near V, so that the clamped law has something to clamp
        case.dsigma = torch.tensor([0.2, 0.9], dtype=torch.float64)
    edges = torch.tensor([0.0, 1 - 2**-53, 0.5], dtype=torch.float64)
    for shift in (0.0, -math.log(dim)):
        case.scores(case.log_score + shift)
        case.u[..., 0] *= 0.3  # most rows move
        case.u[1, :3, 1] = edges
        assert_drawn(case, case.reverse(rows, method), method)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("layout", ["odd start", "strided"])
def test_order_of_threads_does_not_matter(rows: ctypes.CDLL, graph: str, layout: str) -> None:
    """The same bits whichever thread runs first: no barrier is missing."""
    case = Rows(graph, 2051, torch.bfloat16, layout)
    case.u[..., 0] = 0
    forwards, backwards = case.entropy(rows, "both"), case.entropy(rows, "both", backwards=True)
    for one, other in zip(forwards, backwards, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    for method in METHODS:
        one, other = (case.reverse(rows, method, backwards=order) for order in (False, True))
        assert (one == other).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("layout", ["odd start", "strided"])
def test_scores_beyond_float32(
    rows: ctypes.CDLL, graph: str, dtype: torch.dtype, layout: str
) -> None:
    """exp(l) overflows float32, the loss and the law do not; below, the law does not vanish."""
    case = Rows(graph, 777, dtype, layout)
    case.weight *= 1e-20  # so that gradients are numbers of that dtype
    case.scores(case.log_score + 95)
    for backwards in (False, True):
        loss, grad = case.entropy(rows, "both", threads=96, backwards=backwards)
        assert_loss(case, loss)
        assert_gradient(case, grad, torch.ones_like(case.upstream))
    for shift in (0, -400):
        case.scores(case.log_score + shift)
        for method in METHODS:
            x_s = case.reverse(rows, method)
            assert_drawn(case, x_s, method)
            assert (x_s == case.reverse(rows, method, backwards=True)).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_only_states_of_weight_are_drawn(rows: ctypes.CDLL, graph: str, method: str) -> None:
    """One state has weight: it is drawn wherever it lies, whatever u1."""
    for state in (1, 30, 511, 512, 513, 775):
        case = Rows(graph, 777, torch.bfloat16, "odd start")
        case.x_t = torch.full_like(case.x_t, 776)
        scores = torch.full_like(case.log_score, -math.inf)
        scores[..., state] = math.log(50.0 if graph == "absorbing" else 50.0 * 777)
        case.scores(scores)
        case.u[..., 0] = 0
        case.u[0, :, 1], case.u[1, :, 1] = 0, 1 - 2**-53
        assert (case.reverse(rows, method) == state).all()


@pytest.mark.parametrize("spread", [0.0, 1e-4, 0.01])
@pytest.mark.parametrize("sigma", [8.0, 20.0])
@pytest.mark.parametrize("dim", [11, 1023])
def test_much_noise_removed_at_once(
    rows: ctypes.CDLL, dim: int, sigma: float, spread: float
) -> None:
    """A fresh network's scores are all 0: alpha exp(l) + beta cancels."""
    case = Rows("uniform", dim)
    case.scores(case.log_score * spread)
    case.sigma[:], case.dsigma[:] = sigma, 0.99 * sigma
    for method in ("analytic", "denoise"):
        assert_drawn(case, case.reverse(rows, method), method)


def test_no_noise_removed(rows: ctypes.CDLL) -> None:
    """It stays, whatever the scores."""
    for graph in GRAPHS:
        case = Rows(graph, 300)
        case.dsigma[:], case.u[..., 0] = 0, 0
        case.log_score[1] = math.nan
        for method in ("analytic", "euler"):
            assert (case.reverse(rows, method) == case.x_t).all()


@pytest.mark.parametrize("shift", [-1000, 1000])
def test_far_shifted_scores(rows: ctypes.CDLL, shift: int) -> None:
    """A denoising draw depends on differences of scores only."""
    case = Rows("absorbing", 777)
    case.scores(case.log_score + shift)
    case.x_t = torch.full_like(case.x_t, 776)
    assert_drawn(case, case.reverse(rows, "denoise"), "denoise")


def test_infinite_scores(rows: ctypes.CDLL) -> None:
    """-inf is a state without weight; a NaN or +inf, or nothing at all, leaves the token."""
    case = Rows("absorbing", 130)
    case.x_t = torch.full_like(case.x_t, 129)
    case.scores(torch.zeros_like(case.log_score))
    case.log_score[0, 0, 5], case.log_score[0, 1, 100] = math.nan, math.inf
    case.log_score[0, 2] = -math.inf
    case.log_score[0, 3, :100] = -math.inf
    loss, grad = case.entropy(rows, "both")
    assert loss[0, 0].isnan()
    assert loss[0, 1].isposinf()
    assert loss[0, 4].isfinite()
    assert (grad[0, 3, 20:100] == 0).all()
    case.u[..., 0] = 0
    x_s = case.reverse(rows, "denoise")
    assert x_s[0, :3].tolist() == [129, 129, 129]
    assert 100 <= x_s[0, 3] < 129


@pytest.mark.parametrize("graph", GRAPHS)
def test_bad_values_are_harmless(rows: ctypes.CDLL, graph: str) -> None:
    """A NaN loss and a zero gradient; the token stays."""
    case = Rows(graph, 300, torch.float16)
    case.x_t[0, 0], case.x_t[0, 1] = -1, 300
    case.x_0[0, 2], case.x_0[0, 3] = 10**15, case.vocab
    case.sigma[1] = math.nan
    loss, grad = case.entropy(rows, "both")
    assert loss[0, :4].isnan().all()
    assert loss[1].isnan().all()
    assert loss[0, 4:].isfinite().all()
    assert (grad[0, :4] == 0).all()
    assert (grad[1] == 0).all()
    case.u[0, 4, 0], case.u[0, 5, 1] = 1.0, math.nan
    x_s = case.reverse(rows, "denoise")
    still = torch.ones_like(x_s, dtype=torch.bool)
    still[0, 2:4] = False
    assert (x_s == case.x_t)[still].all()


@pytest.mark.parametrize("graph", GRAPHS)
def test_transition(rows: ctypes.CDLL, graph: str) -> None:
    """The reference's tokens, bit for bit; a bad value leaves the token."""
    case = Rows(graph, 50)
    u = torch.rand((2, 6, 2), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = reference.sample_transition(case.x_0, case.sigma, u, graph, case.vocab)
    u[1, 5, 1] = math.nan
    expected[1, 5] = case.x_0[1, 5]
    x_t = torch.full_like(case.x_0, -7)
    arguments = TransitionArguments(
        pointer(case.x_0), pointer(case.sigma), pointer(u), pointer(x_t), 2, 6, case.process()
    )
    rows.run_transition(ctypes.byref(arguments))
    assert (x_t == expected).all()


def test_structures_match(rows: ctypes.CDLL) -> None:
    assert rows.entropy_arguments_size() == ctypes.sizeof(EntropyArguments)
    assert rows.reverse_arguments_size() == ctypes.sizeof(ReverseArguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_survive_a_round_trip(rows: ctypes.CDLL, dtype: torch.dtype) -> None:
    assert rows.round_trip_errors(DTYPES[dtype]) == 0
