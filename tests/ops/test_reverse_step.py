"""reverse_step and reverse_probs: distribution, golden values, same u same tokens, layouts."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.op_cases import (
    DTYPES,
    GRAPHS,
    INTERPRETED_VOCABULARIES,
    METHODS,
    Backend,
    Inputs,
    assert_inverse_cdf,
    assert_near,
    golden,
    graph_id,
    graphs_of,
    make_inputs,
    naive_reverse_probs,
    vocabularies_and_dtypes,
    worst,
)
from sedd_fast.ops._uniforms import uniforms

pytestmark = pytest.mark.operation("reverse_step")
#: Error of a probability, from float32 or float64 weights.
LITTLE = {dtype: 1e-13 if dtype == torch.float64 else 2e-6 for dtype in DTYPES}
by_graph = pytest.mark.parametrize("graph", GRAPHS, ids=graph_id)
in_float64 = pytest.mark.parametrize("dtype", [torch.float64], ids=str)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
by_method = pytest.mark.parametrize("method", METHODS)
#: For tests of what does not depend on the dtype.
one_dtype = pytest.mark.interpreted(dtype=[torch.float32])


def check_distribution(inputs: Inputs, method: str) -> None:
    """reverse_probs against float64, and reverse_step against the float64 inverse CDF."""
    little = LITTLE[inputs.log_score.dtype]
    with sf.use_backend("reference"):
        truth = sf.reverse_probs(*inputs.double().reverse(), method)
    assert_near(naive_reverse_probs(inputs.double(), method), truth, 1.0, 1e-9)
    probs = sf.reverse_probs(*inputs.reverse(), method)
    naive = naive_reverse_probs(inputs, method)
    assert worst(probs - truth) <= worst(naive - truth) + little
    assert_near(probs, truth, 1.0, little)
    assert_inverse_cdf(sf.reverse_step(*inputs.reverse(), method, u=inputs.u), inputs, method)


@pytest.mark.interpreted(dtype=[torch.float32], sigma=[1e-5, 5.0])
@by_method
@by_dtype
@by_graph
@pytest.mark.parametrize("sigma", [1e-5, 0.05, 5.0])
def test_distribution_at_every_noise_level(backend: Backend, graph, dtype, method, sigma):
    shape = (3, backend.some(8, 2))
    inputs = make_inputs(graph, dtype, shape, sigma=sigma, device=backend.device)
    check_distribution(inputs, method)


@pytest.mark.interpreted_float16
@pytest.mark.interpreted(graph=graphs_of(INTERPRETED_VOCABULARIES), method=["analytic", "euler"])
@by_method
@pytest.mark.parametrize(("graph", "dtype"), vocabularies_and_dtypes(), ids=graph_id)
def test_distribution_at_odd_vocabularies(backend: Backend, graph, dtype, method):
    shape = (2, backend.some(3, 1))
    check_distribution(make_inputs(graph, dtype, shape, device=backend.device), method)


@pytest.mark.not_interpreted  # its blocks are so small that 513 states are as good
@by_method
@pytest.mark.parametrize("graph", graphs_of((50257,)), ids=graph_id)
def test_distribution_at_the_vocabulary_of_gpt2(backend: Backend, graph, method):
    check_distribution(make_inputs(graph, torch.float32, (1, 4), device=backend.device), method)


@pytest.mark.interpreted(spread=[0.0, 0.01], sigma=[20.0])
@pytest.mark.parametrize("spread", [0.0, 1e-4, 0.01])
@pytest.mark.parametrize("sigma", [8.0, 20.0])
@pytest.mark.parametrize("graph", graphs_of((11, 1023)), ids=graph_id)
@pytest.mark.parametrize("method", ["analytic", "denoise"])
def test_much_noise_removed_at_once(backend: Backend, graph, method, sigma, spread):
    """An untrained network's scores are all 0; on the uniform graph alpha exp(l) + beta cancels."""
    shape = (3, backend.some(40, 1))
    inputs = make_inputs(graph, shape=shape, sigma=sigma, spread=spread, device=backend.device)
    inputs = replace(inputs, dsigma=inputs.sigma * 0.99)
    with sf.use_backend("reference"):
        truth = sf.reverse_probs(*inputs.double().reverse(), method)
    assert_near(sf.reverse_probs(*inputs.reverse(), method), truth, 1.0, 1e-5)
    assert_inverse_cdf(sf.reverse_step(*inputs.reverse(), method, u=inputs.u), inputs, method)


@in_float64
@by_graph
@by_method
def test_golden(backend: Backend, graph: sf.Graph, method, dtype):
    values = {name: value.to(backend.device) for name, value in golden(graph).items()}
    step = values["step_size"] * values["noise_rate"] if method == "euler" else values["dsigma"]
    log_score = values["log_score"].to(dtype)
    got = sf.reverse_probs(log_score, values["xt"], values["sigma"], step, graph, method)
    expected = values[f"{method}_probs"].clamp(min=0)
    expected = torch.nn.functional.pad(expected, (0, graph.dim - expected.shape[-1]))
    expected = expected / expected.sum(-1, keepdim=True)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.interpreted(dtype=[torch.float32], graph=graphs_of((700,)))
@by_method
@by_dtype
@pytest.mark.parametrize("graph", graphs_of((11, 700)), ids=graph_id)
def test_same_u_same_tokens_as_the_reference(backend: Backend, graph, dtype, method):
    inputs = make_inputs(graph, dtype, (2, backend.some(64, 3)), device=backend.device)
    tokens = sf.reverse_step(*inputs.reverse(), method, u=inputs.u)
    with sf.use_backend("reference"):
        expected = sf.reverse_step(*inputs.reverse(), method, u=inputs.u)
    assert_inverse_cdf(tokens, inputs, method)
    assert_inverse_cdf(expected, inputs, method)
    assert float((tokens == expected).double().mean()) > 0.98  # the others are ties


@pytest.mark.interpreted(graph=graphs_of((1023,)), method=["analytic", "euler"])
@by_method
@pytest.mark.parametrize("graph", graphs_of((17, 1023)), ids=graph_id)
@pytest.mark.parametrize("u0", [0.0, 1 - 2**-53])
@pytest.mark.parametrize("u1", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval(backend: Backend, graph, method, u0, u1):
    inputs = make_inputs(graph, shape=(3, backend.some(8, 1)), device=backend.device)
    u = torch.empty_like(inputs.u)
    u[..., 0], u[..., 1] = u0, u1
    inputs = replace(inputs, u=u)
    tokens = sf.reverse_step(*inputs.reverse(), method, u=u)
    assert_inverse_cdf(tokens, inputs, method)


@pytest.mark.interpreted(graph=graphs_of((1023,)), method=["analytic", "euler"])
@by_method
@pytest.mark.parametrize("graph", graphs_of((17, 1023)), ids=graph_id)
@pytest.mark.parametrize("u1", [0.0, 1 - 2**-53])
def test_a_state_of_zero_weight_is_never_drawn(backend: Backend, graph, method, u1):
    """Also not where u1 lies at the end of the interval and the last states have no weight."""
    inputs = make_inputs(graph, shape=(3, backend.some(8, 1)), device=backend.device)
    alive = torch.zeros(graph.dim, dtype=torch.bool, device=backend.device)
    alive[graph.vocab_size // 2 : graph.vocab_size // 2 + 2] = True
    log_score = inputs.log_score.masked_fill(~alive, -torch.inf)
    inputs = replace(inputs, log_score=log_score.scatter(-1, inputs.x_t[..., None], 0.0))
    u = torch.full_like(inputs.u, u1)
    u[..., 0] = 0.0
    tokens = sf.reverse_step(*inputs.reverse(), method, u=u)
    assert bool((alive[tokens] | (tokens == inputs.x_t)).all())
    assert bool((tokens != inputs.x_t).any())


@pytest.mark.parametrize("graph", graphs_of((4097,)), ids=graph_id)
def test_the_last_state_that_has_weight(backend: Backend, graph):
    """u1 lies at the end of the interval; whole chunks without weight follow the last state."""
    inputs = make_inputs(graph, shape=(1, backend.some(64, 6)), sigma=1e-3, device=backend.device)
    log_score = inputs.log_score.clone()
    log_score[..., 1500:] = -torch.inf
    log_score = log_score.scatter(-1, inputs.x_t[..., None], 0.0)
    u = torch.full_like(inputs.u, 1 - 2**-53)
    u[..., 0] = 0.0
    inputs = replace(inputs, log_score=log_score, u=u)
    for method in METHODS:
        tokens = sf.reverse_step(*inputs.reverse(), method, u=u)
        assert_inverse_cdf(tokens, inputs, method)


@one_dtype
@by_method
@by_dtype
def test_unmasked_tokens_stay_and_their_rows_are_never_read(backend: Backend, method, dtype):
    graph = sf.Absorbing(11)
    inputs = make_inputs(graph, dtype, device=backend.device)
    unmasked = inputs.x_t != graph.mask_index
    spoilt = inputs.log_score.masked_fill(unmasked[..., None], torch.nan)
    spoilt = replace(inputs, log_score=spoilt)
    tokens = sf.reverse_step(*spoilt.reverse(), method, u=inputs.u)
    assert torch.equal(tokens[unmasked], inputs.x_t[unmasked])
    assert torch.equal(tokens, sf.reverse_step(*inputs.reverse(), method, u=inputs.u))
    probs = sf.reverse_probs(*spoilt.reverse(), method)
    assert torch.equal(probs, sf.reverse_probs(*inputs.reverse(), method))
    expected = torch.nn.functional.one_hot(inputs.x_t[unmasked], graph.dim).to(probs.dtype)
    assert torch.equal(probs[unmasked], expected)


def test_an_absorbing_denoising_step_leaves_no_mask(backend: Backend):
    graph = sf.Absorbing(11)
    inputs = make_inputs(graph, shape=(3, backend.some(200, 10)), device=backend.device)
    x_t = torch.full_like(inputs.x_t, graph.mask_index)
    tokens = sf.reverse_step(inputs.log_score, x_t, inputs.sigma, None, graph, "denoise")
    assert int(tokens.max()) < graph.mask_index


@by_graph
@pytest.mark.parametrize("method", ["analytic", "euler"])
def test_no_noise_removed_moves_nothing(backend: Backend, graph, method):
    inputs = make_inputs(graph, device=backend.device)
    still = sf.reverse_step(
        inputs.log_score, inputs.x_t, inputs.sigma, 0.0, graph, method, u=inputs.u
    )
    assert torch.equal(still, inputs.x_t)


@one_dtype
@by_graph
@by_dtype
@pytest.mark.parametrize("layout", ["transposed batch", "transposed states", "padded", "stride 0"])
def test_layouts(backend: Backend, graph, dtype, layout):
    method = "analytic"
    inputs = make_inputs(graph, dtype, (3, backend.some(8, 2)), device=backend.device)
    l = inputs.log_score  # noqa: E741
    if layout == "padded":
        strided = torch.nn.functional.pad(l, (2, 3), value=torch.nan)[..., 2:-3]
    elif layout == "stride 0":
        strided = l[:1].expand(3, -1, -1)
    else:
        swapped = (0, 1) if layout == "transposed batch" else (1, 2)
        strided = l.transpose(*swapped).contiguous().transpose(*swapped)
    assert not strided.is_contiguous()
    other = replace(
        inputs,
        log_score=strided,
        x_t=inputs.x_t.t().contiguous().t(),
        u=inputs.u.permute(2, 1, 0).contiguous().permute(2, 1, 0),
    )
    dense = replace(inputs, log_score=strided.contiguous())
    got, expected = (sf.reverse_step(*i.reverse(), method, u=i.u) for i in (other, dense))
    assert torch.equal(got, expected)
    got, expected = (sf.reverse_probs(*i.reverse(), method) for i in (other, dense))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)], ids=str)
@by_method
@by_graph
def test_an_empty_batch(backend: Backend, graph, method, shape):
    i = make_inputs(graph, device=backend.device)
    log_score, x_t = (value[: shape[0], : shape[1]] for value in (i.log_score, i.x_t))
    sigma, dsigma = i.sigma[: shape[0]], i.dsigma[: shape[0]]
    assert sf.reverse_step(log_score, x_t, sigma, dsigma, graph, method).shape == shape
    probs = sf.reverse_probs(log_score, x_t, sigma, dsigma, graph, method)
    assert probs.shape == (*shape, graph.dim)


@in_float64
@by_method
@by_graph
def test_gradient_of_the_distribution(backend: Backend, graph, method, dtype):
    inputs = make_inputs(graph, dtype, (2, 3), device=backend.device)
    # Far from the clamp at 0, where the probabilities are not differentiable.
    inputs = replace(inputs, sigma=inputs.sigma * 0.1 + 0.1, dsigma=inputs.dsigma * 0.01)
    leaf = inputs.log_score.requires_grad_()

    def probs(log_score: Tensor) -> Tensor:
        return sf.reverse_probs(log_score, *inputs.reverse()[1:], method)

    assert torch.autograd.gradcheck(probs, (leaf,))
    (gradient,) = torch.autograd.grad(probs(leaf)[..., 0].sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        gradient.sum().backward()


def test_a_generator_gives_the_same_tokens_again(backend: Backend):
    length = backend.some(50, 5)
    inputs = make_inputs(sf.Uniform(11), shape=(4, length), device=backend.device)

    def drawn(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return sf.reverse_step(*inputs.reverse(), generator=generator)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    generator = torch.Generator().manual_seed(1)  # the numbers are those of the CPU everywhere
    u = uniforms(inputs.x_t.cpu(), None, generator).to(backend.device)
    assert torch.equal(drawn(1), sf.reverse_step(*inputs.reverse(), u=u))


def test_no_gradient_passes_through_a_draw(backend: Backend):
    inputs = make_inputs(sf.Uniform(11), device=backend.device)
    inputs.log_score.requires_grad_()
    assert not sf.reverse_step(*inputs.reverse()).requires_grad
