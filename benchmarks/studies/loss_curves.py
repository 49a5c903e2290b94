"""Loss curves of training through the fused head and through log scores, from the same seeds.

    python -m benchmarks.studies.loss_curves                # on text that every Python has
    python -m benchmarks.studies.loss_curves --data book.txt --json c.json --plot c.png
    python -m benchmarks.studies.loss_curves model.hidden_size=64 training.batch_size=8
    python -m benchmarks.studies.loss_curves objective.type=masked_cross_entropy

The preset "tiny" is trained for 200 steps of the trainer (``sedd_fast.training.step``), four times
from the same weights on the same batches:

    dense      the network returns log scores, and the loss is computed from them
    fused      the network receives x_0 and returns the loss itself, which needs no scores
    rounding   dense, from weights that are changed by one unit in their last place
    seed       dense, with other times and other noise

Fused and dense are the same function, so the difference of their curves must be rounding, which
training amplifies: "rounding" shows by how much. "seed" shows how far curves vary by chance. The
objective is score entropy unless a setting names masked cross entropy or d3pm.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.command import (
    make_parser,
    output_file,
    positive_int,
    some_of,
    write_json,
)
from benchmarks.harness.environment import provenance
from sedd_fast.data.corpus import Corpus, load_corpus
from sedd_fast.training.api import make_accelerator
from sedd_fast.training.config import load_config
from sedd_fast.training.settings import TrainConfig
from sedd_fast.training.step import Learner, rate_factor

#: What the preset does not say: score entropy has a fused head that takes one pass.
_SETTINGS = (
    "objective.type=score_entropy", "optim.type=adamw", "optim.lr=1.5e-3", "optim.beta2=0.999",
    "data.tokenizer=characters", "training.ema=0.999",
)  # fmt: skip
#: The objectives with a fused head, and the networks that they train.
FUSED = {"score_entropy": "sedd", "masked_cross_entropy": "posterior", "d3pm": "posterior"}
VARIANTS = ("dense", "fused", "rounding", "seed")
PRECISIONS = {"fp32": "no", "bf16": "bf16"}


@dataclass(frozen=True)
class TrainingRun:
    """The results of one training run.

    Attributes:
        losses: nats per token of each step.
        held_out: nats per token of the held-out text, at times and noise that all runs share.
        start, end: all weights as one float64 vector, before and after training.
    """

    losses: Tensor  # (steps,) float64
    held_out: float
    start: Tensor
    end: Tensor

    def differences(self, other: "TrainingRun") -> dict[str, float]:
        """Relative differences from ``other``.

        The difference of the weights is relative to the distance that training has moved them.
        """
        apart = (self.losses - other.losses).abs() / other.losses.abs()
        return {
            "mean_loss": float(apart.mean()),
            "max_loss": float(apart.max()),
            "held_out": abs(self.held_out - other.held_out) / abs(other.held_out),
            "weights": float((self.end - other.end).norm() / (other.end - other.start).norm()),
        }


def run(
    config: TrainConfig, corpus: Corpus, batches: Sequence[Tensor], variant: str
) -> TrainingRun:
    """Train one variant on the batches."""
    learner = Learner(config, corpus.tokenizer.vocab_size, make_accelerator(config))
    network, start = learner.model, flat(learner)
    if variant != "fused":  # a function that is not the network itself returns log scores
        learner.model = lambda x_t, sigma: network(x_t, sigma)
    if variant == "rounding":
        move_by_rounding(learner)
    if variant == "seed":
        other = replace(config.training, seed=config.training.seed + 1)
        learner.config = replace(config, training=other)
    losses = []
    for step, batch in enumerate(batches, start=1):
        losses.append(learner.accumulate(batch, step).double())
        learner.clip_gradients()
        learner.apply(rate_factor(config.optim, step, step / len(batches)))
    learner.plain.eval()
    found = learner.held_out_losses(corpus.held_out)
    per_token = torch.stack(losses).cpu()
    return TrainingRun(per_token, float(found.double().mean()), start, flat(learner))


def flat(learner: Learner) -> Tensor:
    """All weights as one vector."""
    return torch.cat([p.detach().double().cpu().flatten() for p in learner.plain.parameters()])


@torch.no_grad()
def move_by_rounding(learner: Learner) -> None:
    """Replace every weight by the next larger number of its dtype."""
    for p in learner.plain.parameters():
        p.copy_(torch.nextafter(p, torch.full_like(p, torch.inf)))


def measure(overrides: Sequence[str], steps: int, dtypes: Sequence[str]) -> dict[str, Any]:
    """Every variant in every precision, and its differences from the dense one."""
    config = load_config("tiny", overrides=[f"training.n_iters={steps}", *_SETTINGS, *overrides])
    if FUSED.get(config.objective_type) != config.network_kind:
        raise ValueError(
            f"objective.type={config.objective_type} of model.kind={config.network_kind} has no "
            f"fused head to compare; use objective.type={' or '.join(FUSED)}, without model.kind"
        )
    corpus = load_corpus(config.data, config.model.length, config.training.seed)
    if corpus.held_out is None:
        raise ValueError("data.held_out is 0, but the runs are compared on held-out text; raise it")
    batches = [corpus.train.take(config.training.batch_size, 0, 1) for _ in range(steps)]
    results: dict[str, Any] = {"environment": environment(config), "runs": {}}
    for dtype in dtypes:
        mixed = replace(config.training, mixed_precision=PRECISIONS[dtype])
        runs = {}
        for variant in VARIANTS:
            started = time.monotonic()
            runs[variant] = run(replace(config, training=mixed), corpus, batches, variant)
            print(f"  {dtype} {variant}: {time.monotonic() - started:.1f} s", file=sys.stderr)
        results["runs"][dtype] = {name: record(r, runs["dense"]) for name, r in runs.items()}
    return results


def record(run: TrainingRun, dense: TrainingRun) -> dict[str, Any]:
    """A run as a JSON record."""
    apart = run.differences(dense)
    return {"losses": run.losses.tolist(), "held_out": run.held_out, "from_dense": apart}


def environment(config: TrainConfig) -> dict[str, Any]:
    """The machine, the versions and the settings of the runs."""
    device = make_accelerator(config).device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    about = {"gpu": gpu, "objective": config.objective_type, "settings": asdict(config)}
    return {**provenance(), **about}


def objective_of(results: dict[str, Any]) -> str:
    """The objective in words."""
    return results["environment"]["objective"].replace("_", " ")


def show(results: dict[str, Any]) -> None:
    """Print the differences from the dense run as a table."""
    settings = results["environment"]["settings"]
    text, batch = settings["data"]["train"], settings["training"]["batch_size"]
    print(
        f"\n{settings['training']['n_iters']} steps of {batch} x {settings['model']['length']} "
        f"tokens of {text}, {objective_of(results)}; differences from the dense run"
    )
    print(f"{'':16}{'loss of a step, relative':^27}{'held out':^20}{'weights,':>12}")
    print(f"{'':16}{'mean':>12}{'largest':>12}{'nats/token':>15}{'relative':>11}{'of moved':>10}")
    for dtype, runs in results["runs"].items():
        for name, found in runs.items():
            a = found["from_dense"]
            apart = [f"{a[key]:.1e}" for key in ("mean_loss", "max_loss", "held_out", "weights")]
            mean, largest, held, weights = apart if name != "dense" else [""] * 4
            print(
                f" {dtype} {name:10}{mean:>12}{largest:>12}{found['held_out']:>15.5f}"
                f"{held:>11}{weights:>10}"
            )


def plot(results: dict[str, Any], path: Path) -> None:
    """Write a chart: curves and differences from the dense run, a row for each precision."""
    from matplotlib import pyplot as plt

    from benchmarks.harness.style import COLOURS, OURS, machine, save, tidy

    kinds = {"dense": "eager", "rounding": "compile", "seed": "yardstick"}
    colours = {"fused": OURS[0]} | {name: COLOURS[kind] for name, kind in kinds.items()}
    dtypes = list(results["runs"])
    size = (10, 3.2 * len(dtypes) + 0.6)
    figure, axes = plt.subplots(len(dtypes), 2, figsize=size, sharex=True, squeeze=False)
    for (left, right), dtype in zip(axes, dtypes, strict=True):
        runs = results["runs"][dtype]
        dense = torch.tensor(runs["dense"]["losses"])
        steps = range(1, len(dense) + 1)
        left.plot(steps, dense, color=colours["dense"], linewidth=4, label="dense")
        for name in ("fused", "seed"):
            line = {"color": colours[name], "linewidth": 1, "label": name}
            left.plot(steps, runs[name]["losses"], **line)
        for name in ("seed", "rounding", "fused"):
            apart = (torch.tensor(runs[name]["losses"]) - dense).abs() / dense.abs()
            right.plot(steps, apart, ".", markersize=3, color=colours[name], label=name)
        right.set_yscale("log")
        left.set_ylabel(f"{dtype}: nats per token")
        right.set_ylabel("relative difference from dense")
        for axis in (left, right):
            axis.legend(frameon=False, fontsize=9)
            tidy(axis)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    title = f"Training through the fused head, {objective_of(results)}"
    save(figure, path, f"{title}; {machine(results)}")
    plt.close(figure)


def options(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    p = make_parser(__doc__)
    p.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="settings, as sedd-fast train takes them"
    )
    p.add_argument(
        "--data", metavar="TEXT", help="training text, short for data.train=TEXT (default: pydoc)"
    )
    p.add_argument(
        "--steps", type=positive_int, default=200, help="training steps of each run (%(default)s)"
    )
    p.add_argument(
        "--dtype",
        type=some_of(*PRECISIONS),
        default=tuple(PRECISIONS),
        help="fp32, bf16 (autocast) or both: fp32,bf16 (default: both)",
    )
    p.add_argument("--json", metavar="FILE", type=output_file, help="write every loss")
    p.add_argument("--plot", metavar="FILE", type=output_file, help="write a chart (PNG)")
    return p.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the command; its exit status."""
    args = options(argv)
    data = [f"data.train={json.dumps(args.data)}"] if args.data else []
    try:
        results = measure([*data, *args.settings], args.steps, args.dtype)
    except ValueError as error:
        print(f"loss_curves: {error}", file=sys.stderr)
        return 2
    show(results)
    if args.json:
        write_json(args.json, results)
    if args.plot:
        plot(results, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
