"""Peak memory of a likelihood bound: from SEDD, whose fused head makes no scores, and from scores.

    python -m benchmarks.studies.evaluation                  # 4 x 128 tokens of 50,257, width 64
    python -m benchmarks.studies.evaluation --batch-size 16 --length 1024 --width 768

"from scores" is the same network as a plain callable that returns log scores. The study prints the
memory beyond what was allocated before the call. On a CPU this is the high-water mark of resident
pages, accurate to about 1 MB, with an allocator that returns every large block at once. That costs
time, so no times are shown.
"""

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import sedd_fast as sf
from benchmarks.harness.command import make_parser, output_file, positive_int, write_json
from benchmarks.harness.environment import provenance
from benchmarks.harness.measuring import REGIMES, make_meter
from sedd_fast.evaluate import LikelihoodBound

CASES = (
    ("absorbing", "exact"),
    ("absorbing", "paper"),
    ("absorbing", "normalised"),
    ("uniform", "exact"),
    ("uniform", "paper"),
)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The peak memory and the relative difference of the bounds, for each graph and mode."""
    device = torch.device(args.device)
    meter = make_meter(device)
    rows = []
    for graph, mode in CASES:
        config = sf.SEDDConfig(
            args.vocab, graph=graph, scale_by_sigma=graph == "absorbing", hidden_size=args.width,
            n_blocks=2, n_heads=args.width // 64 or 1, length=args.length,
        )  # fmt: skip
        torch.manual_seed(0)
        model = sf.SEDD(config).to(device).eval()
        x_0 = torch.randint(args.vocab, (args.batch_size, args.length), device=device)
        bound = bounds(model, x_0, mode, args.batch_size)
        found = {name: call() for name, call in bound.items()}  # also warms up
        apart = (found["fused"].nats / found["scores"].nats - 1).abs().max()
        peaks = {name: meter.peak_extra(call) for name, call in bound.items()}
        rows.append({"graph": graph, "mode": mode, **peaks, "apart": float(apart)})
    return rows


def bounds(
    model: sf.SEDD, x_0: Tensor, mode: str, batch: int
) -> dict[str, Callable[[], LikelihoodBound]]:
    """The bound of one batch from the network itself, and from its log scores; the same noise."""

    def call(network: Callable[..., Tensor]) -> LikelihoodBound:
        generator = torch.Generator(x_0.device).manual_seed(1)
        graph, noise = model.graph, model.noise
        return sf.likelihood_bound(network, x_0, graph, noise, 8, mode, generator, batch)

    return {
        "fused": lambda: call(model),
        "scores": lambda: call(lambda x_t, sigma: model(x_t, sigma)),
    }


def main() -> int:
    """Run the command; its exit status."""
    parser = make_parser(__doc__)
    for name, value, meaning in (
        ("batch-size", 4, "sequences at a time"),
        ("length", 128, "tokens of a sequence"),
        ("vocab", 50257, "size of the vocabulary"),
        ("width", 64, "hidden size of the network"),
    ):
        parser.add_argument(
            f"--{name}", type=positive_int, default=value, help=f"{meaning} (%(default)s)"
        )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(%(default)s)")
    parser.add_argument("--json", metavar="FILE", type=output_file, help="write the figures")
    args = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in REGIMES["memory"].items()):
        # glibc reads these variables when a process starts: start it again.
        command = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, command, os.environ | REGIMES["memory"])
    rows = measure(args)
    scores = 4 * args.batch_size * args.length * (args.vocab + 1) / 1e6
    print(
        f"{args.batch_size} x {args.length} tokens of {args.vocab:,}, width {args.width}, fp32, "
        f"{args.device}; their log scores: {scores:.0f} MB"
    )
    print(f"{'':24}{'fused head, MB':>15}{'from scores, MB':>17}{'nats apart':>12}")
    for row in rows:
        peaks = [
            "unknown" if row[name] is None else f"{row[name] / 1e6:.1f}"
            for name in ("fused", "scores")
        ]
        name = f"{row['graph']}, {row['mode']}"
        print(f" {name:23}{peaks[0]:>15}{peaks[1]:>17}{row['apart']:>12.0e}")
    if args.json:
        write_json(args.json, {"environment": provenance(), "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
