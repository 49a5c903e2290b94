"""Peak memory of a likelihood bound: from SEDD, whose fused head makes no scores, and from scores.

    python benchmarks/evaluation.py                          # 4 x 128 tokens of 50,257, width 64
    python benchmarks/evaluation.py --batch 16 --length 1024 --width 768 --json memory.json

"from scores" is the same network as any callable that gives log scores. Bytes beyond what was there
before the call; on a CPU the high-water mark of resident pages, right to about 1 MB, with an
allocator that gives every large block back (which costs time, so none is shown).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sedd_fast as sf
from benchmarks.harness.measuring import REGIMES, make_meter
from benchmarks.harness.worker import provenance
from sedd_fast.evaluate import LikelihoodBound

CASES = (
    ("absorbing", "exact"),
    ("absorbing", "paper"),
    ("absorbing", "normalised"),
    ("uniform", "exact"),
    ("uniform", "paper"),
)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each graph and mode."""
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
        x_0 = torch.randint(args.vocab, (args.batch, args.length), device=device)
        bound = bounds(model, x_0, mode, args.batch)
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in (("batch", 4), ("length", 128), ("vocab", 50257), ("width", 64)):
        parser.add_argument(f"--{name}", type=int, default=value, help="(%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in REGIMES["memory"].items()):
        # glibc reads these when a process starts.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | REGIMES["memory"])
    rows = measure(args)
    scores = 4 * args.batch * args.length * (args.vocab + 1) / 1e6
    print(
        f"{args.batch} x {args.length} tokens of {args.vocab:,}, width {args.width}, fp32, "
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
        about = provenance("evaluation.py")
        args.json.write_text(json.dumps({"environment": about, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
