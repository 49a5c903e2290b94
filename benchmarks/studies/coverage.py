"""Do the standard errors of the likelihood bounds cover? Share of +- 1.96 errors that hold.

    python -m benchmarks.studies.coverage                        # some minutes on one core
    python -m benchmarks.studies.coverage --samples 32 --seeds 50 --steps 100

Every estimator is repeated with as many seeds, on four sequences of 32 tokens:

    toy        scores of independent tokens, which never read the noised text
    trained    a small SEDD after some seconds of training on a Markov chain

The value that is to be covered is the mean over all seeds. The study prints the standard deviation
over seeds and the mean reported error, in nats a sequence, and the coverage of a sequence's error
and of that of the four together. A right 95 % interval has a coverage of 95 %, give or take 1.5 %
over 200 seeds ("all four"; the sequences of a seed give four times as many).
"""

import sys
from typing import Any

import torch

import sedd_fast as sf
from benchmarks.harness.command import (
    make_parser,
    output_file,
    positive_int,
    positive_ints,
    write_json,
)
from benchmarks.harness.environment import provenance
from benchmarks.studies.score_scale import STATES, Chain, train
from sedd_fast.evaluate import TIMES, LikelihoodBound, join
from sedd_fast.process.graphs import make_graph

SEQUENCES, LENGTH = 4, 32
NOISES = {"log-linear": sf.LogLinearNoise(), "geometric": sf.GeometricNoise(1e-4, 20.0)}
MODES = {"absorbing": ("exact", "normalised", "paper"), "uniform": ("exact", "paper")}
_REPEATS = 25  # seeds in a call


def networks(kind: str, noise: sf.Noise, steps: int) -> dict[str, Any]:
    """The two score models of a graph."""
    graph = make_graph(kind, STATES)
    chain = Chain(torch.Generator().manual_seed(0))
    prior = chain.stationary.float().log()
    toy = sf.PosteriorModel(lambda x: prior.expand(*x.shape, STATES), graph, takes_sigma=False)
    torch.manual_seed(0)
    config = sf.SEDDConfig(
        STATES, graph=graph.kind, scale_by_sigma=kind == "absorbing", hidden_size=32, n_blocks=1,
        n_heads=2, length=LENGTH, cond_dim=16, dropout=0.0,
    )  # fmt: skip
    trained = sf.SEDD(config)
    train(trained, sf.ScoreEntropyLoss(graph, noise, reduction="mean"), chain, steps)
    return {"toy": toy, "trained": trained.eval()}


def measure(model: Any, setting: dict[str, Any], seeds: int) -> dict[str, float]:
    """Deviation, reported error and coverage of one estimator."""
    x_0 = Chain(torch.Generator().manual_seed(1)).draw(SEQUENCES)[:, :LENGTH]
    repeats = [min(_REPEATS, seeds - start) for start in range(0, seeds, _REPEATS)]
    generator = torch.Generator().manual_seed(2)
    bound = join(
        [
            sf.likelihood_bound(
                model, x_0.repeat(many, 1), generator=generator, batch_size=256, **setting
            )
            for many in repeats
        ]
    )
    nats, stderr = bound.nats.view(seeds, -1), bound.stderr.view(seeds, -1)  # (seeds, SEQUENCES)
    assert bound.degrees is not None
    degrees = bound.degrees.view(seeds, -1)
    whole = torch.tensor(
        [
            LikelihoodBound(
                nats[i], stderr[i], LENGTH, bound.mode, bound.samples, bound.strict,
                degrees=degrees[i],
            ).total_stderr
            for i in range(seeds)
        ],
        dtype=torch.float64,
    )  # fmt: skip
    off = (nats - nats.mean(0)).abs()
    off_whole = (nats.sum(1) - nats.sum(1).mean()).abs()
    return {
        "nats": float(nats.mean()),
        "deviation": float(nats.std(0).mean()),
        "reported": float(stderr.mean()),
        "one": float((off <= 1.96 * stderr).double().mean()),
        "all": float((off_whole <= 1.96 * whole).double().mean()),
    }


def main() -> int:
    """Run the command; its exit status."""
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=positive_int, default=200, help="(%(default)s)")
    parser.add_argument(
        "--samples", type=positive_ints, default=(8, 32, 256), metavar="N,N,...",
        help="samples a sequence (8,32,256)",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=positive_int, default=400, help="training steps (%(default)s)"
    )
    parser.add_argument("--json", metavar="FILE", type=output_file, help="write the figures")
    args = parser.parse_args()
    print(f"{args.seeds} seeds, {SEQUENCES} sequences of {LENGTH} tokens, {STATES} states\n")
    titles = "".join(f"{word:>10}" for word in ("nats", "deviation", "reported", "one", "all four"))
    print(f"{'':55}{'samples':>8}{titles}")
    rows = []
    for kind, modes in MODES.items():
        for schedule, noise in NOISES.items():
            for name, model in networks(kind, noise, args.steps).items():
                for mode, times in ((m, t) for m in modes for t in TIMES):
                    for samples in args.samples:
                        setting = {
                            "graph": make_graph(kind, STATES), "noise": noise, "mode": mode,
                            "times": times, "samples": samples,
                        }  # fmt: skip
                        row = measure(model, setting, args.seeds)
                        label = f"{kind}, {schedule}, {name}, {mode}, {times}"
                        print(
                            f"{label:55}{samples:8}{row['nats']:10.1f}{row['deviation']:10.2f}"
                            f"{row['reported']:10.2f}{row['one']:10.1%}{row['all']:10.1%}",
                            flush=True,
                        )
                        rows.append({"estimator": label, "samples": samples, **row})
    if args.json:
        write_json(args.json, {"environment": provenance(), "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
