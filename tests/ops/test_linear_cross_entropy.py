"""linear_cross_entropy: truth, gradients, reductions, rows, layouts, extreme outputs."""

import math
from dataclasses import replace

import pytest
import torch

import sedd_fast as sf
from helpers.head_cases import on_heads
from helpers.op_cases import DTYPES, Backend
from helpers.softmax_cases import SoftmaxHead, check, head_on, naive, run
from sedd_fast.ops import TouchedRows

REDUCTIONS = ("none", "sum", "mean")
pytestmark = [*on_heads, pytest.mark.operation("linear_cross_entropy")]
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
by_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)
#: The terms of the loss: none, each, and all with states left out.
TERMS = (
    {},
    {"softcap": 30.0},
    {"softcap": 1.5},
    {"z_loss": 0.05},
    {"softcap": 2.0, "z_loss": -0.1, "excluded": (0, 7)},
)


def assert_same(got, expected, **tolerance: float) -> None:
    for name, value in got.named().items():
        torch.testing.assert_close(value, getattr(expected, name), **tolerance)


@pytest.mark.interpreted_float16
@pytest.mark.interpreted_head(term=(TERMS[0], TERMS[4]))
@by_dtype
@pytest.mark.parametrize("term", TERMS, ids=str)
def test_truth_of_every_term(backend: Backend, dtype, term):
    check(head_on(backend, 11, dtype, **term))


#: Around the width of a block: 1008 states in float32, 504 in float64, 2016 in the half dtypes.
@pytest.mark.interpreted_head(states=(2, 17, 600))
@pytest.mark.parametrize("states", [2, 3, 17, 504, 600, 1009, 2500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_truth_at_odd_vocabularies(backend: Backend, dtype, states):
    check(head_on(backend, states, dtype, shape=(2, backend.some(5, 2)), width=7))


@pytest.mark.parametrize(
    ("states", "dtype"), [(50_257, torch.bfloat16), (262_144, torch.float32)], ids=str
)
def test_truth_at_the_largest_vocabularies(backend: Backend, states, dtype):
    check(head_on(backend, states, dtype, shape=(2,), width=3, excluded=(states - 1,)))


@by_dtype
def test_one_state_is_certain(backend: Backend, dtype):
    """A single state that is left: no loss, and no gradient."""
    head = head_on(backend, 3, dtype, excluded=(0, 2))
    for reduction in REDUCTIONS:
        for value in run(head, reduction).named().values():
            assert torch.equal(value, torch.zeros_like(value))


@pytest.mark.interpreted_head(excluded=((5,), (0, 1, 4, 5, 6, 10)))
@by_dtype
@pytest.mark.parametrize("excluded", [(0,), (5,), (10,), (3, 4, 5, 6), (0, 1, 4, 5, 6, 10)])
def test_excluded_states(backend: Backend, dtype, excluded):
    """Their outputs may be anything, and their rows of the weight get no gradient."""
    head = head_on(backend, 11, dtype, excluded=excluded)
    head.bias[list(excluded)] = 60.0
    check(head)
    for reduction in REDUCTIONS:
        results = run(head, reduction)
        assert not results.weight[list(excluded)].any()
        assert not results.bias[list(excluded)].any()


@pytest.mark.interpreted_head
def test_forms_of_excluded(backend: Backend):
    head = head_on(backend, 11, excluded=(4, 8))
    expected = head.entropy()
    for given in ([8, 4], (4, 8, 8), range(4, 9, 4)):
        assert torch.equal(head.entropy(excluded=given), expected)
    head = replace(head, target=torch.where(head.target == 8, 7, head.target))
    assert torch.equal(head.entropy(excluded=[4]), head.entropy(excluded=4))


@pytest.mark.interpreted_head(dtype=(torch.float32,))
@by_dtype
def test_without_a_bias_or_weights_of_rows(backend: Backend, dtype):
    head = head_on(backend, 11, dtype, bias=False, excluded=(3,))
    check(head)
    check(replace(head, row_weight=None))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.int64], ids=str)
def test_dtypes_of_the_weights_of_rows(backend: Backend, kind):
    head = head_on(backend, 11)
    weight = (2 * head.row_weight).to(kind)
    got = run(replace(head, row_weight=weight), "mean")
    assert_same(got, run(replace(head, row_weight=weight.double()), "mean"), rtol=0, atol=0)


@pytest.mark.interpreted_head(dtype=(torch.float32,), workspace=(1,))
@by_dtype
@pytest.mark.parametrize("workspace", [1, 3000, 40_000, 1 << 20])
def test_a_small_workspace_changes_nothing(backend: Backend, dtype, workspace):
    """Rows and states come in several parts; the gradient of a half weight is rounded once."""
    rest = {"excluded": (0, 150, 299), "softcap": 4.0, "z_loss": 0.01}
    head = head_on(backend, 300, dtype, shape=(3, backend.some(12, 1)), **rest)
    if not backend.interpreted:
        check(head, workspace=workspace)
    little = 1e-12 if dtype == torch.float64 else 1e-5
    little = max(little, 2 * torch.finfo(dtype).eps)
    for reduction in ("none", "sum"):
        whole, parts = run(head, reduction), run(head, reduction, workspace=workspace)
        for name, value in parts.named().items():
            most = float(value.abs().max())
            expected = getattr(whole, name)
            torch.testing.assert_close(value, expected, rtol=little, atol=little * most)


@pytest.mark.interpreted_float16
@by_dtype
def test_dtypes_of_the_results(backend: Backend, dtype):
    head = head_on(backend, 11, dtype)
    for reduction in REDUCTIONS:
        results = run(head, reduction)
        assert results.loss.dtype == head.loss_dtype
        assert results.loss.shape == (head.target.shape if reduction == "none" else ())
        assert {results.hidden.dtype, results.weight.dtype, results.bias.dtype} == {dtype}
        with torch.no_grad():
            torch.testing.assert_close(head.entropy(reduction), results.loss)


@pytest.mark.interpreted_head
def test_rows_of_one_dimension(backend: Backend):
    """(N, H) is the same as (B, L, H) of B * L = N."""
    head = head_on(backend, 11, excluded=(2,))
    flat = replace(
        head,
        hidden=head.hidden.flatten(0, 1),
        target=head.target.flatten(),
        row_weight=head.row_weight.flatten(),
    )
    check(flat)
    for reduction in REDUCTIONS:
        results, expected = run(flat, reduction), run(head, reduction)
        assert torch.equal(
            results.loss, expected.loss.flatten() if reduction == "none" else expected.loss
        )
        assert torch.equal(results.hidden, expected.hidden.flatten(0, 1))
        assert torch.equal(results.weight, expected.weight)


@pytest.mark.interpreted_head(dtype=(torch.float32,))
@by_dtype
def test_layouts(backend: Backend, dtype):
    head = head_on(backend, 11, dtype, excluded=(1,))
    hidden, weight, bias = head.operands
    spaced = torch.stack([bias, torch.full_like(bias, torch.nan)], -1)[:, 0]
    padded = torch.nn.functional.pad(weight, (2, 3), value=torch.nan)[:, 2:-3]
    others = [
        replace(head, hidden=hidden.transpose(0, 1).contiguous().transpose(0, 1)),
        replace(head, hidden=hidden.transpose(1, 2).contiguous().transpose(1, 2)),
        replace(head, hidden=torch.cat([hidden, hidden + 1], 1)[:, : hidden.shape[1]]),
        replace(head, hidden=hidden[:1].expand(3, -1, -1)),
        replace(head, weight=weight.t().contiguous().t()),
        replace(head, weight=padded),
        replace(head, weight=torch.cat([weight, weight])[:11]),
        replace(head, bias=spaced),
        replace(
            head,
            target=torch.stack([head.target, head.target], -1)[..., 1],
            row_weight=head.row_weight.t().contiguous().t(),
        ),
    ]
    for other in others[:: backend.some(1, 3)]:
        check(other)


# Rows


@pytest.mark.interpreted_head(reduction=("none", "mean"), shape=((0, 4), (0,)))
@by_reduction
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0), (0,)], ids=str)
def test_an_empty_batch(backend: Backend, reduction, shape):
    head = head_on(backend, 11, shape=shape)
    results = run(head, reduction)
    assert results.loss.shape == (shape if reduction == "none" else ())
    assert bool(results.loss.isnan().any()) == (reduction == "mean")
    assert float(results.loss.nansum()) == 0
    assert results.hidden.shape == (*shape, 16)
    for value in (results.weight, results.bias):
        assert torch.equal(value, torch.zeros_like(value))


@pytest.mark.interpreted_head(reduction=("none", "mean"))
@by_reduction
@pytest.mark.parametrize("ignore_index", [-100, 3])
def test_every_row_ignored(backend: Backend, reduction, ignore_index):
    head = head_on(backend, 11, ignore_index=ignore_index)
    head = replace(head, target=torch.full_like(head.target, ignore_index))
    results = run(replace(head, hidden=torch.full_like(head.hidden, torch.nan)), reduction)
    expected = torch.full_like(results.loss, math.nan if reduction == "mean" else 0.0)
    torch.testing.assert_close(results.loss, expected, equal_nan=True)
    for name in ("hidden", "weight", "bias"):
        assert not getattr(results, name).any()


@pytest.mark.interpreted_head(dtype=(torch.float32,))
@by_dtype
def test_an_ignored_target_that_is_a_state(backend: Backend, dtype):
    check(head_on(backend, 11, dtype, ignore_index=3))


def test_a_mean_counts_rows_of_weight_zero(backend: Backend):
    head = head_on(backend, 11)
    head = replace(head, target=head.target.clamp(min=0), row_weight=head.row_weight.clone())
    head.row_weight[1:] = 0
    each = head.entropy()
    torch.testing.assert_close(head.entropy("mean"), each.sum() / head.target.numel())


@pytest.mark.interpreted_head(reduction=("none", "mean"))
@by_dtype
@by_reduction
def test_rows_without_loss_are_never_read(backend: Backend, reduction, dtype):
    """Neither their hidden states nor, at weight 0, their targets, and no list of rows changes
    that."""
    head = head_on(backend, 11, dtype, excluded=(0,))
    unread = head.factor() == 0
    assert bool(unread.any())
    spoilt = replace(
        head,
        hidden=head.hidden.masked_fill(unread[..., None], torch.nan),
        target=torch.where(unread & (head.target != -100), 99, head.target),
    )
    expected = run(head, reduction)
    every = sf.touched_rows(head.target, sf.Uniform(11))
    for rest in ({}, {"rows": every}):
        got = run(spoilt, reduction, **rest)
        assert_same(got, expected)
        assert not got.hidden[unread].any()


def listed(head: SoftmaxHead, max_rows: int | None = None) -> sf.ops.TouchedRows:
    """The rows that carry a loss."""
    graph = sf.Uniform(len(head.weight))
    return sf.touched_rows(head.target.clamp(min=0), graph, head.factor(), max_rows)


@pytest.mark.interpreted_head(reduction=("mean",))
@by_reduction
def test_given_rows_change_nothing(backend: Backend, reduction):
    head = head_on(backend, 11, excluded=(4,), softcap=5.0)
    expected, count = run(head, reduction), len(listed(head).index)
    hidden = head.hidden.masked_fill((head.factor() == 0)[..., None], torch.nan)
    for max_rows in (None, count, count + 1, 1000)[:: backend.some(1, 3)]:
        rows = listed(head, max_rows)
        for rest in ({}, {"workspace": 2000}):
            got = run(replace(head, hidden=hidden), reduction, rows=rows, **rest)
            assert_same(got, expected, rtol=5e-5, atol=5e-5)


@by_reduction
def test_too_many_rows_give_nan_and_no_gradient(backend: Backend, reduction):
    head = head_on(backend, 11)
    rows = listed(head, 2)
    assert bool(rows.overflow)
    results = run(head, reduction, rows=rows)
    assert bool(results.loss.isnan().all())
    for name in ("hidden", "weight", "bias"):
        assert not getattr(results, name).any()


@by_reduction
def test_a_nan_in_a_hidden_state_that_is_read(backend: Backend, reduction):
    head = head_on(backend, 11)
    head.hidden[0, 0] = torch.nan  # the first row always counts
    results = run(head, reduction)
    assert bool(results.loss.flatten()[0].isnan())
    if reduction == "none":
        assert not results.loss.flatten()[1:].isnan().any()
        assert not results.hidden.flatten(0, 1)[1:].isnan().any()


# Extreme outputs


@pytest.mark.interpreted_head(dtype=(torch.float32,))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("level", [-1e4, 1e4])
@pytest.mark.parametrize("spread", [4, 40_000])
def test_huge_outputs(backend: Backend, dtype, level, spread):
    """Exact outputs near 1e4, or over all of -1e4 .. 1e4: only their differences count."""
    generator = torch.Generator().manual_seed(0)
    head = head_on(backend, 40, dtype, width=1, bias=False, excluded=(7,))
    hidden = torch.ones_like(head.hidden)
    offset = torch.randint(-spread, spread, (40, 1), generator=generator).double() / 4
    column = (level + offset if spread == 4 else offset).to(head.weight)
    head = replace(head, hidden=hidden, weight=column)
    for workspace in (None, 500):
        each = run(head, workspace=workspace)
        total = run(head, "sum", workspace=workspace)
        truth, _ = naive(head.to(torch.float64))
        torch.testing.assert_close(each.loss.double(), truth.loss, rtol=2e-6, atol=2e-6)
        for name in ("hidden", "weight"):
            for got in (each, total):
                true = getattr(truth, name)
                most = 2e-6 * max(1.0, float(head.weight.abs().max()) * (name == "hidden"))
                torch.testing.assert_close(getattr(got, name).double(), true, rtol=2e-6, atol=most)


@pytest.mark.interpreted_head(dtype=(torch.float32,))
@by_dtype
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_states_of_infinitely_low_bias(backend: Backend, dtype, softcap):
    """Such a state has probability 0; under a softcap that of the lowest output, -softcap."""
    head = head_on(backend, 11, dtype, softcap=softcap)
    head.bias[[0, 4, 10]] = -torch.inf
    head = replace(head, target=torch.where(head.target % 4 == 0, 1, head.target))
    head = replace(head, target=torch.where(head.target == 10, 1, head.target))
    check(head)
    if softcap is None:
        head.target[0, 0] = 4
        assert float(head.entropy()[0, 0]) == math.inf


@pytest.mark.interpreted_head
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_softcap_of_large_outputs(backend: Backend, dtype):
    """30 * tanh(f / 30) of outputs up to some hundreds."""
    head = head_on(backend, 60, dtype, exact=True, softcap=30.0)
    head = replace(head, weight=head.weight * 64)
    assert float(replace(head, softcap=None).logits().abs().max()) > 200
    results, truth = run(head), naive(head.to(torch.float64))
    little = 1e-4 if dtype == torch.float32 else 0.3
    for name, value in results.named().items():
        true, size = getattr(truth[0], name), getattr(truth[1], name)
        assert bool(((value.double() - true).abs() <= little * size + 1e-30).all()), name


@by_reduction
def test_the_same_call_gives_the_same_bits(backend: Backend, reduction):
    head = head_on(backend, 700, excluded=(3,), shape=(4, backend.some(30, 2)))
    assert_same(run(head, reduction), run(head, reduction), rtol=0, atol=0)


@by_reduction
def test_any_number_of_threads(backend: Backend, reduction):
    """one_thread restores the number."""
    head = head_on(backend, 700, excluded=(3,), shape=(20,))
    expected = run(head, reduction)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        got = run(head, reduction, workspace=20_000)
        assert_same(got, expected, rtol=1e-5, atol=1e-5)
        assert_same(run(head, reduction, workspace=20_000), got, rtol=0, atol=0)


@pytest.mark.interpreted_head(reduction=("none", "mean"), level=(1e4,))
@by_reduction
@pytest.mark.parametrize("level", [1e4, 2e30])
def test_rows_without_loss_beside_a_large_bias(backend: Backend, level, reduction):
    """exp of the bias alone overflows: times the weight 0 of a row that is none it would be NaN."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 4, generator=generator) for n in (3, 7))
    bias, target = torch.zeros(7), torch.tensor([1, 2, 5])
    bias[3] = level
    row_weight = torch.tensor([0.0, 1.0, 0.5])
    exact = [x.double().requires_grad_() for x in (hidden, weight, bias)]
    f = torch.nn.functional.linear(*exact)
    scale = 1 / 3 if reduction == "mean" else 1
    nats = torch.nn.functional.cross_entropy(f, target, reduction="none")
    (scale * row_weight * nats).sum().backward()
    hidden[0] = torch.nan  # not read
    leaves = [x.to(backend.device).requires_grad_() for x in (hidden, weight, bias)]
    rows = TouchedRows.at(torch.tensor([-1, 0, 1, 2, -1], device=backend.device))
    loss = sf.linear_cross_entropy(
        *leaves, target.to(backend.device), row_weight.to(backend.device), rows=rows,
        reduction=reduction,
    )  # fmt: skip
    loss.sum().backward()
    for got, expected in zip(leaves, exact, strict=True):
        torch.testing.assert_close(got.grad.cpu(), expected.grad.float(), rtol=1e-4, atol=1e-4)
