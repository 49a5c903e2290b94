"""The scale of scores, which a cross entropy does not determine: Z = E * (sum of a row's scores).

    python -m benchmarks.studies.score_scale
    python -m benchmarks.studies.score_scale --steps 2000 --json scale.json

Three networks of one size are trained from one seed on one text (a Markov chain of known entropy):

    SEDD, score entropy            every score is trained; Z is near 1
    SEDD, cross entropy            only s / sum(s) is trained; Z drifts
    PosteriorSEDD, cross entropy   Z = 1 by construction

The bound "exact" and every sampler but `hit` read the scores themselves, "normalised" reads only
s / sum(s).
"""

import sys
import time
from typing import Any

import torch
from torch import Tensor

import sedd_fast as sf
from benchmarks.harness.command import make_parser, output_file, positive_int, write_json
from benchmarks.harness.environment import provenance

STATES, LENGTH, BATCH = 15, 64, 32


class Chain:
    """A stationary Markov chain over the states, and its bits per token."""

    def __init__(self, generator: torch.Generator) -> None:
        logits = 2 * torch.randn(STATES, STATES, generator=generator, dtype=torch.float64)
        self.transitions = logits.softmax(-1)
        self.generator = generator
        self.stationary = torch.matrix_power(self.transitions, 1024)[0]
        own = -(self.transitions * self.transitions.log2()).sum(-1)
        first = -(self.stationary * self.stationary.log2()).sum()
        self.bits = float((first + (LENGTH - 1) * (self.stationary @ own)) / LENGTH)

    def draw(self, rows: int) -> Tensor:
        """(rows, LENGTH) int64."""
        tokens = torch.multinomial(self.stationary, rows, True, generator=self.generator)[:, None]
        for _ in range(LENGTH - 1):
            following = self.transitions[tokens[:, -1]]
            following = torch.multinomial(following, 1, generator=self.generator)
            tokens = torch.cat([tokens, following], 1)
        return tokens


def train(model: sf.SEDD, objective: sf.losses.Objective, chain: Chain, steps: int) -> None:
    """Train with AdamW at a learning rate of 1e-3 on new sequences in every step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        objective(model, chain.draw(BATCH), generator=chain.generator).backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def scales(model: sf.SEDD, chain: Chain, rows: int) -> Tensor:
    """Z of every masked position of ``rows`` sequences, at times evenly spread over (0, 1)."""
    graph, noise = model.graph, model.noise
    model.eval()
    sigma, _ = noise((torch.arange(rows) + 0.5) / rows)
    x_t = sf.sample_transition(chain.draw(rows), sigma, graph, generator=chain.generator)
    score = model(x_t, sigma)[..., :STATES].double().exp()
    z = score.sum(-1) * torch.expm1(sigma.double())[:, None]
    return z[x_t == graph.mask_index]


def bound(model: sf.SEDD, text: Tensor, mode: str, seed: int) -> float:
    """Bits per token, at the same noise in every mode."""
    generator = torch.Generator().manual_seed(seed)
    found = sf.likelihood_bound(model, text, model.graph, model.noise, 64, mode, generator)
    return found.bits_per_token


def measure(steps: int, sequences: int, seed: int) -> dict[str, Any]:
    """Train every pair of a network and an objective, and measure Z and the bounds."""
    config = sf.SEDDConfig(
        STATES, hidden_size=64, cond_dim=32, n_blocks=2, n_heads=4, length=LENGTH
    )
    found: dict[str, Any] = {}
    for name, kind, objective in (
        ("SEDD, score entropy", sf.SEDD, sf.ScoreEntropyLoss),
        ("SEDD, cross entropy", sf.SEDD, sf.MaskedCrossEntropy),
        ("PosteriorSEDD, cross entropy", sf.PosteriorSEDD, sf.MaskedCrossEntropy),
    ):
        torch.manual_seed(seed)
        chain = Chain(torch.Generator().manual_seed(seed))
        model = kind(config)
        started = time.monotonic()
        train(model, objective(model.graph, model.noise, "mean"), chain, steps)
        print(f"  {name}: {time.monotonic() - started:.1f} s", file=sys.stderr)
        z, text = scales(model, chain, 4 * sequences), chain.draw(sequences)
        bounds = {mode: bound(model, text, mode, seed) for mode in ("exact", "normalised")}
        quantiles = {"least": z.min(), "median": z.median(), "largest": z.max()}
        found[name] = {key: float(value) for key, value in quantiles.items()} | bounds
    about = {"environment": provenance(), "steps": steps, "text_bits": chain.bits}
    return {**about, "found": found}


def main() -> int:
    """Run the command; its exit status."""
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, default=600, help="training steps (%(default)s)")
    parser.add_argument(
        "--sequences",
        type=positive_int,
        default=64,
        help="sequences whose bound is computed (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
    parser.add_argument("--json", metavar="FILE", type=output_file, help="write the figures")
    args = parser.parse_args()
    if args.steps < 0:
        parser.error(f"--steps: expected 0 or more, got {args.steps}")
    results = measure(args.steps, args.sequences, args.seed)
    print(f"\n{'':31}{'Z: least':>10}{'median':>10}{'largest':>10}  bits/token: exact  normalised")
    for name, row in results["found"].items():
        z = "".join(f"{row[key]:10.3g}" for key in ("least", "median", "largest"))
        print(f" {name:30}{z}{row['exact']:19.4g}{row['normalised']:12.4g}")
    print(f" {'the text itself':60}{results['text_bits']:31.4g}")
    if args.json:
        write_json(args.json, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
