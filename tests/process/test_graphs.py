"""The dense formulas of both graphs against golden values and matrix exponentials."""

import dataclasses
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import sedd_fast as sf
from sedd_fast.process.graphs import make_graph

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "process.safetensors")
GRAPHS = (sf.Absorbing(11), sf.Uniform(11))
by_graph = pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.kind)
EVERY = (*GRAPHS, sf.Absorbing(11, 4), sf.Absorbing(11, 0))
by_any = pytest.mark.parametrize("graph", EVERY, ids=str)


def golden(graph: sf.Graph, key: str) -> Tensor:
    return GOLDEN[f"{graph.kind}.{key}"]


def matrices(graph: sf.Graph, noise: Tensor) -> Tensor:
    """exp(noise Q) of every sequence, (B, dim, dim)."""
    return torch.stack([graph.transition_matrix(float(sigma)) for sigma in noise])


@by_any
@pytest.mark.parametrize("sigma", [0.0, 1e-5, 0.3, 4.0, 30.0])
def test_transition_matrix_is_the_exponential_of_the_rates(graph: sf.Graph, sigma):
    matrix = graph.transition_matrix(sigma)
    torch.testing.assert_close(matrix, torch.matrix_exp(sigma * graph.rate_matrix()))
    torch.testing.assert_close(matrix.sum(0), torch.ones(graph.dim, dtype=torch.float64))
    assert matrix.dtype == torch.float64


@by_any
def test_rates_conserve_probability(graph: sf.Graph):
    rates = graph.rate_matrix()
    assert rates.shape == (graph.dim, graph.dim)
    torch.testing.assert_close(rates.sum(0), torch.zeros(graph.dim, dtype=torch.float64))
    assert bool((rates - rates.diag().diag() >= 0).all())


@by_graph
def test_golden_rates(graph: sf.Graph):
    """A column of Q has the rates out of a state, a row the rates into it."""
    x_t, rates = golden(graph, "xt"), graph.rate_matrix()
    torch.testing.assert_close(rates.T[x_t], golden(graph, "rate"))
    torch.testing.assert_close(rates[x_t], golden(graph, "transp_rate"))


@by_graph
def test_golden_reverse_rate(graph: sf.Graph):
    x_t = golden(graph, "xt")
    own = torch.nn.functional.one_hot(x_t, graph.dim).bool()
    rate = graph.rate_matrix()[x_t] * golden(graph, "log_score").exp()
    rate = torch.where(own, 0, rate)
    rate = torch.where(own, -rate.sum(-1, keepdim=True), rate)
    torch.testing.assert_close(rate, golden(graph, "reverse_rate"))


@by_graph
def test_golden_transition_and_staggered_score(graph: sf.Graph):
    x_t, dsigma = golden(graph, "xt"), golden(graph, "dsigma")
    forward = matrices(graph, dsigma)
    rows = forward[torch.arange(len(dsigma))[:, None], x_t]  # exp(d Q)[x_t, y]
    torch.testing.assert_close(rows, golden(graph, "transp_transition"))
    score = golden(graph, "log_score").exp()
    staggered = torch.linalg.solve(forward, score.mT).mT  # exp(-d Q) s
    torch.testing.assert_close(staggered, golden(graph, "staggered_score"), rtol=1e-9, atol=1e-9)


@by_any
def test_transition_at_infinite_noise_is_the_limit(graph: sf.Graph):
    limit = graph.transition_matrix(float("inf"))[:, 0]
    tokens = graph.sample_limit((200, 50), generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(tokens.flatten(), minlength=graph.dim) / tokens.numel()
    torch.testing.assert_close(shares.double(), limit, rtol=0, atol=0.02)
    assert tokens.dtype == torch.int64


def test_limit_of_the_absorbing_graph_is_the_mask():
    assert sf.Absorbing(5).sample_limit((2, 3)).tolist() == [[5] * 3] * 2
    assert sf.Absorbing(5, 2).sample_limit((2, 3)).tolist() == [[2] * 3] * 2


def test_the_limit_is_drawn_from_the_generator():
    draws = [
        sf.Uniform(50).sample_limit((4, 9), generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_sizes_and_names():
    absorbing, uniform = sf.Absorbing(50257), sf.Uniform(27)
    assert (absorbing.kind, absorbing.vocab_size, absorbing.dim) == ("absorbing", 50257, 50258)
    assert absorbing.mask_index == 50257
    assert (uniform.kind, uniform.vocab_size, uniform.dim) == ("uniform", 27, 27)
    assert uniform.mask_index is None
    llada = sf.Absorbing(126463, mask_index=126336)
    assert (llada.vocab_size, llada.dim, llada.mask_index) == (126463, 126464, 126336)


def test_graphs_compare_by_value():
    assert sf.Absorbing(5) == sf.Absorbing(5)
    assert sf.Absorbing(5) != sf.Uniform(5)
    assert len({sf.Uniform(5), sf.Uniform(5), sf.Uniform(6)}) == 2
    assert sf.Absorbing(5) == sf.Absorbing(5, mask_index=5) != sf.Absorbing(5, mask_index=0)
    assert len({sf.Absorbing(5), sf.Absorbing(5, 5), sf.Absorbing(5, 2)}) == 2
    graph = sf.Absorbing(5, 2)
    assert graph == eval(repr(graph), vars(sf)) == pickle.loads(pickle.dumps(graph))
    assert repr(sf.Absorbing(5, 5)) == "Absorbing(vocab_size=5)"
    assert repr(sf.Uniform(5)) == "Uniform(vocab_size=5)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        sf.Absorbing(5).vocab_size = 6


@pytest.mark.parametrize("graph", [sf.Absorbing, sf.Uniform])
def test_bad_vocabularies(graph):
    for size in (5.0, "5", True, None):
        with pytest.raises(TypeError, match=r"vocab_size must be an int.*Absorbing\(50257\)"):
            graph(size)
    for size in (1, 0, -3):
        with pytest.raises(ValueError, match=f"vocab_size must be at least 2, got {size}"):
            graph(size)


def test_bad_masks():
    for mask in (1.0, "1", True):
        with pytest.raises(TypeError, match=r"mask_index must be an int, .* are 0 .. 5"):
            sf.Absorbing(5, mask)
    for mask in (-1, 6):
        with pytest.raises(ValueError, match=rf"mask_index must be at .*, got {mask}; the states"):
            sf.Absorbing(5, mask)


def test_which_states_are_tokens():
    states = torch.arange(-1, 7)
    assert sf.Absorbing(5, 2).is_token(states).nonzero().flatten().tolist() == [1, 2, 4, 5, 6]
    assert sf.Absorbing(5).is_token(states).nonzero().flatten().tolist() == [1, 2, 3, 4, 5]
    assert sf.Uniform(5).is_token(states).nonzero().flatten().tolist() == [1, 2, 3, 4, 5]


def test_make_graph():
    assert make_graph("absorbing", 5) == make_graph("absorb", 5) == sf.Absorbing(5)
    assert make_graph("uniform", 5) == sf.Uniform(5)
    with pytest.raises(ValueError, match="'absorb', 'uniform', got 'mask'"):
        make_graph("mask", 5)
