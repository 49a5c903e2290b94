"""The CUDA backend without a GPU: its error gives the reason, and nothing fails at import.

On a GPU it runs the conformance tests of every operation (op_cases.BACKENDS); its row functions are
tested on the CPU in test_cuda_rows.py.
"""

import pytest
import torch

import sedd_fast as sf
from sedd_fast.backends import cuda, registry

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@no_gpu
def test_the_reason_why_it_is_unavailable() -> None:
    reason = cuda.unavailable()
    assert reason is not None
    assert "pip install" in reason or "no CUDA device" in reason
    assert registry.unavailable("cuda", "cpu") == "it does not run on cpu tensors"


def test_cpu_tensors_are_refused() -> None:
    graph = sf.Absorbing(5)
    with (
        sf.use_backend("cuda"),
        pytest.raises(RuntimeError, match="'cuda' was asked for, but it does not run on cpu"),
    ):
        sf.sample_transition(torch.zeros(1, 2, dtype=torch.int64), 0.5, graph)


@no_gpu
def test_a_failed_launch_names_the_operation() -> None:
    compiled = pytest.importorskip("sedd_fast._cuda", exc_type=ImportError)
    scores = compiled.Tensor(0, 0, (1, 1, 5), (5, 5, 1))
    calls = {
        "sample_transition": compiled.Transition(0, 0, 0, 0, 1, 1, 0, 4, 4),
        "score_entropy": compiled.Entropy(scores, 0, 0, 0, 0, 0, 4, 4),
        "reverse_step": compiled.Reverse(scores, 0, 0, 0, 0, 0, 0, 4, 4, 0, 1.0, 1.0),
    }
    for op, call in calls.items():
        with pytest.raises(RuntimeError, match=f"{op} on cuda:0 could not be launched: "):
            getattr(compiled, op)(call, 0, 0)


def test_too_many_rows_are_an_error() -> None:
    compiled = pytest.importorskip("sedd_fast._cuda", exc_type=ImportError)
    scores = compiled.Tensor(0, 0, (2**31, 1, 5), (5, 5, 1))
    with pytest.raises(RuntimeError, match=r"score_entropy .*more than 2,147,483,647 positions"):
        compiled.score_entropy(compiled.Entropy(scores, 0, 0, 0, 0, 0, 4, 4), 0, 0)
