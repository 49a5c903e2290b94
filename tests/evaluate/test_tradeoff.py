"""Quality against steps: counting, metrics of samples, matches, the picture."""

import math
from itertools import count

import numpy as np
import pytest
import torch

import sedd_fast as sf
from sedd_fast.evaluate import tradeoff
from sedd_fast.evaluate.ngram import NGram
from sedd_fast.evaluate.plots import plot_tradeoff
from sedd_fast.evaluate.tradeoff import (
    Budget,
    Point,
    Quality,
    as_fast,
    counted,
    matches,
    measure,
    spaced_rows,
)
from sedd_fast.models.autoregressive import Autoregressive
from sedd_fast.sampling.config import SamplerConfig

V = 6
CONFIG = sf.SEDDConfig(V, hidden_size=8, cond_dim=8, n_blocks=1, n_heads=2, length=10)
BUDGET = Budget(num_samples=5, batch_size=2, length=10)


def decode(row: list[int]) -> str:
    return "".join("abcdef"[i] for i in row)


def cycle(phase: int, count: int) -> np.ndarray:
    return (np.arange(count) + phase) % V


def test_rows_are_counted_at_the_network():
    model = sf.SEDD(CONFIG)
    with counted(model) as shapes:
        model(torch.zeros(3, 7, dtype=torch.int64), torch.ones(3))
        model.features(torch.zeros(2, 4, dtype=torch.int64), torch.ones(2))
    model(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1))
    assert shapes == [(3, 7), (2, 4)]


def test_points_of_sedd_and_of_the_baseline():
    point = measure(sf.SEDD(CONFIG), SamplerConfig("euler", 3), BUDGET)
    assert (point.sampler, point.steps, point.metrics) == ("euler", 3, {})
    assert 1 <= point.rows <= 4  # three steps and the denoising one; fewer once all is unmasked
    assert point.positions == 10 * point.rows
    assert point.seconds > 0
    baseline = measure(Autoregressive(CONFIG), SamplerConfig(top_p=0.9), BUDGET)
    assert (baseline.sampler, baseline.steps) == ("ar, top-p 0.9", 10)
    assert baseline.rows == baseline.positions == 10


def test_seconds_count_the_drawing_alone_and_are_per_sample(monkeypatch):
    """The clock of this test advances when it is read: drawing takes one second a batch."""
    clock = count()
    monkeypatch.setattr(tradeoff, "_now", lambda model: next(clock))
    batches = 3  # of 2, 2 and 1 samples
    point = measure(sf.SEDD(CONFIG), SamplerConfig("hit", 3), BUDGET)
    assert point.seconds == batches / BUDGET.num_samples


def test_same_seed_same_samples():
    quality = Quality.of_text(cycle(0, 300), cycle(0, 60), V, decode, BUDGET)
    model = sf.SEDD(CONFIG)
    config = SamplerConfig("analytic", 4)
    first, again = (measure(model, config, BUDGET, quality) for _ in range(2))
    assert first.metrics == again.metrics
    other = measure(model, config, Budget(5, 2, 10, seed=1), quality)
    assert other.metrics != first.metrics


def test_metrics_distinguish_real_text_from_noise():
    quality = Quality.of_text(cycle(0, 300), cycle(0, 60), V, decode, BUDGET)
    assert quality.real["js"] < 0.01
    noise = torch.randint(V, (5, 10), generator=torch.Generator().manual_seed(0)).tolist()
    figures = quality(noise)
    assert figures["js"] == pytest.approx(sum(figures[f"js_{n}"] for n in (1, 2, 3, 4)) / 4)
    assert figures["js"] > 0.5
    assert figures["ngram"] > quality.real["ngram"] + 2
    ngram = NGram.fit(cycle(0, 300), V, 5)
    spaced = (0, 1, 2, 4, 5)  # five of the six rows of the held-out text
    held_out = [ngram.bits_per_token(cycle(10 * i, 10)) for i in spaced]
    assert quality.real["ngram"] == pytest.approx(np.mean(held_out))
    assert figures["ngram"] == pytest.approx(np.mean([ngram.bits_per_token(r) for r in noise]))
    assert quality([[0] * 10])["entropy"] == 0
    assert quality.real["entropy"] == pytest.approx(math.log(6), rel=0.05)


def test_rows_stand_evenly_spaced_over_a_text():
    text = np.arange(100, dtype=np.uint16)
    assert spaced_rows(text, 7, 4)[:, 0].tolist() == [7 * number for number in (0, 4, 9, 13)]
    assert spaced_rows(text, 7, 99).shape == (14, 7)
    assert spaced_rows(text[:5], 7, 4).tolist() == [[0, 1, 2, 3, 4]]


def test_more_text_than_there_is():
    with pytest.raises(ValueError, match=r"num_samples: 5 of 10 tokens are more than the 49"):
        Quality.of_text(cycle(0, 49), cycle(0, 20), V, decode, BUDGET)
    with pytest.raises(ValueError, match="held-out text: it has no token"):
        Quality.of_text(cycle(0, 300), cycle(0, 0), V, decode, BUDGET)


def point(sampler: str, steps: int, js: float, ngram: float = 0.0) -> Point:
    return Point(sampler, steps, 1.0, 1.0, 1.0, {"js": js, "ngram": ngram})


def test_matches_take_the_fewest_steps():
    points = [point("a", 16, 0.1), point("a", 4, 0.3), point("a", 8, 0.2), point("b", 4, 0.5)]
    found = matches(points, point("ar", 10, 0.2), "js", {})
    assert (found["a"].steps, found["b"]) == (8, None)
    near = [point("a", 4, 0, 2.0), point("a", 8, 0, 3.4), point("a", 16, 0, 2.9)]
    found = matches(near, point("ar", 10, 0, 3.3), "ngram", {"ngram": 3.0})
    assert found["a"].steps == 16  # 2.0 is likelier than real text, not better


def test_as_fast_takes_the_most_steps_that_were_measured():
    def timed(sampler: str, steps: int, seconds: float) -> Point:
        return Point(sampler, steps, seconds, 1.0, 1.0)

    points = [timed("a", 16, 3.0), timed("a", 4, 1.0), timed("a", 8, 2.0), timed("b", 4, 2.5)]
    found = as_fast(points, timed("ar", 10, 2.0))
    assert (found["a"].steps, found["b"]) == (8, None)
    assert as_fast(points, timed("ar", 10, 9.0))["a"].steps == 16


def test_picture(tmp_path):
    points = [point("a", 4, 0.3), point("a", 8, 0.2), point("b", 4, 0.5)]
    path = plot_tradeoff(points, [point("ar", 10, 0.2)], "js", tmp_path / "a.png", 0.01)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert plot_tradeoff(points, [], None, tmp_path / "b.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="no point to draw"):
        plot_tradeoff([], [], "js", tmp_path / "c.png")
