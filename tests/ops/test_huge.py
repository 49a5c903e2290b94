"""More than 2^31 scores: 64-bit indices.

Scores that exist need 12 gigabytes (bfloat16; run with -m slow). Those of a head never do.
"""

from dataclasses import replace

import pytest
import torch

import sedd_fast as sf
from helpers.softmax_cases import SoftmaxHead, make_softmax_head, run
from sedd_fast.backends import cpp

pytestmark = pytest.mark.skipif(cpp.unavailable() is not None, reason="no C++ kernels here")
V, LENGTH, BATCH = 50257, 1024, 42
#: Rows and states of a head.
ROWS, STATES = 16_400, 131_072


@pytest.mark.slow
@pytest.mark.parametrize("graph", [sf.Absorbing(V), sf.Uniform(V)], ids=lambda g: g.kind)
def test_rows_beyond_two_to_the_31(graph: sf.Graph):
    assert BATCH * LENGTH * graph.dim > 2**31
    generator = torch.Generator().manual_seed(0)
    log_score = torch.empty(BATCH, LENGTH, graph.dim, dtype=torch.bfloat16)
    block = torch.randn(2, LENGTH, graph.dim, generator=generator)
    log_score[0], log_score[-2:] = block[0], block
    log_score[1:-2] = 0
    del block
    x_0 = torch.randint(V, (BATCH, LENGTH), generator=generator)
    x_t = x_0.clone()
    # The first and the last sequence are noised; the absorbing graph does not read the others.
    for rows in (slice(0, 1), slice(-2, None)):
        x_t[rows] = graph.sample_limit(tuple(x_t[rows].shape), generator=generator)
    u = torch.rand(BATCH, LENGTH, 2, dtype=torch.float64, generator=generator)
    weight = torch.zeros(BATCH, LENGTH)
    weight[0], weight[-2:] = 1, 1
    far, sigma = slice(-2, None), 0.7
    with sf.use_backend("cpp"):
        small = log_score[far].clone()
        expected = sf.score_entropy_with_grad(
            small, sigma, x_t[far], x_0[far], graph, weight[far], "none"
        )
        drawn = sf.reverse_step(small, x_t[far], sigma, 0.3, graph, u=u[far])
        loss, grad = sf.score_entropy_with_grad(log_score, sigma, x_t, x_0, graph, weight, "none")
        assert torch.equal(loss[far], expected[0])
        assert torch.equal(grad[far], expected[1])
        assert not grad[1:-2].any()
        del grad
        leaf = log_score.requires_grad_()
        again = sf.score_entropy(leaf, sigma, x_t, x_0, graph, weight)
        again.sum().backward()
        # A streamed gradient shifts which states share a lane: sums differ in the last place.
        torch.testing.assert_close(again.detach(), loss, rtol=1e-6, atol=0)
        assert torch.equal(leaf.grad[far], expected[1])
        leaf.grad = None
        tokens = sf.reverse_step(log_score, x_t, sigma, 0.3, graph, u=u)
        assert torch.equal(tokens[far], drawn)
        assert bool((tokens[far] != x_t[far]).any())


@pytest.fixture
def head() -> SoftmaxHead:
    """More than 2^31 outputs, all of which count."""
    assert ROWS * STATES > 2**31
    made = make_softmax_head(STATES, shape=(ROWS,), width=2, bias=False, excluded=(5,))
    return replace(made, target=made.target.clamp(min=6), row_weight=None)


def ends(head: SoftmaxHead) -> SoftmaxHead:
    """Only the first and the last rows."""
    at = torch.tensor([*range(10), *range(ROWS - 10, ROWS)])
    return replace(head, hidden=head.hidden[at], target=head.target[at], u=head.u[at])


def test_cross_entropy_of_outputs_beyond_two_to_the_31(head: SoftmaxHead):
    with sf.use_backend("cpp"):
        leaf = replace(head, hidden=head.hidden.clone().requires_grad_())
        leaf.entropy("sum").backward()
        expected = run(ends(head)).hidden
    got = ends(replace(head, hidden=leaf.hidden.grad)).hidden
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_denoising_of_outputs_beyond_two_to_the_31(head: SoftmaxHead):
    want = ("token", "argmax", "entropy")
    with sf.use_backend("cpp"):
        out, expected = head.denoise(want=want), ends(head).denoise(want=want)
    for name in want:
        got = ends(replace(head, hidden=getattr(out, name))).hidden
        torch.testing.assert_close(got, getattr(expected, name))
