"""linear_denoise: every field against float64, same u same tokens, ties, extreme rows."""

import math
from dataclasses import replace

import pytest
import torch

import sedd_fast as sf
from helpers.head_cases import on_heads
from helpers.op_cases import DTYPES, Backend
from helpers.softmax_cases import (
    LAST_U,
    TOKEN_FILTERS,
    assert_drawn,
    check_denoised,
    filtered,
    head_on,
    of_bias,
    slack,
    with_u,
)
from sedd_fast.names import WANTED
from sedd_fast.ops import TouchedRows

pytestmark = [*on_heads, pytest.mark.operation("linear_denoise")]
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
#: Every field but the last, and the last, which takes another product.
FIELDS = {name: (name,) for name in WANTED} | {"every": WANTED, "all but one": WANTED[:-1]}


@pytest.mark.interpreted_head(token_filter=TOKEN_FILTERS[2::2], dtype=(torch.float32,))
@by_dtype
@pytest.mark.parametrize("token_filter", TOKEN_FILTERS, ids=str)
def test_every_field(backend: Backend, dtype, token_filter):
    """Exact outputs, of which many are equal, so that every dtype has the same distribution."""
    head = head_on(backend, dtype=dtype, exact=True, width=4, excluded=(0, 21))
    out = head.denoise(**token_filter)
    check_denoised(out, head, **token_filter)
    with sf.use_backend("reference"):
        expected = head.denoise(**token_filter)
    assert float((out.token == expected.token).double().mean()) > 0.95  # the others are at ends
    assert torch.equal(out.argmax, expected.argmax)


@pytest.mark.interpreted_head(dtype=(torch.float32,), states=(2, 600))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("states", [1, 2, 3, 513, 600, 1009, 2500])
def test_odd_vocabularies(backend: Backend, dtype, states):
    head = head_on(backend, states, dtype, width=7, bias=states % 2 == 0)
    check_denoised(head.denoise(), head)
    if not backend.interpreted:
        check_denoised(head.denoise(top_p=0.9), head, top_p=0.9)


@pytest.mark.parametrize("token_filter", TOKEN_FILTERS[::4], ids=str)
@pytest.mark.parametrize("states", [50_257, 262_144])
def test_the_largest_vocabularies(backend: Backend, states, token_filter):
    head = head_on(backend, states, shape=(4,), width=4, excluded=(states // 2,), spread=3.0)
    check_denoised(head.denoise(**token_filter), head, **token_filter)


@pytest.mark.interpreted_head(dtype=(torch.float32,), fields=("token", "entropy", "all but one"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fields", FIELDS)
def test_only_what_is_wanted(backend: Backend, fields, dtype):
    """Each field is the same whatever else is wanted, and the others are None."""
    head = head_on(backend, 40, dtype, excluded=(3,), softcap=4.0)
    want, every = FIELDS[fields], head.denoise()
    out = head.denoise(want=want)
    for name in WANTED:
        value, expected = getattr(out, name), getattr(every, name)
        assert (value is not None) == (name in want), name
        if value is not None:
            assert value.dtype == expected.dtype
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
    again = head.denoise(want=[*reversed(want), *want])
    assert [value is None for value in again] == [value is None for value in out]


@pytest.mark.interpreted_head
def test_no_uniforms_are_drawn_where_no_token_is_wanted(backend: Backend):
    head, generator = head_on(backend), torch.Generator().manual_seed(0)
    state = generator.get_state()
    head.denoise(u=None, generator=generator, want=("entropy", "argmax"))
    assert torch.equal(generator.get_state(), state)


@pytest.mark.interpreted_head(softcap=(3.0,), dtype=(torch.float32,))
@by_dtype
@pytest.mark.parametrize("softcap", [0.5, 3.0, 30.0])
def test_a_softcap(backend: Backend, dtype, softcap):
    head = head_on(backend, dtype=dtype, exact=True, width=4, softcap=softcap, excluded=(5,))
    check_denoised(head.denoise(), head)


@pytest.mark.interpreted_head(excluded=((0,), (1, 2, 20, 39)))
@pytest.mark.parametrize("excluded", [(0,), (20,), (39,), (4, 5, 6, 7), (1, 2, 20, 39)])
def test_excluded_states(backend: Backend, excluded):
    """However large their outputs are; any form of the argument."""
    head = head_on(backend, excluded=excluded)
    head.bias[list(excluded)] = 50.0
    out = head.denoise()
    check_denoised(out, head)
    for u in (0.0, LAST_U):
        ends = with_u(head, torch.full_like(head.u[..., 0], u))
        assert not set(ends.denoise().token.unique().tolist()) & set(excluded)
    again = head.denoise(excluded=list(reversed(excluded)) * 2)
    assert torch.equal(again.token, out.token)
    if len(excluded) == 1:
        assert torch.equal(head.denoise(excluded=excluded[0]).token, out.token)


@pytest.mark.parametrize("token_filter", TOKEN_FILTERS, ids=str)
def test_half_dtypes_draw_nearly_the_same_tokens(backend: Backend, token_filter):
    head = head_on(backend, 200, torch.bfloat16, shape=(800,), width=32)
    exact = head.to(torch.float64)
    with sf.use_backend("reference"):
        rounded, truth = head.denoise(**token_filter), exact.denoise(**token_filter)
    out = head.denoise(**token_filter)
    same = float((rounded.token == truth.token).double().mean())
    little = backend.some(3, 15) / 100  # of 20 rows, three may differ
    assert float((out.token == truth.token).double().mean()) >= same - little
    torch.testing.assert_close(out.entropy.double(), truth.entropy, rtol=2e-2, atol=2e-2)


# Layouts and rows


@pytest.mark.interpreted_head(
    dtype=(torch.float32,), workspace=(1,), token_filter=TOKEN_FILTERS[:1]
)
@by_dtype
@pytest.mark.parametrize("workspace", [1, 3000, 30_000, 1 << 20])
@pytest.mark.parametrize("token_filter", TOKEN_FILTERS[::4], ids=str)
def test_a_small_workspace_changes_nothing(backend: Backend, dtype, workspace, token_filter):
    """Rows and states come in several parts."""
    rest = {"exact": True, "width": 4, "excluded": (0, 299), "shape": (3, backend.some(12, 2))}
    head = head_on(backend, 300, dtype, **rest)
    out = head.denoise(workspace=workspace, **token_filter)
    check_denoised(out, head, **token_filter)
    assert torch.equal(out.argmax, head.denoise(**token_filter).argmax)


@pytest.mark.interpreted_head
def test_rows_of_one_dimension(backend: Backend):
    head = head_on(backend)
    flat = replace(head, hidden=head.hidden.flatten(0, 1), u=head.u.flatten(0, 1))
    out, expected = flat.denoise(), head.denoise()
    check_denoised(out, flat)
    for value, other in zip(out, expected, strict=True):
        assert torch.equal(value, other.flatten(0, 1))


@pytest.mark.interpreted_head(dtype=(torch.float32,))
@by_dtype
def test_layouts(backend: Backend, dtype):
    head = head_on(backend, dtype=dtype, exact=True, width=4)
    hidden, weight, bias = head.operands
    others = [
        replace(head, hidden=hidden.transpose(0, 1).contiguous().transpose(0, 1)),
        replace(head, hidden=hidden.transpose(1, 2).contiguous().transpose(1, 2)),
        replace(head, hidden=hidden[:1].expand(3, -1, -1)),
        replace(head, weight=weight.t().contiguous().t()),
        replace(head, weight=torch.nn.functional.pad(weight, (2, 3), value=torch.nan)[:, 2:-3]),
        replace(head, bias=torch.stack([bias, bias + 1], -1)[:, 0]),
        replace(head, bias=None, u=head.u.permute(2, 1, 0).contiguous().permute(2, 1, 0)),
    ]
    for other in others[:: backend.some(1, 3)]:
        check_denoised(other.denoise(), other)


@pytest.mark.interpreted_head(shape=((0, 4), (0,)))
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0), (0,)], ids=str)
def test_an_empty_batch(backend: Backend, shape):
    out = head_on(backend, shape=shape).denoise(top_p=0.9)
    for name, value in zip(out._fields, out, strict=True):
        assert value.shape == (*shape, *([16] if name == "embedding" else [])), name


@pytest.mark.interpreted_head(token_filter=TOKEN_FILTERS[:1])
@pytest.mark.parametrize("token_filter", TOKEN_FILTERS[::4], ids=str)
@pytest.mark.parametrize("entries", [[5, 0, 2], [5, -1, 0, -1, 2]], ids=["some", "padded"])
def test_given_rows(backend: Backend, token_filter, entries):
    """Elsewhere states are -1, numbers NaN, embeddings 0, and hidden states are not read."""
    head = head_on(backend, excluded=(1,))
    expected = head.denoise(**token_filter)
    inside = torch.zeros(head.target.numel(), dtype=torch.bool, device=backend.device)
    inside[[5, 0, 2]] = True
    inside = inside.view(head.target.shape)
    spoilt = replace(head, hidden=head.hidden.masked_fill(~inside[..., None], torch.nan))
    rows = TouchedRows.at(torch.tensor(entries, device=backend.device))
    for workspace in (None, 1000):
        out = spoilt.denoise(rows=rows, workspace=workspace, **token_filter)
        for name, value in zip(out._fields, out, strict=True):
            torch.testing.assert_close(value[inside], getattr(expected, name)[inside])
            if name == "embedding":
                assert not value[~inside].any()
            elif value.is_floating_point():
                assert bool(value[~inside].isnan().all()), name
            else:
                assert bool((value[~inside] == -1).all()), name


# Ties and extreme rows


@pytest.mark.interpreted_head(dtype=(torch.float32,))
@by_dtype
def test_ties(backend: Backend, dtype):
    """The lowest of equal states is the argmax; its margin is exactly 0."""
    places = ((7,), (3, 4), (0, 599), (511, 512, 513), (1, 2, 3, 300, 598))
    for top in places:
        bias = torch.linspace(-2, -1, 600).tolist()
        for place in top:
            bias[place] = 0.5
        head = of_bias(backend, bias, 2, dtype)
        out = head.denoise(want=("argmax", "margin"))
        assert out.argmax.tolist() == [top[0]] * 2
        assert bool((out.margin == 0).all()) == (len(top) > 1)
    left_out = head.denoise(want=("argmax", "margin"), excluded=(1, 2, 3, 300))
    assert left_out.argmax.tolist() == [598] * 2
    assert bool((left_out.margin > 0).all())
    equal = of_bias(backend, [0.25] * 600, 2, dtype).denoise()
    assert equal.argmax.tolist() == [0, 0]
    assert equal.margin.tolist() == [0, 0]
    assert equal.entropy.tolist() == pytest.approx([math.log(600)] * 2, rel=1e-6)


@by_dtype
def test_states_equal_to_the_smallest_kept_one_are_kept(backend: Backend, dtype):
    """Four values, each of ten states."""
    head = of_bias(backend, [-0.5 * (y % 4) for y in range(40)], 400, dtype)
    for top_p, most in ((1e-6, 0), (0.5, 1), (0.999, 3)):
        token = head.denoise(want=("token",), top_p=top_p).token
        assert set((token % 4).tolist()) <= set(range(most + 1))
        p = filtered(head.to(torch.float64).logits().log_softmax(-1), top_p=top_p)
        assert_drawn(token, head.u[..., 1], p, slack(head))


EXTREME = {
    "one certain state": [-torch.inf] * 5 + [0.0] + [-torch.inf] * 5,
    "nearly certain": [-90.0, -80.0, 0.0, -100.0, -700.0],
    "some -inf": [-torch.inf, 0.5, -torch.inf, 1.0, 0.0, -torch.inf],
    "spread": [-1e4, 1e4, 0.0, 1e4 - 1, -1e4, 9999.5],
    "far up": [1e4, 1e4 + 1, 1e4 - 2, 1e4 + 0.5],
    "far down": [-1e4, -1e4 + 1, -1e4 - 2, -torch.inf],
    "the largest": [3e38, -3e38, 3e38, 0.0],
}


@pytest.mark.interpreted_head(token_filter=TOKEN_FILTERS[:1], dtype=(torch.float32,))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("token_filter", TOKEN_FILTERS, ids=str)
def test_extreme_rows(backend: Backend, dtype, token_filter):
    for name, row in EXTREME.items():
        head = of_bias(backend, row, backend.some(20, 4), dtype)
        u = head.u[..., 1].clone()
        u[:2] = torch.tensor([0.0, LAST_U], dtype=torch.float64)
        head = with_u(head, u)
        out = head.denoise(**token_filter)
        for value in out:
            assert not value.isnan().any(), name
        check_denoised(out, head, **token_filter)
        assert bool((out.log_prob > -torch.inf).all()), name


@pytest.mark.not_in_smoke
@pytest.mark.parametrize("workspace", [None, 1])
@pytest.mark.parametrize("want", [WANTED, ("entropy",), ("argmax",)], ids=len)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_without_a_distribution_is_an_error_on_the_cpu(backend, workspace, want, bad):
    if not backend.raises:
        pytest.skip("values are not checked on a GPU")
    head = head_on(backend, 300)
    ones = torch.cat([head.weight, torch.ones_like(head.weight[:, :1])], 1)
    hidden = torch.cat([head.hidden, torch.zeros_like(head.hidden[..., :1])], -1)
    hidden[1, 5, -1] = bad
    with pytest.raises(ValueError, match=r"at position \(1, 5\) gives no distribution"):
        replace(head, hidden=hidden, weight=ones).denoise(want=want, workspace=workspace)
    if bad == -torch.inf:  # every other state is left out
        alone = replace(head, bias=head.bias.clone())
        alone.bias[7] = bad
        others = [y for y in range(300) if y != 7]
        with pytest.raises(ValueError, match=r"at position \(0, 0\) gives no distribution"):
            alone.denoise(want=want, workspace=workspace, excluded=others)


@pytest.mark.interpreted_head
@pytest.mark.usefixtures("products_in_half")
def test_autocast(backend: Backend):
    head = head_on(backend)
    head = replace(head, bias=(4 * head.bias).round() / 4)  # which every dtype holds
    with torch.autocast(backend.device, torch.bfloat16):
        out = head.denoise()
    expected = head.to(torch.bfloat16).denoise()
    little = 1e-2 if backend.interpreted else 1e-5  # the interpreter truncates to bf16
    assert float((out.token == expected.token).double().mean()) >= 1 - 50 * little
    assert out.embedding.dtype == torch.float32
    torch.testing.assert_close(out.entropy, expected.entropy, rtol=little, atol=little)


def test_the_same_call_gives_the_same_bits_with_any_number_of_threads(backend: Backend):
    """one_thread restores the number."""
    head = head_on(backend, 700, shape=(20,))
    expected = head.denoise()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        out, again = (head.denoise(workspace=20_000) for _ in range(2))
        check_denoised(out, head)
        assert torch.equal(out.argmax, expected.argmax)
        for value, same in zip(out, again, strict=True):
            assert torch.equal(value, same)
