"""A generator for each sequence: a sample does not depend on those drawn beside it."""

from typing import Any

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.tiny_models import tiny
from sedd_fast.models.autoregressive import Autoregressive, generate
from sedd_fast.names import DECODING_METHODS
from sedd_fast.ops._uniforms import uniform, uniforms
from sedd_fast.sampling import METHODS, RowStreams, infill, sample

V, L, ROWS = 7, 9, 6
#: Those of masks alone left out.
UNIFORM_METHODS = [m for m in METHODS if m not in ("hit", *DECODING_METHODS)] + ["entropy_bound"]
NOISE = sf.LogLinearNoise()
ABSORBING, UNIFORM = sf.Absorbing(V), sf.Uniform(V)
DENSE = sf.DenseGraph(torch.roll(torch.eye(V), 1, 0) - torch.eye(V))
OPTIONS: list[tuple[sf.Graph, dict[str, Any]]] = [
    *((ABSORBING, {"method": method}) for method in METHODS),
    *((UNIFORM, {"method": method}) for method in UNIFORM_METHODS),
    (DENSE, {"method": "analytic"}),
    (DENSE, {"method": "tau_leaping"}),
    (ABSORBING, {"method": "hit", "steps": None}),
    (ABSORBING, {"method": "confidence", "steps": None, "temperature": 0.5}),
    (ABSORBING, {"method": "margin", "steps": 5, "block_length": 2, "stop_token": 3}),
    (ABSORBING, {"method": "entropy_bound", "steps": None, "entropy_bound": 2.0}),
    (ABSORBING, {"method": "threshold", "threshold": 0.3, "block_length": 4}),
    (ABSORBING, {"remask": sf.Remask("rescale", 0.9), "steps": 12}),
    (ABSORBING, {"legacy_fp32_gumbel": True}),
    (UNIFORM, {"legacy_fp32_gumbel": True, "denoise": False}),
    (UNIFORM, {"temperature": 0.8, "top_p": 0.9}),
]
each_option = pytest.mark.parametrize(
    ("graph", "options"), OPTIONS, ids=[f"{g.kind}-{o}" for g, o in OPTIONS]
)


def scores(graph: sf.Graph) -> Any:
    """A network whose scores of a sequence do not depend on the batch: sums, in one order."""
    table = torch.randn(2, graph.dim, graph.dim, generator=seeded(1), dtype=torch.float64)

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        log_score = table[0][x] + table[1][x.roll(1, -1)]
        if graph.mask_index is not None:
            log_score = log_score - torch.log(4 * V * torch.expm1(sigma.double()))[:, None, None]
        return log_score.scatter(-1, x[..., None], 0)

    return model


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def in_batches(draw: Any, size: int) -> Tensor:
    """All rows, ``size`` at a time, each with the stream of its own number."""
    parts = torch.arange(ROWS).split(size)
    return torch.cat([draw(part, RowStreams.of_texts(5, part.tolist())) for part in parts])


@each_option
def test_a_sample_does_not_depend_on_the_batch(graph: sf.Graph, options: dict[str, Any]) -> None:
    model, options = scores(graph), {"steps": 4, **options}

    def draw(rows: Tensor, generator: RowStreams) -> Tensor:
        return sample(model, graph, NOISE, (len(rows), L), generator=generator, **options)

    together = in_batches(draw, ROWS)
    assert len(together.unique(dim=0)) > 1
    for size in (1, 2, 4):
        assert torch.equal(in_batches(draw, size), together)


@each_option
def test_nor_does_an_infill(graph: sf.Graph, options: dict[str, Any]) -> None:
    """Row i has i tokens to draw: the rows finish apart."""
    model, options = scores(graph), {"steps": 4, **options}
    tokens = torch.randint(V, (ROWS, L), generator=seeded(2))
    known = torch.arange(L) >= torch.arange(ROWS)[:, None]

    def draw(rows: Tensor, generator: RowStreams) -> Tensor:
        given = tokens[rows], known[rows]
        return infill(model, graph, NOISE, *given, generator=generator, **options)

    together = in_batches(draw, ROWS)
    for size in (1, 2, 4):
        assert torch.equal(in_batches(draw, size), together)


def test_steps_that_a_batch_leaves_out_change_no_later_one() -> None:
    """Few masks, often masked again: single sequences have steps without any, a batch has none."""
    rows, graph, remask = 60, ABSORBING, sf.Remask("rescale", 0.9)
    model, known = scores(graph), torch.arange(L) >= 2
    tokens, known = torch.zeros(rows, L, dtype=torch.int64), known.expand(rows, L)

    def draw(numbers: range) -> Tensor:
        given = tokens[: len(numbers)], known[: len(numbers)]
        streams = RowStreams.of_texts(8, numbers)
        return infill(model, graph, NOISE, *given, 12, generator=streams, remask=remask)

    apart = torch.cat([draw(range(i, i + 1)) for i in range(rows)])
    assert torch.equal(draw(range(rows)), apart)


@pytest.mark.parametrize("method", ["analytic", "hit"])
def test_nor_does_one_of_a_fused_head(method: str) -> None:
    model = tiny()

    def draw(rows: Tensor, generator: RowStreams) -> Tensor:
        shape = (len(rows), 12)
        return sample(model, model.graph, model.noise, shape, 4, method, generator=generator)

    assert torch.equal(in_batches(draw, 1), in_batches(draw, ROWS))


def test_nor_does_an_autoregressive_one() -> None:
    model = Autoregressive(tiny().config)
    torch.nn.init.normal_(model.vocab_embed.embedding)

    def draw(rows: Tensor, generator: RowStreams) -> Tensor:
        return generate(model, (len(rows), 12), generator=generator)

    together = in_batches(draw, ROWS)
    assert len(together.unique(dim=0)) > 1
    assert torch.equal(in_batches(draw, 2), together)


def test_a_list_of_generators_gives_each_row_its_own() -> None:
    model = scores(UNIFORM)

    def draw(*seeds: int) -> Tensor:
        generators = [seeded(seed) for seed in seeds]
        first, second = (
            sample(model, UNIFORM, NOISE, (len(seeds), L), 3, generator=generators) for _ in "ab"
        )
        assert not torch.equal(first, second)  # the generators have gone on
        return first

    together = draw(4, 5, 4)
    assert torch.equal(together[1:2], draw(5))
    assert torch.equal(together[0], together[2])
    assert not torch.equal(together[0], together[1])


def test_the_same_streams_give_the_same_samples() -> None:
    streams = RowStreams.of_texts(1, range(3))
    first, second = (
        sample(scores(ABSORBING), ABSORBING, NOISE, (3, L), 3, generator=streams) for _ in "ab"
    )
    assert torch.equal(first, second)


def test_texts_have_unrelated_streams() -> None:
    named = [(0, 1, 0), (1, 0, 0), (0, 0, 1), (0, 0, 0), (2**40, 0, 0)]
    keys = [RowStreams.of_texts(seed, [text], request).keys[0] for seed, request, text in named]
    assert len(set(keys)) == len(keys)
    assert max(keys) > 2**60
    u = RowStreams.of_texts(0, range(4000)).uniform((4000, 2, 3))
    assert 0 <= u.min() <= u.max() < 1
    assert abs(u.mean() - 0.5) < 0.01
    assert abs(torch.corrcoef(u.view(4000, 6).T).fill_diagonal_(0)).max() < 0.07


def test_limits_and_operations_take_streams() -> None:
    streams = RowStreams.of_texts(3, range(2000))
    for graph in (UNIFORM, DENSE):
        start = graph.sample_limit((2000, 2), generator=streams)
        assert torch.bincount(start.flatten(), minlength=V).min() > 4000 / V * 0.8
    x_0 = torch.zeros(2000, 2, dtype=torch.int64)
    u = uniforms(x_0, None, RowStreams(streams.keys))
    drawn = sf.sample_transition(x_0, 1.0, UNIFORM, generator=RowStreams(streams.keys))
    assert torch.equal(drawn, sf.sample_transition(x_0, 1.0, UNIFORM, u=u))


@pytest.mark.parametrize(
    ("generator", "error", "message"),
    [
        ([seeded(0)], ValueError, "got 1 for 2 sequences"),
        (RowStreams.of_texts(0, range(3)), ValueError, "got 3 for 2 sequences"),
        ([1, 2], TypeError, "must be a torch.Generator"),
        (7, TypeError, "must be a torch.Generator"),
    ],
)
def test_refuses(generator: Any, error: type[Exception], message: str) -> None:
    tokens = torch.zeros(2, L, dtype=torch.int64)
    model = scores(UNIFORM)
    with pytest.raises(error, match=message):
        sample(model, UNIFORM, NOISE, (2, L), 2, generator=generator)
    with pytest.raises(error, match=message):
        infill(model, UNIFORM, NOISE, tokens, tokens > 0, 2, generator=generator)
    with pytest.raises(ValueError, match="streams for 3 rows"):
        uniform((2, 2), torch.device("cpu"), RowStreams.of_texts(0, range(3)))
