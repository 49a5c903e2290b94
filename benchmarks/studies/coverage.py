"""Do the standard errors of the likelihood bounds cover? Share of +- 1.96 errors that hold.

    python -m benchmarks.studies.coverage                        # some minutes on one core
    python -m benchmarks.studies.coverage --samples 32 --seeds 50 --steps 100

Every estimator is repeated with as many seeds, on four sequences of 32 tokens:

    toy        scores of independent tokens, which never read the noised text
    trained    a small SEDD after some seconds of training on a Markov chain

"held-out loss" is the estimate that training prints, on as many new sequences as there are samples,
and "generative perplexity" the exponential of the mean of as many samples of the chain under a
judge that knows its single tokens; one error each.

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
from sedd_fast.evaluate.draws import variance_of_mean
from sedd_fast.evaluate.generative import GenerativePerplexity
from sedd_fast.evaluate.standard_error import covering_error
from sedd_fast.losses.objective import stratified_times
from sedd_fast.process.graphs import make_graph

SEQUENCES, LENGTH = 4, 32
NOISES = {"log-linear": sf.LogLinearNoise(), "geometric": sf.GeometricNoise(1e-4, 20.0)}
MODES = {"absorbing": ("exact", "normalised", "paper"), "uniform": ("exact", "paper")}
_REPEATS = 25  # seeds in a call

Row = dict[str, float]


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


def measure(model: Any, setting: dict[str, Any], seeds: int) -> Row:
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


def held_out(model: Any, graph: sf.Graph, noise: sf.Noise, n: int, seeds: int) -> Row:
    """The training loss of n sequences, with the error that training prints."""
    objective = sf.ScoreEntropyLoss(graph, noise)
    chain, generator = Chain(torch.Generator().manual_seed(3)), torch.Generator().manual_seed(4)
    means, errors = [], []
    for _ in range(seeds):
        t = stratified_times(n, 1e-3, "cpu", generator)
        with torch.no_grad():
            losses = objective(model, chain.draw(n)[:, :LENGTH], t=t, generator=generator).double()
        error = covering_error(*variance_of_mean(losses[t.argsort()][None]))
        means.append(float(losses.mean()))
        errors.append(float(error))
    return covered(means, errors)


def judged(n: int, seeds: int) -> Row:
    """The generative perplexity of n samples."""
    chain = Chain(torch.Generator().manual_seed(5))
    tokens = torch.full((n,), LENGTH)
    found = []
    for _ in range(seeds):
        nats = -chain.stationary.log()[chain.draw(n)[:, :LENGTH]].sum(1)
        found.append(GenerativePerplexity(nats, tokens, 0.0, {}, "model"))
    return covered(
        [one.exponential_of_mean for one in found],
        [one.exponential_of_mean_stderr for one in found],
    )


def covered(values: list[float], errors: list[float]) -> Row:
    """Deviation, reported error and coverage of estimates (seeds) with their errors."""
    value, error = torch.tensor(values).double(), torch.tensor(errors).double()
    share = float(((value - value.mean()).abs() <= 1.96 * error).double().mean())
    return {
        "nats": float(value.mean()), "deviation": float(value.std()),
        "reported": float(error.mean()), "one": share, "all": share,
    }  # fmt: skip


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

    def show(label: str, samples: int, row: Row) -> None:
        figures = f"{row['nats']:10.1f}{row['deviation']:10.2f}{row['reported']:10.2f}"
        shares = f"{row['one']:10.1%}{row['all']:10.1%}"
        print(f"{label:55}{samples:8}{figures}{shares}", flush=True)
        rows.append({"estimator": label, "samples": samples, **row})

    for kind, schedule in ((k, s) for k in MODES for s in NOISES):
        graph, noise = make_graph(kind, STATES), NOISES[schedule]
        for name, model in networks(kind, noise, args.steps).items():
            label = f"{kind}, {schedule}, {name}"
            for samples in args.samples:
                for mode, times in ((m, t) for m in MODES[kind] for t in TIMES):
                    if times == "balanced" and (kind == "uniform" or mode == "paper"):
                        continue  # as "stratified"
                    setting = {
                        "graph": graph, "noise": noise, "mode": mode, "times": times,
                        "samples": samples,
                    }  # fmt: skip
                    row = measure(model, setting, args.seeds)
                    show(f"{label}, {mode}, {times}", samples, row)
                row = held_out(model, graph, noise, samples, args.seeds)
                show(f"{label}, held-out loss", samples, row)
    for samples in args.samples:
        show("generative perplexity", samples, judged(samples, args.seeds))
    if args.json:
        write_json(args.json, {"environment": provenance(), "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
