"""The figures of docs/sampling.md, measured.

    python docs/sampling_figures.py toy
    python docs/sampling_figures.py normalisation --model runs/demo/export
    python docs/sampling_figures.py gumbel

The first computes exact distributions in the toy world of the tests, without a draw; the second
takes a trained absorbing model; the third computes how the original code draws from a Zipf
distribution.
Each prints tables; the seed is fixed. They need the test tools (`make tools`).
"""

import argparse
import math
import sys
from pathlib import Path

import torch
from torch import Tensor

import sedd_fast as sf
from sedd_fast.sampling.legacy_gumbel import gumbel_argmax

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.toy_world import (
    GRAPHS,
    SCHEDULES,
    Step,
    ToyWorld,
    data_distribution,
    sampler_distribution,
)


def toy() -> None:
    """Total variation between the exact distributions of samplers and data, by network calls."""
    data = data_distribution()
    print("graph, method, network calls " + " ".join(f"{2**k:6d}" for k in range(3, 9)))
    for graph in GRAPHS:
        world, noise = ToyWorld(graph, data), SCHEDULES[graph.kind]
        for method in ("analytic", "euler", "tau_leaping", "theta_trapezoidal"):
            calls = 2 if method == "theta_trapezoidal" else 1
            reached = [
                sampler_distribution(world, noise, 2**k // calls, method) for k in range(3, 9)
            ]
            print(
                f"{graph.kind + ', ' + method:29s}", *(f"{distance(p, data):.4f}" for p in reached)
            )
    print("analytic, scores times Z, steps     8     32    128    512")
    for z in (0.5, 0.8, 1.0, 1.25, 2.0):
        reached = [scaled_distribution(data, z, steps) for steps in (8, 32, 128, 512)]
        print(f"{z:<29g}", *(f"{distance(p, data):.4f}" for p in reached))
    print("remasking, cap with eta = 4 / steps    32    128    512")
    print(
        f"{'':36s}",
        *(f"{distance(remasked_distribution(data, n), data):.4f}" for n in (32, 128, 512)),
    )


def scaled_distribution(data: Tensor, z: float, steps: int) -> Tensor:
    """The distribution of "analytic" with all scores of the absorbing graph multiplied by z."""

    class Scaled(ToyWorld):
        def __call__(self, indices: Tensor, sigma: Tensor) -> Tensor:
            scaled = super().__call__(indices, sigma) + math.log(z)
            return scaled.scatter(-1, indices[..., None], 0.0)

    return sampler_distribution(Scaled(GRAPHS[0], data), SCHEDULES["absorbing"], steps, "analytic")


def remasked_distribution(data: Tensor, steps: int, eps: float = 1e-5) -> Tensor:
    """The distribution of "analytic" that masks a share of at most 4 / steps again in a step."""
    world, noise, h = ToyWorld(GRAPHS[0], data), SCHEDULES["absorbing"], (1 - eps) / steps
    times = sf.sampling.timesteps(steps, eps)
    states = torch.zeros((world.graph.vocab_size + 1) ** 3, dtype=torch.float64)
    states[-1] = 1  # all masked
    back = sf.Remask("cap", 4 / steps).probability(times, noise.sigma(times))
    for t, r in zip(times.tolist(), back.tolist(), strict=False):  # no step at the last time
        states = Step(world, noise, t, h).remasked(states, r)
    states = Step(world, noise, eps, eps)(states, "denoise")
    return states.view(5, 5, 5)[:4, :4, :4]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shares(tokens: Tensor, size: int) -> Tensor:
    counts = torch.bincount(tokens.flatten(), minlength=size).double()
    return counts / counts.sum()


def entropy(p: Tensor) -> float:
    """Bits."""
    return float(-(p * p.clamp(min=1e-300).log2()).sum())


def distance(p: Tensor, q: Tensor) -> float:
    """Total variation."""
    return float((p - q).abs().sum() / 2)


@torch.no_grad()
def normalisation(directory: str, batch: int, steps: int) -> None:
    """Z of a network on its own samples, and what "analytic" and "hit" make of it."""
    model = sf.SEDD.from_pretrained(directory).eval()
    process, length = (model, model.graph, model.noise), model.config.length
    samples = {
        name: sf.sample(*process, (batch, length), steps, method, generator=seeded(seed))
        for name, method, seed in (
            ("analytic", "analytic", 1),
            ("analytic again", "analytic", 2),
            ("hit", "hit", 3),
        )
    }
    print(f"{batch} samples of {length} tokens, {steps} steps")
    print("t     mean Z   Z - 1 - ln Z (nats)")
    for t in (0.05, 0.2, 0.5, 0.8, 0.95):
        z = _partition(model, samples["analytic"], t)
        print(f"{t:.2f}  {z.mean():.4f}   {(z - 1 - z.log()).mean():.2e}")
    size = model.graph.vocab_size
    pairs = {name: _pairs(tokens, size) for name, tokens in samples.items()}
    print("against analytic, total variation    single tokens   pairs of neighbours")
    for name in ("analytic again", "hit"):
        single = distance(shares(samples[name], size), shares(samples["analytic"], size))
        print(f"{name:36s} {single:.4f}          {distance(pairs[name], pairs['analytic']):.4f}")
    for name, tokens in samples.items():
        print(f"unigram entropy, {name:19s} {entropy(shares(tokens, size)):.3f} bits")


def _pairs(tokens: Tensor, size: int) -> Tensor:
    return shares(tokens[:, :-1] * size + tokens[:, 1:], size * size)


def _partition(model: sf.SEDD, tokens: Tensor, t: float) -> Tensor:
    """Z = expm1(sigma) sum(s) at the masked positions of noised samples."""
    sigma = model.noise.sigma(torch.tensor(t, dtype=torch.float64))
    x = sf.sample_transition(tokens, sigma, model.graph, generator=seeded(4))
    log_score = model(x, sigma.float().expand(len(x)))[x == model.graph.mask_index]
    return torch.expm1(sigma) * log_score[:, : model.graph.vocab_size].double().exp().sum(-1)


def gumbel(size: int, counts: list[int]) -> None:
    """Samples of independent tokens with a Zipf distribution, by the original's draw."""
    weight, many = zipf(size)
    print(
        f"Zipf distribution over {size:,}: {unigram_entropy(weight, many):.3f} bits, ",
        end="",
    )
    print(f"{weight[:100].sum():.3f} on the top 100; the distribution of the original's samples:")
    print("steps   entropy (bits)   on the top 100   masked at t = 0.5")
    for steps in counts:
        drawn, middle = sampled_distribution(weight, many, steps)
        figures = unigram_entropy(drawn, many), float(drawn[:100].sum())
        print(f"{steps:5d}   {figures[0]:.3f}           {figures[1]:.3f}            {middle:.3f}")
    print(f"one draw: a state of weight 1 - w against {size:,} equal ones of w together")
    print("w       moves, computed   moves, drawn")
    for w in (1e-1, 1e-2, 1e-3):
        computed = 1 - float(winners(torch.tensor([1 - w, w]), torch.tensor([1, size]))[0])
        rate, error = drawn_moves(w, size)
        print(f"{w:.0e}   {computed:.2e}          {rate:.2e} +- {error:.0e}")


def zipf(size: int) -> tuple[Tensor, Tensor]:
    """Weights and sizes of groups of nearly equally likely tokens; the first 200 stand alone."""
    edges = torch.logspace(math.log10(200), math.log10(size), 120).round().long().unique()
    edges = torch.cat((torch.arange(200), edges))
    edges[-1] = size
    rank = torch.cat((torch.zeros(1), (1 / torch.arange(1, size + 1).double()).cumsum(0)))
    weight = rank[edges].diff()
    return weight / weight.sum(), edges.diff()


def unigram_entropy(weight: Tensor, many: Tensor) -> float:
    """Bits, of groups of equally likely tokens."""
    return float(-(weight * (weight / many).clamp(min=1e-300).log2()).sum())


def winners(weight: Tensor, many: Tensor) -> Tensor:
    """(G,): how often each group wins the original's argmax of p / e; weight is of whole groups.

    u = k / 2^24, so that P(e >= x) = (floor(2^24 exp(-x)) + 1) / 2^24, and 0 above -ln(1e-10). The
    distribution of the largest p / e is the product over states; ties count for the larger group.
    """
    p = weight.double() / many
    grid = torch.logspace(-12, 12, 40_001, dtype=torch.float64)
    x = p[:, None] / grid  # (G, N): e must not be below this
    below = ((torch.floor(2**24 * torch.exp(-x)) + 1) / 2**24).clamp(max=1.0)
    log_cdf = torch.where(x > -math.log(1e-10), -torch.inf, below.log()) * many[:, None]
    cdf, total = log_cdf.exp(), log_cdf.sum(0)
    others = (total - log_cdf.clamp(min=-1e9)).exp() * (total > -torch.inf)
    won = (cdf.diff(dim=-1) * others[:, 1:]).sum(-1)
    return won / won.sum()


def sampled_distribution(weight: Tensor, many: Tensor, steps: int) -> tuple[Tensor, float]:
    """The distribution of a token after ``steps`` analytic steps, and the share masked half way.

    With a mask probability t a masked position moves with probability 1 / (steps - i) at step i;
    what wins depends on that alone, and is interpolated between 40 values of it.
    """
    moves = 1 / torch.arange(steps, 0, -1, dtype=torch.float64)
    nodes = torch.logspace(-math.log10(steps), 0, 40, dtype=torch.float64)
    table = torch.stack(
        [
            winners(
                torch.cat((1 - w, w * weight)), torch.cat((torch.ones(1, dtype=torch.long), many))
            )
            for w in nodes.split(1)
        ]
    )  # (40, 1 + G)
    masked, drawn, middle = 1.0, torch.zeros_like(weight), 1.0
    for i, w in enumerate(moves):
        j = int(torch.searchsorted(nodes, w).clamp(1, len(nodes) - 1))
        share = float((w / nodes[j - 1]).log() / (nodes[j] / nodes[j - 1]).log())
        row = (1 - share) * table[j - 1] + share * table[j]
        drawn += masked * row[1:]
        masked *= float(row[0])
        if i + 1 == steps // 2:
            middle = masked
    return drawn / drawn.sum(), middle


def drawn_moves(w: float, size: int) -> tuple[float, float]:
    """The share of draws in which the equal ones win, and its standard error."""
    row = torch.full((size + 1,), w / size)
    row[0] = 1 - w
    rounds, generator = max(20, round(1 / w)), seeded(2)  # of 50 draws
    moved = sum(
        int((gumbel_argmax(row.expand(50, -1), generator) > 0).sum()) for _ in range(rounds)
    )
    return moved / (50 * rounds), moved**0.5 / (50 * rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("toy")
    first = commands.add_parser("normalisation")
    first.add_argument("--model", required=True)
    first.add_argument("--batch-size", type=int, default=256)
    first.add_argument("--steps", type=int, default=64, help="denoising steps (%(default)s)")
    second = commands.add_parser("gumbel")
    second.add_argument("--vocab-size", type=int, default=50_257)
    second.add_argument("--steps", type=int, nargs="+", default=[64, 256, 1024, 4096])
    chosen = parser.parse_args()
    if chosen.command == "toy":
        toy()
    elif chosen.command == "normalisation":
        normalisation(chosen.model, chosen.batch_size, chosen.steps)
    else:
        gumbel(chosen.vocab_size, chosen.steps)


if __name__ == "__main__":
    main()
