"""What a cross entropy leaves free: Z = E * (sum of a row's scores) after the same training.

    python benchmarks/score_scale.py
    python benchmarks/score_scale.py --steps 2000 --json scale.json

Three networks of one size, from one seed on one text (a Markov chain whose entropy is known):

    SEDD, score entropy            every score is trained; Z is near 1
    SEDD, cross entropy            only s / sum(s) is trained; Z drifts
    PosteriorSEDD, cross entropy   Z = 1 by construction

"exact" and every sampler but `hit` read the scores themselves, "normalised" s / sum(s) alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sedd_fast as sf
from benchmarks.harness.worker import provenance
from sedd_fast.models.config import SEDDConfig
from sedd_fast.models.sedd import SEDD

STATES, LENGTH, BATCH = 15, 64, 32


class Chain:
    """A stationary Markov chain over the states, and the bits per token of its texts."""

    def __init__(self, generator: torch.Generator) -> None:
        logits = 2 * torch.randn(STATES, STATES, generator=generator, dtype=torch.float64)
        self.transitions = logits.softmax(-1)
        self.generator = generator
        self.law = torch.matrix_power(self.transitions, 1024)[0]
        own = -(self.transitions * self.transitions.log2()).sum(-1)
        first = -(self.law * self.law.log2()).sum()
        self.bits = float((first + (LENGTH - 1) * (self.law @ own)) / LENGTH)

    def draw(self, rows: int) -> Tensor:
        """(rows, LENGTH) int64."""
        tokens = torch.multinomial(self.law, rows, True, generator=self.generator)[:, None]
        for _ in range(LENGTH - 1):
            law = self.transitions[tokens[:, -1]]
            following = torch.multinomial(law, 1, generator=self.generator)
            tokens = torch.cat([tokens, following], 1)
        return tokens


def train(model: SEDD, objective: sf.losses.Objective, chain: Chain, steps: int) -> None:
    """AdamW at 1e-3 on fresh text."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        objective(model, chain.draw(BATCH), generator=chain.generator).backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def scales(model: SEDD, chain: Chain, rows: int) -> Tensor:
    """Z of every masked position of so many texts, t spread evenly over (0, 1)."""
    graph, noise = model.graph, model.noise
    model.eval()
    sigma, _ = noise((torch.arange(rows) + 0.5) / rows)
    x_t = sf.sample_transition(chain.draw(rows), sigma, graph, generator=chain.generator)
    score = model(x_t, sigma)[..., :STATES].double().exp()
    z = score.sum(-1) * torch.expm1(sigma.double())[:, None]
    return z[x_t == graph.mask_index]


def bound(model: SEDD, text: Tensor, mode: str, seed: int) -> float:
    """Bits per token, the noise the same in every mode."""
    generator = torch.Generator().manual_seed(seed)
    found = sf.likelihood_bound(model, text, model.graph, model.noise, 64, mode, generator)
    return found.bits_per_token


def measure(steps: int, texts: int, seed: int) -> dict[str, Any]:
    """Every pair of a network and an objective, trained and looked at."""
    config = SEDDConfig(STATES, hidden_size=64, cond_dim=32, n_blocks=2, n_heads=4, length=LENGTH)
    found: dict[str, Any] = {}
    for name, kind, objective in (
        ("SEDD, score entropy", SEDD, sf.ScoreEntropyLoss),
        ("SEDD, cross entropy", SEDD, sf.MaskedCrossEntropy),
        ("PosteriorSEDD, cross entropy", sf.PosteriorSEDD, sf.MaskedCrossEntropy),
    ):
        torch.manual_seed(seed)
        chain = Chain(torch.Generator().manual_seed(seed))
        model = kind(config)
        started = time.monotonic()
        train(model, objective(model.graph, model.noise, "mean"), chain, steps)
        print(f"  {name}: {time.monotonic() - started:.1f} s", file=sys.stderr)
        z, text = scales(model, chain, 4 * texts), chain.draw(texts)
        bounds = {mode: bound(model, text, mode, seed) for mode in ("exact", "normalised")}
        quantiles = {"least": z.min(), "median": z.median(), "largest": z.max()}
        found[name] = {key: float(value) for key, value in quantiles.items()} | bounds
    about = provenance("score_scale.py")
    return {"environment": about, "steps": steps, "text_bits": chain.bits, "found": found}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=600, help="of training (%(default)s)")
    parser.add_argument("--texts", type=int, default=64, help="of a bound (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    for name, least in (("steps", 0), ("texts", 1)):
        if (value := getattr(args, name)) < least:
            parser.error(f"--{name}: expected {least} or more, got {value}")
    results = measure(args.steps, args.texts, args.seed)
    print(f"\n{'':31}{'Z: least':>10}{'median':>10}{'largest':>10}  bits/token: exact  normalised")
    for name, row in results["found"].items():
        z = "".join(f"{row[key]:10.3g}" for key in ("least", "median", "largest"))
        print(f" {name:30}{z}{row['exact']:19.4g}{row['normalised']:12.4g}")
    print(f" {'the text itself':60}{results['text_bits']:31.4g}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
