"""linear_reverse_step: same tokens and distribution as reverse_step on the head's log scores."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.head_cases import HEADS, Head, make_head, on_heads
from helpers.op_cases import METHODS, Backend, assert_distribution, assert_inverse_cdf, graph_id

pytestmark = [*on_heads, pytest.mark.operation("linear_reverse_step")]
by_head = pytest.mark.parametrize(("graph", "scaled"), HEADS, ids=lambda v: graph_id(v) or str(v))
by_method = pytest.mark.parametrize("method", METHODS)
#: A dsigma at which Euler's probabilities stay below 1 and the analytic step still moves tokens.
SMALL_STEP = 0.05


def unfused(head: Head, method: str) -> Tensor:
    """The same step of the reference, from the log scores of a linear layer."""
    i, fp32 = head.inputs, torch.promote_types(head.hidden.dtype, torch.float32)
    with sf.use_backend("reference"):
        return sf.reverse_step(
            head.log_score(fp32), i.x_t, i.sigma, i.dsigma, i.graph, method, u=i.u
        )


def small_step(head: Head) -> Head:
    """A step that removes little noise, so that some tokens move and others stay."""
    return replace(head, inputs=replace(head.inputs, dsigma=head.inputs.dsigma * SMALL_STEP))


@pytest.mark.interpreted_head(method=("analytic", "euler"), vocabulary=(2, 513), workspace=(None,))
@by_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("vocabulary", "workspace"), [(2, None), (513, None), (2049, None), (2049, 30_000)]
)
@by_head
def test_same_u_same_tokens(backend: Backend, graph, scaled, method, dtype, vocabulary, workspace):
    """Also with a small workspace: states then come in several blocks and rows in chunks."""
    if workspace and backend.interpreted:
        pytest.skip("interpreted: another case runs the same code")
    head = make_head(
        type(graph)(vocabulary), scaled, dtype, (2, backend.some(20, 4)), device=backend.device
    )
    for given in (head, small_step(head)):
        tokens = given.step(method, workspace=workspace)
        exact = replace(given.inputs, log_score=given.double().log_score())
        assert_inverse_cdf(tokens, exact, method)
        assert float((tokens == unfused(given.double(), method)).double().mean()) > 0.9


@pytest.mark.interpreted_float16
@pytest.mark.interpreted_head(method=("analytic", "euler"))
@by_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@by_head
@pytest.mark.usefixtures("products_in_half")
def test_half_dtypes_draw_nearly_the_same_tokens(backend: Backend, graph, scaled, method, dtype):
    """At least 98 % of the tokens equal those of the unfused step, and those of float64."""
    shape = (4, backend.some(400, 25))
    head = make_head(type(graph)(200), scaled, dtype, shape, width=32, device=backend.device)
    head = small_step(head) if method == "euler" else head
    touched = sf.touched_rows(head.inputs.x_t, head.inputs.graph).index
    tokens, same, exact = (
        x.flatten()[touched]
        for x in (head.step(method), unfused(head, method), unfused(head.double(), method))
    )
    assert float((tokens == same).double().mean()) >= 0.98
    assert int((tokens == exact).sum()) >= 0.99 * int((same == exact).sum())


@pytest.mark.interpreted_head(method=("analytic", "euler"), workspace=(1,))
@by_method
@by_head
@pytest.mark.parametrize("workspace", [1, 2000, 10_000])
def test_a_small_workspace_changes_nothing(backend: Backend, graph, scaled, method, workspace):
    head = make_head(
        type(graph)(100), scaled, shape=(3, backend.some(20, 3)), device=backend.device
    )
    tokens = head.step(method, workspace=workspace)
    exact = replace(head.inputs, log_score=head.double().log_score())
    assert_inverse_cdf(tokens, exact, method)
    assert float((tokens == head.step(method)).double().mean()) > 0.9


@pytest.mark.interpreted_head(method=("analytic", "euler"))
@by_method
@by_head
def test_given_rows(backend: Backend, graph, scaled, method):
    head = make_head(graph, scaled, device=backend.device)
    x_t, expected = head.inputs.x_t, head.step(method)
    assert torch.equal(head.step(method, rows=sf.touched_rows(x_t, graph)), expected)
    padded = sf.touched_rows(x_t, graph, max_rows=x_t.numel())
    assert torch.equal(head.step(method, rows=padded), expected)
    few = sf.touched_rows(x_t, graph, max_rows=3)
    assert bool(few.overflow)
    tokens = head.step(method, rows=few)
    listed = torch.zeros(x_t.numel(), dtype=torch.bool, device=x_t.device)
    listed[few.index] = True
    listed = listed.view(x_t.shape)
    assert torch.equal(tokens, torch.where(listed, expected, x_t))


@by_method
@by_head
def test_without_a_bias_and_in_other_layouts(backend: Backend, graph, scaled, method):
    head = make_head(graph, scaled, bias=False, device=backend.device)
    i = head.inputs
    spread = replace(
        head,
        hidden=head.hidden.transpose(1, 2).contiguous().transpose(1, 2),
        weight=head.weight.t().contiguous().t(),
        bias=torch.zeros(2 * graph.dim, device=backend.device)[::2],
        inputs=replace(
            i,
            x_t=i.x_t.t().contiguous().t(),
            u=i.u.permute(2, 1, 0).contiguous().permute(2, 1, 0),
            sigma=torch.stack([i.sigma, i.sigma], -1)[:, 0],
        ),
    )
    exact = replace(i, log_score=head.double().log_score())
    for given in (head, spread):
        assert_inverse_cdf(given.step(method), exact, method)


@pytest.mark.interpreted_head(method=("analytic", "euler"))
@pytest.mark.parametrize("scaled", [True, False])
@by_method
def test_unmasked_tokens_stay_and_are_never_read(backend: Backend, scaled, method):
    graph = sf.Absorbing(11)
    head = make_head(graph, scaled, device=backend.device)
    unmasked = head.inputs.x_t != graph.mask_index
    spoilt = replace(head, hidden=head.hidden.masked_fill(unmasked[..., None], torch.nan))
    rows = sf.touched_rows(head.inputs.x_t, graph, max_rows=24)
    for tokens in (spoilt.step(method), spoilt.step(method, rows=rows)):
        assert torch.equal(tokens, head.step(method))
        assert torch.equal(tokens[unmasked], head.inputs.x_t[unmasked])
    clean = replace(head, inputs=replace(head.inputs, x_t=head.inputs.x_0))
    assert torch.equal(clean.step(method), head.inputs.x_0)


@pytest.mark.interpreted_head(method=("analytic", "euler"), shape=((0, 4),))
@by_method
@by_head
@pytest.mark.parametrize("shape", [(0, 4), (3, 0)], ids=str)
def test_an_empty_batch(backend: Backend, graph, scaled, method, shape):
    head = make_head(graph, scaled, device=backend.device)
    i, (b, n) = head.inputs, shape
    cut = {"x_t": i.x_t[:b, :n], "u": i.u[:b, :n], "sigma": i.sigma[:b], "dsigma": i.dsigma[:b]}
    empty = replace(head, hidden=head.hidden[:b, :n], inputs=replace(i, **cut))
    assert empty.step(method).shape == shape


@by_method
@by_head
@pytest.mark.parametrize("offset", [-200.0, 200.0])
def test_rows_beyond_float32(backend: Backend, graph, scaled, method, offset):
    """Only some rows leave its range; a denoising draw depends on differences of scores only."""
    head = make_head(graph, scaled, shape=(3, backend.some(20, 3)), device=backend.device)
    far = head.hidden.new_zeros(*head.hidden.shape[:2], 1)
    far[:, ::2] = offset
    hidden = torch.cat((head.hidden, far), -1)
    weight = torch.cat((head.weight, torch.ones_like(head.weight[:, :1])), -1)
    head = replace(head, hidden=hidden, weight=weight)
    tokens = head.step(method, workspace=10_000)
    exact = replace(head.inputs, log_score=head.double().log_score())
    assert_inverse_cdf(tokens, exact, method)


@pytest.mark.not_in_smoke
@by_method
@by_head
@pytest.mark.parametrize("workspace", [1, None])
def test_a_row_without_a_distribution_is_an_error_on_the_cpu(
    backend, graph, scaled, method, workspace
):
    if not backend.raises:
        pytest.skip("elsewhere such a row keeps its token")
    head = make_head(graph, scaled, device=backend.device)
    masked = head.inputs.x_t == graph.mask_index if graph.mask_index else head.inputs.x_t >= 0
    b, i = masked.nonzero()[-1].tolist()
    head.hidden[b, i] = torch.nan
    with pytest.raises(ValueError, match=rf"at position \({b}, {i}\) gives no distribution"):
        head.step(method, workspace=workspace)


@pytest.mark.interpreted_head(method=("analytic", "euler"))
@by_method
@by_head
@pytest.mark.usefixtures("products_in_half")
def test_autocast(backend: Backend, graph, scaled, method):
    head = make_head(type(graph)(40), scaled, shape=(4, backend.some(50, 4)), device=backend.device)
    rounded = [x.to(torch.bfloat16) for x in head.operands]
    half = replace(head, hidden=rounded[0], weight=rounded[1], bias=rounded[2])
    with torch.autocast(backend.device, torch.bfloat16):
        tokens = head.step(method)
    assert torch.equal(tokens, half.step(method))


@by_head
def test_a_generator_and_no_gradient(backend: Backend, graph, scaled):
    head = make_head(graph, scaled, shape=(4, backend.some(50, 5)), device=backend.device).leaves()

    def drawn(seed: int) -> Tensor:
        return head.step(u=None, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert not drawn(1).requires_grad


@by_method
@by_head
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("workspace", [None, 200_000])
def test_the_distribution(backend: Backend, graph, scaled, method, dtype, workspace):
    """Chi-square of many draws at one hidden state; fails by chance once in a million."""
    if backend.interpreted:
        pytest.skip("interpreted: too few draws for a chi-square test")
    draws = 20_000
    one = make_head(graph, scaled, dtype, (1, 1), sigma=0.7, device=backend.device)
    token = graph.vocab_size if graph.kind == "absorbing" else 1
    x_t = torch.full((1, draws), token, device=backend.device)
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(1, draws, 2, dtype=torch.float64, generator=generator).to(backend.device)
    step = torch.full((1,), 0.05, dtype=torch.float64, device=backend.device)
    many = replace(one.inputs, x_t=x_t, u=u, dsigma=step)
    head = replace(one, hidden=one.hidden.expand(1, draws, -1), inputs=many)
    tokens = head.step(method, workspace=workspace)
    at = replace(one, inputs=replace(one.inputs, x_t=x_t[:, :1], dsigma=step))
    with sf.use_backend("reference"):
        scores = at.log_score().double()  # rounded as the head rounds them
        probs = sf.reverse_probs(scores, x_t[:, :1], 0.7, 0.05, graph, method)[0, 0]
    assert_distribution(tokens, probs)
