"""Bad values and failed launches on a GPU: always memory-safe; an error when checks are enabled.

Without a GPU the effect of bad values is tested in Triton's interpreter. Run as a program, this
file does the short run that compute-sanitizer watches.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sedd_fast as sf
from helpers.op_cases import (
    GRAPHS,
    METHODS,
    Backend,
    Inputs,
    graph_id,
    graphs_of,
    loss_and_gradient,
    make_inputs,
)
from sedd_fast.backends import registry
from sedd_fast.backends.triton.launch import launched

by_graph = pytest.mark.parametrize("graph", GRAPHS, ids=graph_id)
FAR = 2**62


def good_inputs(gpu: Backend, graph: sf.Graph) -> Inputs:
    """Inputs in which every position may move, so that every value is read."""
    inputs = make_inputs(graph, shape=(2, 3), device=gpu.device)
    if graph.mask_index is None:
        return inputs
    return replace(inputs, x_t=torch.full_like(inputs.x_t, graph.mask_index))


def spoilt(gpu: Backend, graph: sf.Graph, name: str, value: float) -> Inputs:
    """The same with a bad value in the second sequence: in its noise, or at position 2."""
    inputs = good_inputs(gpu, graph)
    changed = getattr(inputs, name).clone()
    changed[(1,) if changed.dim() == 1 else (1, 2)] = value
    return replace(inputs, **{name: changed})


BAD_ENTROPY = (
    *(("x_t", -1), ("x_t", FAR), ("x_0", -1), ("x_0", FAR)),
    *(("sigma", value) for value in (0.0, -1.0, torch.nan, torch.inf)),
)
BAD_REVERSE = (
    *(("x_t", -1), ("x_t", FAR), ("sigma", torch.nan), ("sigma", torch.inf)),
    *(("dsigma", -1.0), ("dsigma", torch.nan), ("u", 1.0), ("u", torch.nan)),
)


@by_graph
@pytest.mark.parametrize(("name", "value"), BAD_ENTROPY)
def test_a_bad_row_has_a_nan_loss_and_no_gradient(gpu: Backend, graph, name, value):
    good, bad = good_inputs(gpu, graph), spoilt(gpu, graph, name, value)
    rows = torch.zeros_like(good.x_t, dtype=torch.bool)
    rows[(1,) if name == "sigma" else (1, 2)] = True
    upstream = torch.ones_like(good.row_weight)
    once_loss, once = sf.score_entropy_with_grad(*bad.entropy(), reduction="none")
    expected_loss, expected = loss_and_gradient(good)
    for loss, gradient in (loss_and_gradient(bad, upstream), (once_loss, once)):
        assert loss[rows].isnan().all()
        assert not gradient[rows].any()
        assert torch.equal(loss[~rows], expected_loss[~rows])
        torch.testing.assert_close(gradient[~rows], expected[~rows], rtol=1e-6, atol=0)


@pytest.mark.interpreted(method=["analytic"])  # what may move is decided before the method counts
@by_graph
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("name", "value"), BAD_REVERSE)
def test_a_bad_row_keeps_its_token(gpu: Backend, graph, name, value, method):
    if name == "dsigma" and method == "denoise":
        pytest.skip("not read")
    good, bad = good_inputs(gpu, graph), spoilt(gpu, graph, name, value)
    rows = torch.zeros_like(good.x_t, dtype=torch.bool)
    rows[(1,) if "sigma" in name else (1, 2)] = True
    tokens = sf.reverse_step(*bad.reverse(), method, u=bad.u)
    expected = sf.reverse_step(*good.reverse(), method, u=good.u)
    assert torch.equal(tokens[rows], bad.x_t[rows])
    assert torch.equal(tokens[~rows], expected[~rows])


@by_graph
@pytest.mark.parametrize(("name", "value"), [("sigma", torch.nan), ("sigma", -1.0), ("u", 2.0)])
def test_noising_with_bad_values_leaves_the_token(gpu: Backend, graph, name, value):
    bad = spoilt(gpu, graph, name, value)
    tokens = sf.sample_transition(bad.x_0, bad.sigma, graph, u=bad.u)
    rows = (1,) if name == "sigma" else (1, 2)
    assert torch.equal(tokens[rows], bad.x_0[rows])
    assert int(tokens.max()) < graph.dim
    assert int(tokens.min()) >= 0


@pytest.mark.gpu
@by_graph
def test_values_are_checked_when_checks_are_enabled(gpu: Backend, graph, monkeypatch):
    monkeypatch.setenv("SEDD_FAST_CHECK", "1")
    for name, value in BAD_ENTROPY:
        with pytest.raises(ValueError, match=name):
            sf.score_entropy(*spoilt(gpu, graph, name, value).entropy())
    for name, value in BAD_REVERSE:
        bad = spoilt(gpu, graph, name, value)
        with pytest.raises(ValueError, match=rf"\b{name}\b"):
            sf.reverse_step(*bad.reverse(), u=bad.u)


@pytest.mark.gpu
def test_a_failed_cuda_launch_names_the_operation():
    compiled = pytest.importorskip("sedd_fast._cuda", exc_type=ImportError)
    scores = compiled.Tensor(0, 0, (1, 1, 5), (5, 5, 1))
    calls = {
        "sample_transition": compiled.Transition(0, 0, 0, 0, 1, 1, 0, 4),
        "score_entropy": compiled.Entropy(scores, 0, 0, 0, 0, 0, 4),
        "reverse_step": compiled.Reverse(scores, 0, 0, 0, 0, 0, 0, 4, 0, 1.0, 1.0),
    }
    nowhere = torch.cuda.device_count()
    for op, call in calls.items():
        with pytest.raises(RuntimeError, match=f"{op} on cuda:{nowhere} could not be launched: "):
            getattr(compiled, op)(call, nowhere, 0)


def test_a_failed_triton_launch_names_the_operation(gpu: Backend, monkeypatch):
    if gpu.name != "triton":
        pytest.skip("Triton's")
    from sedd_fast.kernels import reverse_step, sample_transition, score_entropy

    def refused(*arguments: object) -> None:
        raise RuntimeError("Triton Error [CUDA]: invalid argument")

    inputs = good_inputs(gpu, GRAPHS[0])
    calls = {
        reverse_step: lambda: sf.reverse_step(*inputs.reverse(), u=inputs.u),
        sample_transition: lambda: sf.sample_transition(inputs.x_0, 0.5, GRAPHS[0], u=inputs.u),
        score_entropy: lambda: sf.score_entropy(*inputs.entropy()),
    }
    for kernel, call in calls.items():
        monkeypatch.setattr(kernel, "launch", refused)
        op = kernel.__name__.rpartition(".")[2]
        with pytest.raises(RuntimeError, match=f"{op} on .* could not be launched: .*invalid"):
            call()


def test_out_of_memory_keeps_its_type():
    """Code that retries with a smaller batch catches torch's own error type."""

    def refused() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        launched("score_entropy", torch.zeros(1), refused)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_compute_sanitizer_finds_nothing(name: str, tool: str):
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"])
    program = shutil.which("compute-sanitizer", path=places)
    if program is None:
        pytest.skip("compute-sanitizer is neither on PATH nor in /usr/local/cuda/bin")
    if reason := registry.unavailable(name, "cuda"):
        pytest.skip(f"{name}: {reason}")
    # Failing calls that torch handles are not errors here, and compilers are not watched.
    watched = ("--report-api-errors", "no", "--target-processes", "application-only")
    command = [program, "--tool", tool, *watched, "--error-exitcode", "9"]
    path = str(Path(__file__).parents[1])
    done = subprocess.run(
        [*command, sys.executable, __file__, name],
        capture_output=True, text=True, check=False, timeout=300,
        # Every tensor gets its own allocation, so that reading past its end is an error.
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": path},
    )  # fmt: skip
    if "Device not supported" in done.stdout + done.stderr:
        pytest.skip("compute-sanitizer cannot watch this device")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "ran through" in done.stdout


def short_run(name: str) -> None:
    """Run every operation once, on rows shorter and longer than a block, valid and bad."""
    with sf.use_backend(name):
        for graph in graphs_of((11, 5003)):
            for dtype in (torch.bfloat16, torch.float32):
                inputs = make_inputs(graph, dtype, (2, 3), device="cuda")
                for each in (inputs, replace(inputs, x_t=inputs.x_t * 0 + FAR)):
                    loss_and_gradient(each)
                    sf.score_entropy_with_grad(*each.entropy())
                    for method in METHODS:
                        sf.reverse_step(*each.reverse(), method, u=each.u)
                sf.sample_transition(inputs.x_0, inputs.sigma, graph, u=inputs.u)
    torch.cuda.synchronize()
    print("ran through")


if __name__ == "__main__":
    short_run(sys.argv[1])
