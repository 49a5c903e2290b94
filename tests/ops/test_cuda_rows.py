"""The row functions of the CUDA kernels (csrc/common), run on the CPU by a host block.

All code but three primitives and the launch is the same as on the GPU: the division of a row into
edge, vectors and tail, the reductions, the search for the drawn state, overflow, bad values.
"""

import ctypes
import math
from pathlib import Path

import pytest
import torch

from helpers.cuda_rows_host import (
    DTYPES,
    GRAPHS,
    METHODS,
    ODD,
    EntropyArguments,
    ReverseArguments,
    Rows,
    TransitionArguments,
    assert_drawn,
    assert_gradient,
    assert_loss,
    bytes_by_width,
    every_row,
    library,
    offsets,
    pointer,
)
from sedd_fast.backends import reference
from sedd_fast.backends.inputs import NoisingInputs

ROOT = Path(__file__).resolve().parents[2]
#: Bytes of scores in a chunk, of a loss and of a reverse step.
LOSS_CHUNK, STEP_CHUNK = 1024, 2048


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The row functions as a library."""
    return library(tmp_path_factory.mktemp("rows"))


EVERY_ROW = pytest.mark.parametrize(("graph", "dim", "dtype", "layout"), list(every_row()))


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


@pytest.mark.parametrize(
    ("dtype", "kind"), [*((dtype, "backward") for dtype in DTYPES), (torch.float16, "both")]
)
def test_scores_and_gradients_at_every_address(
    rows: ctypes.CDLL, dtype: torch.dtype, kind: str
) -> None:
    """Stores have 16 bytes, and loads are as wide as the alignment of the scores then allows.

    In one pass ("both") the gradient of float16 scores is float32.
    """
    gradient = torch.float32 if kind == "both" else dtype
    chunk = LOSS_CHUNK // dtype.itemsize
    dim = 2 * chunk + 21
    gap = -dim % 8 + 8  # every row is aligned as the first
    for score_start in offsets(dtype):
        case = Rows("uniform", dim, dtype, (score_start, gap, 1))
        case.weight[1, 3] = 1  # every row is touched
        factor = torch.ones_like(case.upstream) if kind == "both" else case.upstream
        for start in offsets(gradient):
            _, grad = case.entropy(rows, kind, layout=(start, gap, 1))
            assert_gradient(case, grad, factor)
            assert 16 * rows.wide_stores(16) == 12 * 2 * chunk * gradient.itemsize
            # The first states at which the gradient is aligned: two within 16 bytes of scores where
            # it is float32 and they are float16.
            heads = range(
                -start % len(offsets(gradient)), 16 // dtype.itemsize, 16 // gradient.itemsize
            )
            widest = max(math.gcd(16, (score_start + head) * dtype.itemsize) for head in heads)
            assert bytes_by_width(rows) == {widest: 12 * 2 * chunk * dtype.itemsize}


@pytest.mark.parametrize(
    ("dtype", "widths"),
    [
        (torch.bfloat16, {4, 8, 16}),
        (torch.float16, {4, 16}),  # its gradient is float32
        (torch.float32, {8, 16}),
        (torch.float64, {16}),
    ],
)
@pytest.mark.parametrize("graph", GRAPHS)
def test_a_dense_gradient_of_padded_scores(
    rows: ctypes.CDLL, graph: str, dtype: torch.dtype, widths: set[int]
) -> None:
    """All rows of scores are aligned; the rows of the gradient are not."""
    dim = 2 * LOSS_CHUNK // dtype.itemsize + 18
    case = Rows(graph, dim, dtype, (0, -dim % 8, 1))
    loss, grad = case.entropy(rows, "both", layout="aligned")
    assert_loss(case, loss)
    assert_gradient(case, grad, torch.ones_like(case.upstream))
    assert rows.wide_stores(16) > 0
    assert set(bytes_by_width(rows)) == widths


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("graph", GRAPHS)
def test_a_view_at_any_offset(rows: ctypes.CDLL, graph: str, dtype: torch.dtype) -> None:
    """The edge ends at an aligned address, so without a gradient every load has 16 bytes."""
    chunk = STEP_CHUNK // dtype.itemsize
    dim = chunk + 21
    for start in offsets(dtype):
        case = Rows(graph, dim, dtype, (start, -dim % 8 + 8, 1))
        case.u[..., 0] *= 0.3
        loss, _ = case.entropy(rows, "loss")
        assert_loss(case, loss)
        assert set(bytes_by_width(rows)) == {16}
        for method in METHODS:
            assert_drawn(case, case.reverse(rows, method), method)
            assert set(bytes_by_width(rows)) == {16}


@EVERY_ROW
@pytest.mark.parametrize("method", METHODS)
def test_draws(
    rows: ctypes.CDLL, graph: str, dim: int, dtype: torch.dtype, layout: str, method: str
) -> None:
    case = Rows(graph, dim, dtype, layout, seed=dim)
    if graph == "uniform":  # keep S near V, so that some weights are clamped
        case.dsigma = torch.tensor([0.2, 0.9], dtype=torch.float64)
    edges = torch.tensor([0.0, 1 - 2**-53, 0.5], dtype=torch.float64)
    for shift in (0.0, -math.log(dim)):
        case.scores(case.log_score + shift)
        case.u[..., 0] *= 0.3  # most rows move
        case.u[1, :3, 1] = edges
        assert_drawn(case, case.reverse(rows, method), method)


TOKEN_FILTERS = ((0.6, 1.0), (1.5, 0.9), (1e-40, 0.9))
#: Every pair of values: the whole product takes over a minute.
FILTERED = [
    (graph, method, dtype, TOKEN_FILTERS[(g + m + d) % 3])
    for g, graph in enumerate(GRAPHS)
    for m, method in enumerate(METHODS)
    for d, dtype in enumerate((torch.float32, torch.bfloat16, torch.float64))
]


@pytest.mark.parametrize(("graph", "method", "dtype", "token_filter"), FILTERED, ids=str)
def test_temperature_and_top_p(
    rows: ctypes.CDLL, graph: str, method: str, dtype: torch.dtype, token_filter: tuple
) -> None:
    for dim, shift in ((31, 0.0), (129 if dtype == torch.float64 else ODD, 95.0)):
        case = Rows(graph, dim, dtype, "odd start", seed=dim)
        case.temperature, case.top_p = token_filter
        case.scores(case.log_score + shift)
        case.u[..., 0] *= 0.3
        x_s = case.reverse(rows, method)
        assert_drawn(case, x_s, method)
        assert dim > 31 or (x_s == case.reverse(rows, method, backwards=True)).all()


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("layout", ["odd start", "strided"])
def test_order_of_threads_does_not_matter(rows: ctypes.CDLL, graph: str, layout: str) -> None:
    """The results are the same bits in any order of the threads, so no barrier is missing."""
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
    """exp(l) overflows or vanishes in float32; the loss and the distribution do neither."""
    case = Rows(graph, ODD, dtype, layout)
    case.weight *= 1e-20  # gradients then lie within the range of the dtype
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
    """The only state with weight is drawn, at any position of the row and for any u1."""
    for state in (1, 30, 1023, 1024, 1025, 1029, ODD - 2):
        case = Rows(graph, ODD, torch.bfloat16, "odd start")
        case.x_t = torch.full_like(case.x_t, ODD - 1)
        scores = torch.full_like(case.log_score, -math.inf)
        scores[..., state] = math.log(50.0 if graph == "absorbing" else 50.0 * ODD)
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
    """All scores of a network at initialisation are 0; alpha exp(l) + beta then cancels."""
    case = Rows("uniform", dim)
    case.scores(case.log_score * spread)
    case.sigma[:], case.dsigma[:] = sigma, 0.99 * sigma
    for method in ("analytic", "denoise"):
        assert_drawn(case, case.reverse(rows, method), method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_noise_levels(rows: ctypes.CDLL, graph: str, method: str, temperature: float) -> None:
    for dtype in (torch.float32, torch.float64):
        for spread in (0.0, 1e-9, 2.0):
            for noise in ((1e-308, 36.5), (33.0, 700.0), (746.0, 1e5)):
                case = Rows(graph, 129, dtype)
                case.scores(case.log_score * spread)
                case.sigma = case.dsigma = torch.tensor(noise, dtype=torch.float64)
                case.temperature = temperature
                assert_drawn(case, case.reverse(rows, method), method)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_a_weight_that_is_not_finite(rows: ctypes.CDLL, graph: str, bad: float) -> None:
    """NaN with zero gradient; a weight of 0 is not multiplied by an upstream gradient of NaN."""
    case = Rows(graph, 129)
    case.weight[0], case.upstream[0] = bad, math.nan
    loss, grad = case.entropy(rows, "both")
    assert loss[0].isnan().all() if bad else not loss[0].any()
    assert loss[1].isfinite().all()
    assert not grad[0].any()
    assert not case.entropy(rows, "backward")[1][0].any()


def test_no_noise_removed(rows: ctypes.CDLL) -> None:
    """The token stays for any scores."""
    for graph in GRAPHS:
        case = Rows(graph, 300)
        case.dsigma[:], case.u[..., 0] = 0, 0
        case.log_score[1] = math.nan
        for method in ("analytic", "euler"):
            assert (case.reverse(rows, method) == case.x_t).all()


@pytest.mark.parametrize("shift", [-1000, 1000])
def test_far_shifted_scores(rows: ctypes.CDLL, shift: int) -> None:
    """A denoising draw depends on the differences of scores only."""
    case = Rows("absorbing", ODD)
    case.scores(case.log_score + shift)
    case.x_t = torch.full_like(case.x_t, ODD - 1)
    assert_drawn(case, case.reverse(rows, "denoise"), "denoise")


def test_infinite_scores(rows: ctypes.CDLL) -> None:
    """A state at -inf has no weight. With a NaN, +inf, or only -inf in the row, the token stays."""
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
    """The loss is NaN, the gradient zero, and the token stays."""
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


@pytest.mark.parametrize(
    ("graph", "mask"), [("absorbing", None), ("absorbing", 7), ("uniform", None)]
)
def test_transition(rows: ctypes.CDLL, graph: str, mask: int | None) -> None:
    """The tokens equal those of the reference; with a bad value the token stays."""
    case = Rows(graph, 50, mask=mask)
    u = torch.rand((2, 6, 2), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    noising = NoisingInputs(case.x_0, case.sigma, u, graph, case.vocab, case.mask)
    expected = reference.sample_transition(noising)
    u[1, 5, 1] = math.nan
    expected[1, 5] = case.x_0[1, 5]
    x_t = torch.full_like(case.x_0, -7)
    arguments = TransitionArguments(
        pointer(case.x_0), pointer(case.sigma), pointer(u), pointer(x_t), 2, 6, case.process()
    )
    rows.run_transition(ctypes.byref(arguments))
    assert (x_t == expected).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", [0, 5, 511])
def test_a_mask_among_the_tokens(rows: ctypes.CDLL, mask: int, dtype: torch.dtype) -> None:
    """Results are the reference's, the mask is never drawn, and a mask as x_0 is a bad value."""
    case = Rows("absorbing", 600, dtype, "odd start", mask=mask)
    loss, grad = case.entropy(rows, "both")
    assert_loss(case, loss)
    assert_gradient(case, grad, torch.ones_like(case.upstream))
    for method in METHODS:
        x_s = case.reverse(rows, method)
        assert_drawn(case, x_s, method)
        assert method != "denoise" or not (x_s == mask).any()
    case.x_0[0, 0] = mask
    loss, grad = case.entropy(rows, "both")
    assert loss.isnan().sum() == loss[0, 0].isnan() == 1
    assert not grad[0, 0].any()


@pytest.mark.parametrize("shared", [48 << 10, 99 << 10, 227 << 10], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_most_states_of_a_step(rows: ctypes.CDLL, dtype: torch.dtype, shared: int) -> None:
    """The chunks of that many states fill the shared memory of a block; one more does not fit."""
    code, size = DTYPES[dtype], ctypes.c_int64
    most = rows.most_states_of_a_step(code, size(shared))
    fits, too_many = (rows.shared_bytes_of_a_step(code, size(n)) for n in (most, most + 1))
    assert fits <= shared < too_many
    chunk = STEP_CHUNK // dtype.itemsize
    assert most == ((shared - 288) // 8 - 1) * chunk - 1
    assert rows.most_states_of_a_step(code, size(2**40)) == 2**30  # state numbers are 32-bit


def test_structures_match(rows: ctypes.CDLL) -> None:
    assert rows.entropy_arguments_size() == ctypes.sizeof(EntropyArguments)
    assert rows.reverse_arguments_size() == ctypes.sizeof(ReverseArguments)


def test_exponentials_of_bfloat16(rows: ctypes.CDLL) -> None:
    """Every bfloat16 number: within 1.5 units in the last place where exp is a normal number."""
    bits = torch.arange(2**16).to(torch.int16)
    x = bits.view(torch.bfloat16).float()
    e = torch.empty_like(x)
    addresses = (ctypes.c_void_p(pointer(tensor)) for tensor in (x, e))
    rows.exponentials_of_bfloat16(*addresses, ctypes.c_int64(len(x)))
    exact = x.double().exp()
    assert (e.isnan() == x.isnan()).all()
    assert (e[exact > torch.finfo(torch.float32).max] == math.inf).all()
    assert ((e >= 0) & (e <= 1.2e-38))[exact < 2**-126].all()
    normal = (exact >= 2**-125) & (exact < 3e38)
    assert normal.sum() > 30_000
    error = (e.double() - exact).abs() / exact
    assert error[normal].max() < 1.5 * 2**-23


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_survive_a_round_trip(rows: ctypes.CDLL, dtype: torch.dtype) -> None:
    assert rows.round_trip_errors(DTYPES[dtype]) == 0
