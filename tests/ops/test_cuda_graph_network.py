"""CudaGraphNetwork: the same tokens as without graphs, when it captures, what passes through.

In this folder, because a GPU machine runs its tests (docs/gpu.md).
"""

import copy
import pickle
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from sedd_fast.models import cuda_graph
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


class Graphs:
    """Stands for CUDA graphs on a CPU: a replay runs the recorded step on the tensors it reads."""

    def __init__(self) -> None:
        self.recorded, self.replays = 0, 0

    def record(self, step: Callable[[], Tensor], device: torch.device, pool: object) -> object:
        self.recorded += 1
        step()

        def replayed() -> Tensor:
            self.replays += 1
            return step()

        return SimpleNamespace(wait=lambda: None, replayed=replayed)


@pytest.fixture
def graphs(monkeypatch) -> Graphs:
    made = Graphs()
    monkeypatch.setattr(cuda_graph, "_record", made.record)
    monkeypatch.setattr(cuda_graph, "_can_record", lambda indices: True)
    monkeypatch.setattr(cuda_graph, "_new_pool", lambda: None)
    monkeypatch.setattr(cuda_graph, "values", SimpleNamespace(enabled=lambda device: False))
    return made


def step(graphed, length: int = 8, **given) -> Tensor:
    """One denoising step of masked tokens."""
    model = graphed.model
    generator = torch.Generator().manual_seed(length)
    u = torch.rand(2, length, 2, dtype=torch.float64, generator=generator)
    x = torch.full((2, length), model.graph.vocab_size)
    request = ReverseStepRequest(**{"method": "analytic", "dsigma": 0.7, "u": u} | given)
    with torch.no_grad():
        found = graphed(x, torch.full((2,), 0.9), request)
        assert torch.equal(found, model(x, torch.full((2,), 0.9), request))
    return found


def test_a_step_is_captured_once_for_its_shapes_and_settings(graphs, monkeypatch):
    graphed = sf.CudaGraphNetwork(network("absorbing"))
    given = [{}, {"length": 9}, {"method": "euler"}, {"method": "denoise", "dsigma": None}]
    given += [{"temperature": 0.5}, {"top_p": 0.9}]
    for number, each in enumerate(given, 1):
        for dsigma in (0.7, 0.3):
            step(graphed, **({"dsigma": dsigma} | each))
            assert graphs.recorded == number
    with sf.use_backend("reference"):
        step(graphed)
    monkeypatch.setattr(cuda_graph, "_autocast", lambda: (False, torch.bfloat16))
    step(graphed)
    assert graphs.recorded == len(given) + 2
    assert graphs.replays == 2 * len(given) + 2


def test_an_attention_mask_is_an_input_of_the_graph(graphs):
    model = network("absorbing")
    model.output_layer.linear.weight.data.mul_(1000)  # a small change of the features shows
    graphed = sf.CudaGraphNetwork(model)
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(302, (2, 8), generator=generator)
    u, sigma = torch.rand(2, 8, 2, dtype=torch.float64, generator=generator), torch.full((2,), 0.9)
    request = ReverseStepRequest("denoise", u=u)
    x = torch.where(torch.rand(2, 8, generator=generator) < 0.7, 301, x)
    masks = [[1] * 8, [1] * 4 + [2] * 4, [1] * 6 + [0] * 2, None, [1] * 2 + [2] * 6]
    drawn = []
    with torch.no_grad():
        for number in masks:
            mask = None if number is None else torch.tensor([number, number])
            found = graphed(x, sigma, request, attention_mask=mask)
            assert torch.equal(found, model(x, sigma, request, attention_mask=mask))
            drawn.append(tuple(found.flatten().tolist()))
    assert graphs.recorded == 2  # with a mask, and without
    assert len(set(drawn)) > 2


def test_graphs_that_are_not_used_are_dropped(graphs):
    graphed = sf.CudaGraphNetwork(network("absorbing"))
    for length in range(1, cuda_graph.KEPT + 2):
        step(graphed, length)
        step(graphed, 1)  # used every time, so it stays
    assert len(graphed._captured) == cuda_graph.KEPT
    assert graphs.recorded == cuda_graph.KEPT + 1
    step(graphed, 2)
    assert graphs.recorded == cuda_graph.KEPT + 2


@pytest.mark.parametrize("change", ["replaced", "moved", "changed in place"])
def test_steps_are_captured_anew_where_weights_are_elsewhere(graphs, change):
    model = network("absorbing")
    graphed = sf.CudaGraphNetwork(model)
    before = step(graphed)
    weight = model.output_layer.linear.weight
    if change == "replaced":
        weight.data = -3 * weight.data
    elif change == "moved":
        model.double()
    else:
        weight.data.mul_(-3)
    assert torch.equal(step(graphed), before) == (change == "moved")
    assert graphs.recorded == (1 if change == "changed in place" else 2)


def test_what_is_not_captured(graphs):
    model = network("absorbing")
    graphed = sf.CudaGraphNetwork(model)
    x, sigma = torch.full((2, 8), 301), torch.full((2,), 0.9)
    u = torch.rand(2, 8, 2, dtype=torch.float64)
    graphed(x, sigma, ReverseStepRequest("denoise", u=u))  # gradients are recorded
    with torch.no_grad():
        graphed(x, sigma, ReverseStepRequest("denoise"))
        rows = sf.touched_rows(x, model.graph)
        graphed(x, sigma, ReverseStepRequest("denoise", u=u, rows=rows))
        assert graphed(x[:0], sigma[:0], ReverseStepRequest("denoise", u=u[:0])).shape == (0, 8)
        model.blocks[0].train()
        graphed(x, sigma, ReverseStepRequest("denoise", u=u))
    assert graphs.recorded == 0


@pytest.mark.parametrize(
    ("kind", "of", "dtype", "temperature", "captured"),
    [
        ("absorbing", sf.SEDD, torch.float32, 1.0, False),
        ("absorbing", sf.SEDD, torch.bfloat16, 1.0, True),
        ("absorbing", sf.SEDD, torch.bfloat16, 0.5, False),
        ("absorbing", sf.PosteriorSEDD, torch.bfloat16, 1.0, False),
        ("uniform", sf.SEDD, torch.float32, 0.5, True),
    ],
)
def test_many_rows_that_cannot_move(graphs, monkeypatch, kind, of, dtype, temperature, captured):
    """A graph has a fixed list of rows; only sums of groups skip those that cannot move."""
    monkeypatch.setattr(cuda_graph, "MOST_ROWS", 15)
    graphed = sf.CudaGraphNetwork(of(network(kind).config).eval().to(dtype))
    x, u = torch.zeros(2, 8, dtype=torch.int64), torch.rand(2, 8, 2, dtype=torch.float64)
    with torch.no_grad():
        graphed(x, torch.ones(2), ReverseStepRequest("denoise", u=u, temperature=temperature))
    assert graphs.recorded == captured


def test_inference_mode_and_no_grad(graphs):
    graphed = sf.CudaGraphNetwork(network("absorbing"))
    with torch.inference_mode():
        step(graphed)
    step(graphed)
    assert graphs.recorded == 1


def test_a_step_that_cannot_be_captured_is_made_without_a_graph(graphs, monkeypatch):
    def refuses(*args):
        raise RuntimeError("operation not permitted\nmore")

    monkeypatch.setattr(cuda_graph, "_record", refuses)
    graphed = sf.CudaGraphNetwork(network("absorbing"))
    with pytest.warns(RuntimeWarning, match=r"captured .*\(operation not permitted\)"):
        step(graphed)
    step(graphed)  # it is not tried again


def test_copies_have_no_graphs(graphs):
    graphed = sf.CudaGraphNetwork(network("absorbing"))
    step(graphed)
    for made in (copy.deepcopy(graphed), pickle.loads(pickle.dumps(graphed))):
        assert not made._captured
        step(made)
    assert graphs.recorded == 3


@on_gpu
def test_draws_and_captures_go_on_after_a_capture_that_failed():
    stream, device = torch.cuda.current_stream(), torch.device("cuda", torch.cuda.current_device())
    x = torch.ones(3, device=device)
    with pytest.raises(RuntimeError):  # reading a value waits for the device
        cuda_graph._record(lambda: x * float(x.sum()), device, cuda_graph._new_pool())
    assert torch.cuda.current_stream() == stream
    assert bool((torch.rand(3, device=device) < 1).all())
    recorded = cuda_graph._record(lambda: x + 1, device, cuda_graph._new_pool())
    x.fill_(4)
    recorded.wait()
    assert recorded.replayed().tolist() == [5, 5, 5]
