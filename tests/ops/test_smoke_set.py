"""The GPU smoke set covers everything once; it is collected with a simulated GPU."""

import os
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
GRAPHS = ("absorbing", "uniform")
METHODS = ("analytic", "euler", "denoise")
HALVES = ("torch.float32", "torch.bfloat16", "torch.float16")
#: Operation -> the files of its tests, and the kernel backends that have it.
OPERATIONS = {
    "score_entropy": (("test_score_entropy", "test_score_entropy_autograd"), ("triton", "cuda")),
    "reverse_step": (
        ("test_reverse_step", "test_distributions", "test_temperature_top_p"),
        ("triton", "cuda"),
    ),
    "sample_transition": (("test_sample_transition",), ("triton", "cuda")),
    "row_sums": (("test_row_sums",), ("triton",)),
    "linear_score_entropy": (
        ("test_linear_score_entropy", "test_linear_score_entropy_autograd"),
        ("triton",),
    ),
    "linear_reverse_step": (("test_linear_reverse_step",), ("triton",)),
    "linear_cross_entropy": (
        ("test_linear_cross_entropy", "test_linear_cross_entropy_autograd"),
        ("triton",),
    ),
    "linear_denoise": (("test_linear_denoise", "test_linear_denoise_draws"), ("triton",)),
}
SOFTMAX = ("linear_cross_entropy", "linear_denoise")  #: of no graph
DTYPED = ("score_entropy", "reverse_step", "row_sums", "linear_score_entropy", *SOFTMAX)
LAYOUTS = ("padded rows", "odd start", "transposed batch", "contiguous")


@pytest.fixture(scope="module")
def smoke() -> list[str]:
    """The names of the tests in the smoke set."""
    if find_spec("triton") is None:
        pytest.skip("needs Triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    command = [sys.executable, "-m", "pytest", "-p", "helpers.fake_gpu", "-p", "no:cacheprovider"]
    command += ["--collect-only", "-q", "-m", "gpu and smoke", str(TESTS / "ops")]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=TESTS.parent, timeout=200
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return [line for line in done.stdout.splitlines() if "::" in line]


def of(smoke: list[str], operation: str, backend: str) -> list[str]:
    files, _ = OPERATIONS[operation]
    own = [name for name in smoke if Path(name.partition("::")[0]).stem in files]
    return [name for name in own if f"{backend}-cuda" in name]


def test_the_smoke_set_has_a_few_hundred_tests(smoke):
    assert 300 <= len(smoke) <= 510
    assert len(set(smoke)) == len(smoke)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_graph_and_dtype_on_every_backend(smoke, operation):
    graphs = ("",) if operation in SOFTMAX else GRAPHS
    for backend in OPERATIONS[operation][1]:
        names = of(smoke, operation, backend)
        for graph in graphs:
            assert any(graph in name for name in names), (backend, graph)
        if operation in DTYPED:
            dtypes = HALVES + (("torch.float64",) if backend == "cuda" else ())
            pairs = [(graph, dtype) for graph in graphs for dtype in dtypes]
            for pair in pairs:
                assert any(all(word in name for word in pair) for name in names), (backend, pair)


@pytest.mark.parametrize("operation", ["reverse_step", "linear_reverse_step"])
def test_every_method_on_every_graph(smoke, operation):
    for backend in OPERATIONS[operation][1]:
        names = of(smoke, operation, backend)
        for pair in [(graph, method) for graph in GRAPHS for method in METHODS]:
            assert any(all(word in name for word in pair) for name in names), (backend, pair)


def test_every_layout_at_real_sizes(smoke):
    names = [name for name in smoke if "test_gpu_sizes" in name]
    for backend in ("triton", "cuda"):
        for layout in LAYOUTS:
            assert any(layout in name and f"{backend}-cuda" in name for name in names)
        assert any("two_to_the_31" in name and f"{backend}-cuda" in name for name in names)


def test_the_smoke_set_has_the_tests_that_need_a_gpu(smoke):
    functions = Counter(name.partition("::")[2].partition("[")[0] for name in smoke)
    for function in (
        "test_a_side_stream_waits_for_its_inputs",
        "test_every_operation_is_captured_and_replayed",
        "test_nothing_synchronises_the_device",
        "test_no_memory_besides_the_gradient",
        "test_a_bad_row_keeps_its_token",
    ):
        assert functions[function] >= 2, function
    assert "test_compute_sanitizer_finds_nothing" not in functions
