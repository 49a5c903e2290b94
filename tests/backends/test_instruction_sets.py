"""The C++ kernels with a smaller instruction set than the processor's: SEDD_FAST_ISA.

The set is chosen once per process, so each set is tested in its own process, which runs this file.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.op_cases import DTYPES, METHODS, Inputs, assert_inverse_cdf, graphs_of, make_inputs
from sedd_fast.backends import cpp, reference
from sedd_fast.names import TERMS

pytestmark = pytest.mark.skipif(cpp.unavailable() is not None, reason="no C++ kernels here")


SETS = ("baseline", "avx2", "avx512")


@pytest.mark.parametrize("wanted", SETS)
def test_an_instruction_set(wanted):
    best = cpp.kernels().instruction_set()
    if SETS.index(wanted) > SETS.index(best.partition("_")[0]):
        pytest.skip(f"this processor has no {wanted}; another case checks {best}")
    environment = {**os.environ, "SEDD_FAST_ISA": wanted, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == wanted


def results(inputs: Inputs) -> list[Tensor]:
    """Losses, gradients and probabilities of one backend."""
    leaf = inputs.log_score.detach().requires_grad_()
    loss = sf.score_entropy(leaf, *inputs.entropy()[1:], inputs.row_weight)
    loss.sum().backward()
    once = sf.score_entropy_with_grad(*inputs.entropy(), inputs.row_weight, "none")
    probs = [
        sf.reverse_probs(*inputs.reverse(), method, **shares)
        for method in METHODS
        for shares in ({}, {"temperature": 0.7, "top_p": 0.9})
    ]
    return [loss.detach(), leaf.grad, *once, *probs, *terms(inputs)]


def terms(inputs: Inputs) -> list[Tensor]:
    """Row sums of every term with their gradients, in float32 or float64."""
    found = []
    for term in TERMS:
        leaf = inputs.log_score.detach().float().requires_grad_()
        arguments = (leaf, inputs.x_t, inputs.x_0, inputs.graph, term, inputs.row_weight)
        total, at_x_0 = sf.row_sums(*arguments, inputs.row_weight)
        (total * 1e-3 + at_x_0).sum().backward()
        found += [total.detach().float(), leaf.grad]
    return found


def check_everything() -> None:
    """Compare cpp with the reference: every dtype and graph, vectors and tails, special values."""
    for graph in graphs_of((17, 600)):
        for dtype in DTYPES:
            inputs = make_inputs(graph, dtype)
            with sf.use_backend("reference"):
                expected = results(inputs)
            with sf.use_backend("cpp"):
                got = results(inputs)
                for method in METHODS:
                    tokens = sf.reverse_step(*inputs.reverse(), method, u=inputs.u)
                    assert_inverse_cdf(tokens, inputs, method)
            for one, other in zip(got, expected, strict=True):
                little = max(torch.finfo(one.dtype).eps * 8, 1e-12)
                torch.testing.assert_close(one, other, rtol=little, atol=little)
    check_specials()
    check_uniforms()


def check_uniforms() -> None:
    """Uniform numbers do not depend on the instruction set."""
    for count in (1, 2, 30, 1001):
        one, other = torch.zeros(2, count, dtype=torch.float64)
        cpp.fill_uniforms(one, 2**62 + 1, 2**32 - 5)
        reference.fill_uniforms(other, 2**62 + 1, 2**32 - 5)
        assert torch.equal(one, other)


def check_specials() -> None:
    """Check loads, exp and stores on every float16 and bfloat16 number."""
    for dtype in (torch.float16, torch.bfloat16):
        numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
        numbers = numbers[numbers.isfinite() & (numbers.abs() < 80)]
        graph = sf.Absorbing(len(numbers) + 1)
        log_score = torch.nn.functional.pad(numbers, (1, 1))[None, None].requires_grad_()
        x_t, x_0 = torch.full((1, 1), graph.mask_index), torch.zeros(1, 1, dtype=torch.int64)
        with sf.use_backend("cpp"):
            sf.score_entropy(log_score, 1.0, x_t, x_0, graph, reduction="sum").backward()
        truth = numbers.detach().double().exp()
        got = log_score.grad[0, 0, 1:-1]
        close = truth.to(dtype)
        off = (got.view(torch.int16) - close.view(torch.int16)).abs().max()
        assert int(off) <= 1, f"{dtype}: {int(off)} steps from the nearest number"
        assert float((got == close).double().mean()) > 0.99


if __name__ == "__main__":
    torch.set_num_threads(1)
    used = cpp.kernels().instruction_set()
    print(used)
    if used == os.environ.get("SEDD_FAST_ISA", used):
        check_everything()
