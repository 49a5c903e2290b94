"""The figures of docs/decoding.md: the samplers by certainty against network calls.

    python docs/decoding_figures.py toy
    python docs/decoding_figures.py trained --model bundled --num-samples 64

The first computes the exact distributions of the samplers in the toy world of the tests; the second
draws from a trained model and compares the samples with held-out text. They need the test tools
(`make tools`).
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import sedd_fast as sf
from sedd_fast.sampling import SamplerConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.decoding_rule import Rule, decoding_distribution
from helpers.toy_world import (
    SCHEDULES,
    ToyWorld,
    data_distribution,
    sampler_distribution,
    total_variation,
)

#: Numbers of steps of the samplers that spread positions evenly.
STEPS = (4, 8, 16, 32, 64, 128)
THRESHOLDS, BOUNDS = (0.3, 0.5, 0.7, 0.9), (0.1, 0.5, 2.0, 8.0)


def toy(seeds: int) -> None:
    """Total variation between sampler and data, and mean network calls, over several worlds."""
    rules = [
        *(Rule(m, steps) for m in ("confidence", "margin", "entropy") for steps in (1, 2, None)),
        Rule("confidence", temperature=0.0),
        *(Rule("threshold", threshold=bound) for bound in (0.3, 0.5, 0.7, 0.9)),
        *(Rule("entropy_bound", entropy_bound=bound) for bound in (0.1, 0.5, 1.0, 1.5)),
    ]
    worlds = [
        ToyWorld(sf.Absorbing(4), data_distribution(seed, 2.5)) for seed in range(seeds)
    ]  # fmt: skip
    print("method, setting                          calls   total variation")
    for steps in (1, 2, 4, 8, 16):
        found = [
            total_variation(
                sampler_distribution(w, SCHEDULES["absorbing"], steps, "analytic"), w.data
            )
            for w in worlds
        ]
        _row(f"analytic, steps={steps}", steps + 1, sum(found) / seeds)
    for rule in rules:
        calls, away = 0.0, 0.0
        for world in worlds:
            p, made = decoding_distribution(world, rule)
            calls, away = calls + made / seeds, away + total_variation(p, world.data) / seeds
        _row(_name(rule.options), calls, away)


def _row(name: str, calls: float, *figures: float) -> None:
    print(f"{name:40s} {calls:6.2f}  ", *(f"{figure:8.4f}" for figure in figures), flush=True)


def _name(options: dict[str, Any]) -> str:
    return ", ".join(
        [options["method"], *(f"{k}={v}" for k, v in options.items() if k != "method")]
    )


def settings() -> Iterator[SamplerConfig]:
    """What is drawn from a trained model."""
    for steps in STEPS:
        yield SamplerConfig("analytic", steps)
    for method in ("confidence", "margin", "entropy"):
        for steps in STEPS:
            yield SamplerConfig(method, steps)
    yield SamplerConfig("confidence", 128, temperature=0)
    yield SamplerConfig("confidence", 32, block_length=32)
    for bound in THRESHOLDS:
        yield SamplerConfig("threshold", None, threshold=bound)
    for bound in BOUNDS:
        yield SamplerConfig("entropy_bound", None, entropy_bound=bound)


def trained(name: str, text: str, count: int, seed: int) -> None:
    """Samples against held-out text: n-gram divergence, bits under an n-gram model, entropy."""
    from sedd_fast.cli.tradeoff_networks import find_networks
    from sedd_fast.cli.tradeoff_options import TradeoffOptions
    from sedd_fast.evaluate.tradeoff import measure

    options = TradeoffOptions(
        model=name, text=[text] if text else None, num_samples=count, seed=seed
    )
    compared = find_networks(options)
    assert compared.quality is not None
    real = compared.quality.real
    print(f"{count} samples of {compared.budget.length} tokens, seed {seed}")
    print(f"{'method, setting':40s}  calls   js       ngram    entropy")
    _row("real text", 0, *(real[metric] for metric in ("js", "ngram", "entropy")))
    defaults = vars(SamplerConfig())
    for config in settings():
        point = measure(compared.sedd, config, compared.budget, compared.quality)
        given = {k: v for k, v in vars(config).items() if v != defaults[k] or k == "steps"}
        figures = (point.metrics[metric] for metric in ("js", "ngram", "entropy"))
        _row(_name({"method": config.method, **given}), point.rows, *figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("toy").add_argument("--worlds", type=int, default=20)
    second = commands.add_parser("trained")
    second.add_argument("--model", default="bundled")
    second.add_argument("--text", default="pydoc", help="text to compare with; '': that of the run")
    second.add_argument("--num-samples", type=int, default=64)
    second.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    if chosen.command == "toy":
        toy(chosen.worlds)
    else:
        trained(chosen.model, chosen.text, chosen.num_samples, chosen.seed)


if __name__ == "__main__":
    main()
