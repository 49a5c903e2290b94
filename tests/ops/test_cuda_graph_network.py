"""CudaGraphNetwork: the same tokens as without graphs, and what passes through."""

import pytest
import torch

import sedd_fast as sf
from sedd_fast.models.interface import ReverseStepRequest

on_gpu = pytest.mark.gpu
KINDS = ("absorbing", "uniform")


def network(kind: str, device: str = "cpu") -> sf.SEDD:
    torch.manual_seed(0)
    size = {"vocab_size": 301, "hidden_size": 64, "n_blocks": 2, "n_heads": 2, "length": 32}
    model = sf.SEDD(sf.SEDDConfig(graph=kind, scale_by_sigma=kind == "absorbing", **size))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.to(device).eval()


def sampled(model, like: sf.SEDD, shape=(3, 32), seed=1, **options) -> torch.Tensor:
    device = next(like.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    options = {"steps": 6, "generator": generator, "device": device} | options
    return sf.sample(model, like.graph, like.noise, shape, **options)


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_tokens_as_without_graphs(kind, dtype):
    model = network(kind, "cuda")
    graphs = sf.CudaGraphNetwork(model)
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        for shape in ((3, 32), (1, 20), (3, 32)):
            for method in ("analytic", "euler"):
                plain = sampled(model, model, shape, method=method)
                assert torch.equal(sampled(graphs, model, shape, method=method), plain)
        filtered = {"temperature": 0.8, "top_p": 0.9}
        assert torch.equal(sampled(graphs, model, **filtered), sampled(model, model, **filtered))


@on_gpu
def test_steps_are_replayed_and_see_changed_weights(monkeypatch):
    model = network("absorbing", "cuda")
    graphs, calls = sf.CudaGraphNetwork(model), []
    sampled(graphs, model)
    forward = sf.SEDD.forward
    monkeypatch.setattr(sf.SEDD, "forward", lambda *args: calls.append(1) or forward(*args))
    replayed = sampled(graphs, model, seed=2)
    assert not calls
    monkeypatch.undo()
    assert torch.equal(replayed, sampled(model, model, seed=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1.5)
    assert torch.equal(sampled(graphs, model, seed=2), sampled(model, model, seed=2))
    assert not torch.equal(sampled(graphs, model, seed=2), replayed)


@on_gpu
def test_infilling(monkeypatch):
    model = network("absorbing", "cuda")
    tokens = torch.arange(64, device="cuda").view(2, 32)
    known = tokens % 3 == 0
    made = []
    for each in (model, sf.CudaGraphNetwork(model)):
        torch.manual_seed(5)
        made.append(sf.infill(each, model.graph, model.noise, tokens, known, steps=4))
    assert torch.equal(*made)
    assert torch.equal(made[0][known], tokens[known])


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_cpu_the_network_is_called_as_it_is(kind):
    model = network(kind)
    graphs = sf.CudaGraphNetwork(model)
    assert graphs.graph == model.graph
    assert ReverseStepRequest in graphs.head_requests
    assert torch.equal(sampled(graphs, model), sampled(model, model))
    x, sigma = torch.randint(301, (2, 8)), torch.ones(2)
    assert torch.equal(graphs(x, sigma), model(x, sigma))


def test_a_network_without_requests_is_refused():
    with pytest.raises(TypeError, match="head_requests, such as SEDD; got function"):
        sf.CudaGraphNetwork(lambda x, sigma: x)
