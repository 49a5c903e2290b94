"""sample_transition: the definition, same u same tokens, noise levels, layouts."""

import pytest
import torch

import sedd_fast as sf
from helpers.op_cases import GRAPHS, Backend, graph_id, graphs_of, make_inputs

pytestmark = pytest.mark.operation("sample_transition")
by_graph = pytest.mark.parametrize("graph", GRAPHS, ids=graph_id)


@pytest.mark.parametrize("sigma", [1e-5, 1e-3, 0.5, 3.0, 20.0])
@pytest.mark.parametrize("graph", graphs_of((2, 11, 50257)), ids=graph_id)
def test_the_definition(backend: Backend, graph: sf.Graph, sigma):
    """A token changes where u0 < 1 - exp(-sigma), to the mask or to floor(u1 V)."""
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.randint(graph.vocab_size, (4, 50), generator=generator).to(backend.device)
    u = torch.rand(4, 50, 2, generator=generator, dtype=torch.float64).to(backend.device)
    got = sf.sample_transition(x_0, sigma, graph, u=u)
    p = -torch.expm1(torch.tensor(-sigma, dtype=torch.float64))
    fallen = torch.full_like(x_0, graph.vocab_size)
    if graph.kind == "uniform":
        fallen = (u[..., 1] * graph.vocab_size).floor().long()
    expected = torch.where(u[..., 0] < p.to(backend.device), fallen, x_0)
    assert torch.equal(got, expected)
    assert got.dtype == torch.int64


@by_graph
def test_noise_of_every_sequence(backend: Backend, graph: sf.Graph):
    x_0 = torch.zeros(3, 400, dtype=torch.int64, device=backend.device)
    sigma = torch.tensor([1e-9, 0.7, 30.0], device=backend.device)
    u = torch.rand(3, 400, 2, dtype=torch.float64, device=backend.device) * 0.9 + 0.05
    got = sf.sample_transition(x_0, sigma, graph, u=u)
    assert torch.equal(got, sf.sample_transition(x_0, sigma[:, None], graph, u=u))
    fallen = (u[..., 0] < (1 - torch.exp(-sigma))[:, None]).sum(-1)
    if graph.kind == "absorbing":
        assert (got == graph.mask_index).sum(-1).tolist() == fallen.tolist()
    assert not got[0].any()
    assert 0 < int((got[1] != 0).sum()) < 400
    assert int((got[2] != 0).sum()) > 300


@by_graph
@pytest.mark.parametrize("u1", [0.0, 1 - 2**-53])
@pytest.mark.parametrize("u0", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval(backend: Backend, graph: sf.Graph, u0, u1):
    x_0 = torch.full((1, 1), 5, device=backend.device)
    u = torch.tensor([[[u0, u1]]], dtype=torch.float64, device=backend.device)
    got = int(sf.sample_transition(x_0, 1.0, graph, u=u))
    fallen = 11 if graph.kind == "absorbing" else (0 if u1 == 0 else 10)
    assert got == (fallen if u0 == 0 else 5)


@by_graph
def test_layouts(backend: Backend, graph: sf.Graph):
    inputs = make_inputs(graph, shape=(4, 6), device=backend.device)
    expected = sf.sample_transition(inputs.x_0, inputs.sigma, graph, u=inputs.u)
    x_0 = inputs.x_0.t().contiguous().t()
    u = inputs.u.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    sigma = torch.stack([inputs.sigma, inputs.sigma], -1)[:, 0]
    assert torch.equal(sf.sample_transition(x_0, sigma, graph, u=u), expected)
    row = inputs.x_0[:1].expand(4, -1)
    got = sf.sample_transition(row, inputs.sigma, graph, u=inputs.u)
    again = sf.sample_transition(row.contiguous(), inputs.sigma, graph, u=inputs.u)
    assert torch.equal(got, again)


@by_graph
@pytest.mark.parametrize("shape", [(0, 4), (3, 0)], ids=str)
def test_an_empty_batch(backend: Backend, graph: sf.Graph, shape):
    x_0 = torch.zeros(shape, dtype=torch.int64, device=backend.device)
    assert sf.sample_transition(x_0, 1.0, graph).shape == shape


@pytest.mark.interpreted(shape=[(1, 40_000)])
@by_graph
@pytest.mark.parametrize("shape", [(1, 40_000), (3, 13_331), (40, 1000)], ids=str)
def test_a_big_batch_equals_its_parts(backend: Backend, graph: sf.Graph, shape):
    """Above 16384 tokens the work is shared among threads, within sequences too."""
    inputs = make_inputs(graph, shape=shape, device=backend.device)
    whole = sf.sample_transition(inputs.x_0, inputs.sigma, graph, u=inputs.u)
    for i, sigma in enumerate(inputs.sigma):
        for at in (slice(0, 500), slice(500, None)):
            x_0, u = inputs.x_0[i : i + 1, at], inputs.u[i : i + 1, at]
            assert torch.equal(whole[i : i + 1, at], sf.sample_transition(x_0, sigma, graph, u=u))


@by_graph
@pytest.mark.parametrize("place", [0, 12_345, 39_999])
def test_a_bad_value_anywhere_in_a_big_batch(backend: Backend, graph: sf.Graph, place):
    if backend.device != "cpu":
        pytest.skip("values are checked on the CPU")
    inputs = make_inputs(graph, shape=(2, 20_000))
    for name, bad, match in (
        ("x_0", -1, "x_0 must hold"), ("x_0", -(2**63), "x_0 must hold"),
        ("x_0", graph.dim, "x_0 must hold"), ("x_0", 2**63 - 1, "x_0 must hold"),
        ("u", 1.0, "u must lie"), ("u", -1e-300, "u must lie"), ("u", torch.nan, "u must lie"),
        ("u", -torch.inf, "u must lie"), ("u", torch.inf, "u must lie"),
    ):  # fmt: skip
        x_0, u = inputs.x_0.clone(), inputs.u.clone()
        {"x_0": x_0, "u": u}[name].view(-1)[place] = bad
        with pytest.raises(ValueError, match=match):
            sf.sample_transition(x_0, inputs.sigma, graph, u=u)


def test_minus_zero_is_a_uniform(backend: Backend):
    u = torch.full((2, 3, 2), -0.0, dtype=torch.float64, device=backend.device)
    x_0 = torch.ones(2, 3, dtype=torch.int64, device=backend.device)
    assert not sf.sample_transition(x_0, 0.5, sf.Uniform(5), u=u).any()


def test_the_input_is_left_alone(backend: Backend):
    x_0 = torch.zeros(2, 5, dtype=torch.int64, device=backend.device)
    x_t = sf.sample_transition(x_0, 30.0, sf.Absorbing(3))
    assert int(x_t.min()) == 3
    assert not x_0.any()
