"""The mask at any state: every operation gives what it gives for the last, but for the numbers."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.head_cases import Head, make_head, run
from helpers.op_cases import (
    METHODS,
    Backend,
    Inputs,
    assert_inverse_cdf,
    loss_and_gradient,
    make_inputs,
)
from helpers.relabelled import Relabelling
from sedd_fast.backends import registry
from sedd_fast.names import TERMS

#: The first state, one among the others, and with several chunks or blocks of states around it.
RELABELLINGS = (Relabelling(11, 0), Relabelling(11, 4), Relabelling(700, 513))
by_mask = pytest.mark.parametrize(
    "new", RELABELLINGS, ids=lambda new: f"{new.mask}-of-{new.vocab_size}"
)
#: A score or an output of the mask that shows wherever it is read.
UNREAD = 30.0


def both(new: Relabelling, backend: Backend) -> tuple[Inputs, Inputs]:
    """Inputs with the mask last, and the same ones relabelled."""
    if backend.interpreted and new.vocab_size < 100:
        pytest.skip("interpreted: another case runs the same code")
    inputs = make_inputs(new.last, shape=(2, backend.some(30, 3)), device=backend.device)
    inputs.log_score.scatter_(-1, inputs.x_t[..., None], UNREAD)
    return inputs, new.inputs(inputs)


def assert_same(ours: Tensor, expected: Tensor) -> None:
    """Up to the rounding of sums in float32 in another order."""
    size = float(expected.detach().abs().max())
    torch.testing.assert_close(ours, expected, rtol=2e-6, atol=2e-6 * size)


@by_mask
def test_score_entropy(backend: Backend, new: Relabelling):
    last, moved = both(new, backend)
    upstream = last.row_weight.float()
    loss, gradient = loss_and_gradient(last, upstream)
    ours, of_scores = loss_and_gradient(moved, upstream)
    assert_same(ours, loss)
    assert_same(of_scores, new.rows(gradient))
    loss, gradient = sf.score_entropy_with_grad(*last.entropy(), last.row_weight, "mean")
    ours, of_scores = sf.score_entropy_with_grad(*moved.entropy(), moved.row_weight, "mean")
    assert_same(ours, loss)
    assert_same(of_scores, new.rows(gradient))


@by_mask
def test_row_sums(backend: Backend, new: Relabelling):
    if registry.unsupported(backend.name, "row_sums", torch.float32):
        pytest.skip(f"{backend} has no row_sums")
    results = []
    for inputs in both(new, backend):
        for term in TERMS:
            leaf = inputs.log_score.clone().requires_grad_()
            a = inputs.row_weight
            made = sf.row_sums(leaf, inputs.x_t, inputs.x_0, inputs.graph, term, a, a.flip(0))
            sum(out.sum() for out in made).backward()
            results.append((*made, leaf.grad))
    for last, ours in zip(results[:3], results[3:], strict=True):
        assert_same(ours[0], last[0])
        assert_same(ours[1], last[1])
        assert_same(ours[2], new.rows(last[2]))


@by_mask
@pytest.mark.parametrize("method", METHODS)
def test_reverse_step(backend: Backend, new: Relabelling, method: str):
    """The same u draws the same tokens: they are in the same order."""
    last, moved = both(new, backend)
    expected = sf.reverse_probs(*last.reverse(), method)
    assert_same(sf.reverse_probs(*moved.reverse(), method), new.rows(expected))
    filtered = {"temperature": 0.7, "top_p": 0.8}
    for shares in ({},) if backend.interpreted else ({}, filtered):
        tokens = sf.reverse_step(*moved.reverse(), method, u=moved.u, **shares)
        assert_inverse_cdf(tokens, moved, method, **shares)
        same = sf.reverse_step(*last.reverse(), method, u=last.u, **shares)
        assert torch.equal(tokens, new.states(same))
        assert method != "denoise" or not (tokens == new.mask).any()


@by_mask
def test_noise_and_touched_rows(backend: Backend, new: Relabelling):
    last, moved = both(new, backend)
    noised = [sf.sample_transition(i.x_0, i.sigma, i.graph, u=i.u) for i in (last, moved)]
    assert torch.equal(noised[1], new.states(noised[0]))
    assert (noised[1] == new.mask).any()
    rows = [sf.touched_rows(i.x_t, i.graph, i.row_weight).index for i in (last, moved)]
    assert torch.equal(*rows)


def heads(new: Relabelling, backend: Backend, dtype: torch.dtype) -> tuple[Head, Head]:
    """A head with the mask last, whose output would dwarf the others, and the same relabelled."""
    shape = (2, backend.some(20, 2))
    head = make_head(new.last, True, dtype, shape, device=backend.device)
    assert head.bias is not None
    head.bias[-1] = UNREAD
    return head, new.head(head)


@pytest.fixture
def head_backend(backend: Backend) -> Backend:
    if reason := registry.unsupported(backend.name, "linear_score_entropy", torch.float32):
        pytest.skip(f"{backend}: {reason}")
    return backend


#: Blocks of states of the C++ backend have 1,008 in float32.
HEADS = (Relabelling(11, 0), Relabelling(700, 513), Relabelling(2100, 1500))


@pytest.mark.parametrize("new", HEADS, ids=lambda new: f"{new.mask}-of-{new.vocab_size}")
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_linear_score_entropy(head_backend: Backend, new: Relabelling, reduction: str):
    """Also in several chunks of rows. The mask's row of the weight gets no gradient."""
    if head_backend.interpreted and new != HEADS[1]:
        pytest.skip("interpreted: another case runs the same code")
    last, moved = heads(new, head_backend, torch.float32)
    for workspace in (30_000,) if head_backend.interpreted else (None, 30_000):
        expected = run(last, reduction, workspace=workspace)
        ours = run(moved, reduction, workspace=workspace)
        for name in ("loss", "hidden"):
            torch.testing.assert_close(
                getattr(ours, name), getattr(expected, name), rtol=1e-4, atol=1e-5
            )
        for name in ("weight", "bias"):
            found, true = getattr(ours, name), new.rows(getattr(expected, name), 0)
            assert not found[new.mask].any()
            torch.testing.assert_close(found, true, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("new", HEADS, ids=lambda new: f"{new.mask}-of-{new.vocab_size}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_linear_reverse_step(head_backend: Backend, new: Relabelling, dtype: torch.dtype):
    """Whole rows, and sums of blocks or groups of states, of which one is formed again."""
    if head_backend.interpreted and (new != HEADS[1] or dtype == torch.float32):
        pytest.skip("interpreted: another case runs the same code")
    last, moved = heads(new, head_backend, dtype)
    cases = [
        ("denoise", {"workspace": 30_000}),
        ("analytic", {}),
        ("euler", {"workspace": 30_000}),
        ("denoise", {"temperature": 0.5}),
    ]
    for method, rest in cases[:2] if head_backend.interpreted else cases:
        tokens = moved.step(method, **rest)
        expected = new.states(last.step(method, **rest))
        assert float((tokens == expected).double().mean()) > 0.97
        assert method != "denoise" or not (tokens == new.mask).any()
        if dtype == torch.float32 and "temperature" not in rest:
            exact = replace(moved.inputs, log_score=moved.double().log_score())
            assert_inverse_cdf(tokens, exact, method)


def test_bad_tokens_are_named(backend: Backend):
    if not backend.raises:
        pytest.skip("values are checked on request")
    graph = sf.Absorbing(11, 4)
    inputs = make_inputs(graph)
    x_0 = inputs.x_0.clone()
    x_0[0, 0] = 11  # a token, since the mask is another state
    sf.score_entropy(inputs.log_score, inputs.sigma, inputs.x_t, x_0, graph)
    for bad, words in (
        (4, r"x_0 holds the mask \(4\) at position \(1, 2\)"),
        (12, "x_0 must hold tokens 0 .. 11 without the mask 4, got 12 at position"),
    ):
        x_0[1, 2] = bad
        with pytest.raises(ValueError, match=words):
            sf.score_entropy(inputs.log_score, inputs.sigma, inputs.x_t, x_0, graph)
        with pytest.raises(ValueError, match=words):
            sf.sample_transition(x_0, 0.5, graph)
    with pytest.raises(ValueError, match=r"tokens has 12 \(the mask is 4\)"):
        sf.reverse_step(inputs.log_score[..., 1:], inputs.x_t, 1.0, 0.1, graph)
