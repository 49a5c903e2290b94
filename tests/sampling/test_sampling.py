"""sample, infill: shapes, prompt, callback, seeds, modes, errors. Distributions: test_toy_world."""

import pytest
import torch
from torch import Tensor, nn

import sedd_fast as sf
from sedd_fast.sampling.api import Step, infill, sample
from sedd_fast.sampling.config import timesteps

V = 11
GRAPHS = [sf.Absorbing(V), sf.Uniform(V)]
NOISE = sf.LogLinearNoise()
each_graph = pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.kind)


def flat_scores(dim: int):  # type: ignore[no-untyped-def]
    """A network that finds every token equally likely, and records how it was called."""
    calls: list[tuple[Tensor, Tensor]] = []

    def model(tokens: Tensor, sigma: Tensor) -> Tensor:
        calls.append((tokens, sigma))
        level = -torch.log(V * torch.expm1(sigma)) if dim > V else torch.zeros_like(sigma)
        return level[:, None, None].expand(*tokens.shape, dim)

    return model, calls


class Net(nn.Module):
    """Dropout and one frozen submodule: modes to be restored."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embedding, self.frozen = nn.Embedding(dim, dim), nn.Dropout(0.5)
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, tokens: Tensor, sigma: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.modes.append((self.training, self.frozen.training))
        return self.frozen(self.embedding(tokens)) - 3


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_timesteps() -> None:
    times = timesteps(4, 0.2)
    torch.testing.assert_close(times, torch.tensor([1, 0.8, 0.6, 0.4, 0.2], dtype=torch.float64))
    assert timesteps(1).tolist() == [1.0, 1e-5]


@each_graph
@pytest.mark.parametrize("method", ["analytic", "euler"])
@pytest.mark.parametrize("shape", [(3, 1), (1, 17), (2, 5)])
@pytest.mark.parametrize("steps", [1, 5])
def test_any_shape(graph: sf.Graph, method: str, shape: tuple[int, int], steps: int) -> None:
    model, calls = flat_scores(graph.dim)
    tokens = sample(model, graph, NOISE, shape, steps=steps, method=method, generator=seeded())
    assert tokens.shape == shape
    assert tokens.dtype == torch.int64
    assert 0 <= tokens.min() <= tokens.max() < V
    assert calls[0][1].dtype == torch.float32
    assert calls[0][1].shape == (shape[0],)


@each_graph
@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_empty(graph: sf.Graph, shape: tuple[int, int]) -> None:
    model, calls = flat_scores(graph.dim)
    assert sample(model, graph, NOISE, shape).shape == shape
    tokens, known = torch.zeros(shape, dtype=torch.int64), torch.ones(shape, dtype=torch.bool)
    assert infill(model, graph, NOISE, tokens, known).shape == shape
    assert not calls


def test_noise_levels_follow_the_grid() -> None:
    graph = sf.Uniform(V)
    model, calls = flat_scores(graph.dim)
    sample(model, graph, NOISE, (2, 3), steps=3, eps=0.1)
    seen = torch.stack([sigma[0] for _, sigma in calls])
    torch.testing.assert_close(seen, NOISE.sigma(torch.tensor([1, 0.7, 0.4, 0.1])))


@each_graph
def test_steps_are_the_operation_at_that_noise(graph: sf.Graph) -> None:
    """One analytic and one euler run against reverse_step called by hand."""
    for method in ("analytic", "euler"):
        model, _ = flat_scores(graph.dim)
        got = sample(
            model, graph, NOISE, (4, 6), steps=2, method=method, generator=seeded(3), eps=0.2
        )
        generator = seeded(3)
        x = graph.sample_limit((4, 6), generator=generator)
        for now, after in ((1.0, 0.6), (0.6, 0.2), (0.2, 0.0)):
            sigma, rate = NOISE(torch.tensor(now, dtype=torch.float64))
            removed = sigma - NOISE.sigma(torch.tensor(after, dtype=torch.float64))
            by = {"analytic": removed, "euler": rate * (now - after)}[method]
            name = method if after else "denoise"
            score = model(x, sigma.float().expand(4))
            x = sf.reverse_step(score, x, sigma, by, graph, name, generator=generator)
        assert torch.equal(got, x)


@each_graph
def test_seeds(graph: sf.Graph) -> None:
    model, _ = flat_scores(graph.dim)
    one, two, other = (
        sample(model, graph, NOISE, (4, 32), steps=4, generator=seeded(s)) for s in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    torch.manual_seed(5)
    first = sample(model, graph, NOISE, (4, 32), steps=4)
    torch.manual_seed(5)
    assert torch.equal(first, sample(model, graph, NOISE, (4, 32), steps=4))


@each_graph
def test_prompt_is_exact_at_every_step(graph: sf.Graph) -> None:
    model, calls = flat_scores(graph.dim)
    known = torch.rand(5, 12, generator=seeded()) < 0.4
    tokens = torch.randint(V, (5, 12), generator=seeded())
    given = torch.where(known, tokens, -7)  # what is unknown may hold anything
    steps: list[Step] = []
    result = infill(model, graph, NOISE, given, known, steps=6, callback=steps.append)
    for x in [result, *(step.tokens for step in steps), *(x for x, _ in calls)]:
        assert torch.equal(x[known], tokens[known])
    assert 0 <= result.min() <= result.max() < V
    assert given.min() == -7  # not written to


@each_graph
def test_all_known_or_none(graph: sf.Graph) -> None:
    model, calls = flat_scores(graph.dim)
    tokens = torch.randint(V, (3, 4), generator=seeded())
    everything = torch.ones_like(tokens, dtype=torch.bool)
    assert torch.equal(infill(model, graph, NOISE, tokens, everything, steps=3), tokens)
    if graph.kind == "absorbing":
        assert not calls  # nothing is masked, so there is nothing to ask
    filled = infill(model, graph, NOISE, tokens, ~everything, steps=3, generator=seeded(4))
    drawn = sample(model, graph, NOISE, (3, 4), steps=3, generator=seeded(4))
    assert torch.equal(filled, drawn)


@pytest.mark.parametrize("denoise", [True, False])
@each_graph
def test_callback_and_progress(
    graph: sf.Graph, denoise: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    model, _ = flat_scores(graph.dim)
    seen: list[Step] = []
    tokens = sample(
        model, graph, NOISE, (2, 8), steps=5, denoise=denoise, callback=seen.append, progress=True
    )
    assert [step.index for step in seen] == list(range(5 + denoise))
    assert {step.steps for step in seen} == {5 + denoise}
    expected = timesteps(5)[1:].tolist() + [0.0] * denoise
    assert [step.t for step in seen] == pytest.approx(expected)
    assert torch.equal(seen[-1].tokens, tokens)
    assert capfd.readouterr().out == ""  # the bar is on stderr


def test_without_denoising_masks_may_be_left() -> None:
    graph = sf.Absorbing(V)
    model, _ = flat_scores(graph.dim)
    left = sample(model, graph, NOISE, (4, 64), steps=2, eps=0.5, denoise=False)
    share = (left == graph.mask_index).double().mean()
    assert 0.3 < share < 0.7
    done = sample(model, graph, NOISE, (4, 64), steps=2, eps=0.5)
    assert done.max() < V


def test_modes_are_restored_even_after_an_error() -> None:
    graph = sf.Uniform(V)
    net = Net(graph.dim).train()
    net.frozen.eval()
    sample(net, graph, NOISE, (2, 3), steps=2)
    assert net.modes == [(False, False)] * 3
    assert (net.training, net.embedding.training, net.frozen.training) == (True, True, False)

    def stop(step: Step) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(net, graph, NOISE, (2, 3), steps=2, callback=stop)
    assert (net.training, net.frozen.training) == (True, False)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"steps": 2.0}, TypeError, "steps must be an int, got float"),
        ({"eps": 0.0}, ValueError, "eps must lie in"),
        ({"eps": 1.0}, ValueError, "eps must lie in"),
        ({"method": "heun"}, ValueError, "method must be .* got 'heun'"),
        ({"method": "denoise"}, ValueError, "denoise=True"),
        ({"shape": (4,)}, ValueError, "shape must be"),
        ({"shape": (4, -1)}, ValueError, "shape must be"),
        ({"shape": (4, 2.5)}, ValueError, "shape must be"),
        ({"shape": 4}, ValueError, "shape must be"),
        ({"graph": "absorbing"}, TypeError, "graph must be"),
    ],
)
def test_sample_refuses(changed: dict, error: type[Exception], message: str) -> None:
    settings = {"graph": GRAPHS[0], "noise": NOISE, "shape": (2, 3)} | changed
    with pytest.raises(error, match=message):
        sample(flat_scores(V + 1)[0], **settings)


@pytest.mark.parametrize(
    ("tokens", "known", "error", "message"),
    [
        ([[1, 2]], torch.ones(1, 2, dtype=torch.bool), TypeError, "tokens must be a torch.Tensor"),
        (torch.ones(1, 2), torch.ones(1, 2).bool(), TypeError, "tokens must be .*int64"),
        (torch.ones(1, 2).long(), [[True, True]], TypeError, "known must be a torch.Tensor"),
        (torch.ones(1, 2).long(), torch.ones(1, 2), TypeError, "known must be .*bool"),
        (torch.ones(2).long(), torch.ones(2).bool(), ValueError, "tokens must have shape"),
        (torch.ones(2, 2).long(), torch.ones(2).bool(), ValueError, "known must have shape"),
        (
            torch.full((1, 2), V),
            torch.ones(1, 2).bool(),
            ValueError,
            r"\(0, 0\), which is the mask",
        ),
        (torch.full((1, 2), V + 1), torch.ones(1, 2).bool(), ValueError, "outside the vocabulary"),
        (torch.full((1, 2), -1), torch.ones(1, 2).bool(), ValueError, "holds -1 at known position"),
    ],
)
def test_infill_refuses(tokens, known, error: type[Exception], message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        infill(flat_scores(V + 1)[0], GRAPHS[0], NOISE, tokens, known)
