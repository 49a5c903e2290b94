"""Execution on a GPU: streams, devices, CUDA graphs, no synchronisation, no extra memory."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.op_cases import (
    GRAPHS,
    METHODS,
    Backend,
    Inputs,
    graph_id,
    loss_and_gradient,
    make_inputs,
)

pytestmark = pytest.mark.gpu
by_graph = pytest.mark.parametrize("graph", GRAPHS, ids=graph_id)
V = 50257


def every_operation(inputs: Inputs) -> list[Tensor]:
    """Results of all operations with given uniforms, backward and all methods included."""
    results = list(loss_and_gradient(inputs))
    results += sf.score_entropy_with_grad(*inputs.entropy(), inputs.row_weight, "none")
    results += [sf.reverse_step(*inputs.reverse(), method, u=inputs.u) for method in METHODS]
    noised = sf.sample_transition(inputs.x_0, inputs.sigma, inputs.graph, u=inputs.u)
    return [*results, noised]


def assert_same(got: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


def inputs_like(inputs: Inputs, value: Callable[[Tensor], Tensor]) -> Inputs:
    tensors = {k: value(v) for k, v in vars(inputs).items() if isinstance(v, Tensor)}
    return replace(inputs, **tensors)


@by_graph
def test_a_side_stream_waits_for_its_inputs(gpu: Backend, graph: sf.Graph):
    """The inputs arrive late: a long-running kernel is queued before the copy."""
    source = make_inputs(graph, device="cuda")
    expected = every_operation(source)
    late = inputs_like(source, torch.zeros_like)
    late = replace(late, sigma=late.sigma + 1)  # valid values, but wrong ones if read too soon
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        for name, value in vars(source).items():
            if isinstance(value, Tensor):
                getattr(late, name).copy_(value)
        got = every_operation(late)
    side.synchronize()
    assert_same(got, expected)


@pytest.mark.not_in_smoke
@by_graph
def test_a_second_device(gpu: Backend, graph: sf.Graph):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    expected = every_operation(make_inputs(graph, device="cuda:0"))
    got = every_operation(make_inputs(graph, device="cuda:1"))
    assert torch.cuda.current_device() == 0
    assert all(value.device.index == 1 for value in got)
    assert_same([value.to("cuda:0") for value in got], expected)


@by_graph
def test_every_operation_is_captured_and_replayed(gpu: Backend, graph: sf.Graph):
    static = make_inputs(graph, device="cuda")
    every_operation(static)  # compiles
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        results = every_operation(static)
    for seed in (1, 2):
        fresh = make_inputs(graph, device="cuda", seed=seed)
        for name, value in vars(fresh).items():
            if isinstance(value, Tensor):
                getattr(static, name).detach().copy_(value)
        captured.replay()
        assert_same(results, every_operation(fresh))


@by_graph
def test_a_registered_generator_draws_new_numbers_in_every_replay(gpu: Backend, graph: sf.Graph):
    inputs = make_inputs(graph, shape=(4, 200), device="cuda")
    generator = torch.Generator("cuda").manual_seed(3)
    sf.reverse_step(*inputs.reverse(), generator=generator)  # compiles
    captured = torch.cuda.CUDAGraph()
    captured.register_generator_state(generator)
    generator.manual_seed(3)
    with torch.cuda.graph(captured):
        tokens = sf.reverse_step(*inputs.reverse(), generator=generator)
    drawn = []
    for _ in range(2):
        captured.replay()
        drawn.append(tokens.clone())
    assert not torch.equal(*drawn)
    eager = torch.Generator("cuda").manual_seed(3)
    for each in drawn:
        assert torch.equal(each, sf.reverse_step(*inputs.reverse(), generator=eager))


@by_graph
def test_a_cpu_generator_cannot_be_captured(gpu: Backend, graph: sf.Graph):
    inputs = make_inputs(graph, device="cuda")
    generator = torch.Generator()
    sf.reverse_step(*inputs.reverse(), generator=generator)
    with (
        pytest.raises(RuntimeError, match="CPU generator cannot be used while a CUDA graph"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        sf.reverse_step(*inputs.reverse(), generator=generator)


@pytest.fixture
def no_synchronisation() -> Iterator[None]:
    """An operation that synchronises the device raises an error."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@by_graph
def test_nothing_synchronises_the_device(gpu: Backend, graph: sf.Graph, monkeypatch, request):
    monkeypatch.delenv("SEDD_FAST_CHECK", raising=False)
    inputs = make_inputs(graph, device="cuda")
    every_operation(inputs)
    request.getfixturevalue("no_synchronisation")
    every_operation(inputs)
    sf.reverse_step(inputs.log_score, inputs.x_t, 0.5, 0.1, graph)  # numbers; its own uniforms
    sf.sample_transition(inputs.x_0, 0.5, graph, generator=torch.Generator("cuda"))
    with pytest.raises(RuntimeError, match="synchroniz"):
        inputs.sigma.sum().item()  # the mode is in force


def requested_bytes(when: str) -> int:
    """Bytes requested of the allocator ("current" or "peak"), which rounds requests up."""
    return torch.cuda.memory_stats()[f"requested_bytes.all.{when}"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("graph", [sf.Absorbing(V), sf.Uniform(V)], ids=graph_id)
def test_no_memory_besides_the_gradient(gpu: Backend, graph: sf.Graph, dtype):
    inputs = make_inputs(graph, dtype, (2, 128), device="cuda")
    size = inputs.log_score.numel() * inputs.log_score.element_size()
    leaf = inputs.log_score.requires_grad_()
    scores = leaf.detach()

    def backward() -> object:
        loss = sf.score_entropy(leaf, *inputs.entropy()[1:], inputs.row_weight, "sum")
        return torch.autograd.grad(loss, leaf)

    calls: list[tuple[Callable[[], object], int]] = [
        (lambda: sf.score_entropy(scores, *inputs.entropy()[1:], inputs.row_weight), 0),
        (lambda: sf.score_entropy_with_grad(scores, *inputs.entropy()[1:], inputs.row_weight), 1),
        (backward, 1),
        (lambda: sf.reverse_step(scores, *inputs.reverse()[1:], u=inputs.u), 0),
    ]
    for call, gradients in calls:
        call()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = requested_bytes("current")
        call()
        torch.cuda.synchronize()
        extra = requested_bytes("peak") - before
        assert extra < (gradients + 0.01) * size
