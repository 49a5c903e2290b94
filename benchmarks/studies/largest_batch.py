"""The largest batch of SEDD-small that trains in a GPU's memory: fused head against dense scores.

    python benchmarks/largest_batch.py                      # on the GPU, bf16, 1,024 tokens
    python benchmarks/largest_batch.py --backend tiled --json batches.json
    python benchmarks/largest_batch.py --device cpu --quick # does it run?

A training step (noise, network under autocast, loss, backward, AdamW) runs twice at every batch
that is tried; batches double until memory runs out and are then halved in between. Of the GPU's
memory torch is given SHARE: what kernels and libraries load late must find room beside it.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import sedd_fast as sf
from benchmarks.harness.config import DTYPES
from benchmarks.suites.end_to_end import Training
from sedd_fast.backends import registry
from sedd_fast.models.config import SEDDConfig
from sedd_fast.models.sedd import SEDD

Step = Callable[[Training], None]
SHARE = 0.95


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest batch up to ``most`` that fits; 0 where none does.

    ``fits`` is true up to some batch and false beyond.
    """
    good, bad = 0, 1
    while bad <= most and fits(bad):
        good, bad = bad, 2 * bad
    bad = min(bad, most + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def fused(run: Training) -> None:
    """The loss in the network's head: no scores."""
    run.fused()


def dense(run: Training) -> None:
    """Scores from the network, then our loss."""
    graph, x_0 = run.model.graph, run.x_0

    def noised(x: Tensor, sigma: Tensor) -> Tensor:
        return sf.sample_transition(x, sigma, graph)

    def loss(log_score: Tensor, sigma: Tensor, x_t: Tensor, weight: Tensor) -> Tensor:
        return sf.score_entropy(log_score, sigma, x_t, x_0, graph, weight, "sum")

    run.by_autograd(noised, loss)


def fitting(model: SEDD, length: int, dtype: str, step: Step) -> Callable[[int], bool]:
    """Whether two training steps of a batch fit into memory."""
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def fits(batch: int) -> bool:
        run = Training(
            model,
            optimizer,
            torch.randint(model.graph.vocab_size, (batch, length), device=device),
            (torch.arange(batch, device=device) + 0.5) / batch,
            lambda: torch.autocast(device.type, DTYPES[dtype], enabled=dtype != "fp32"),
        )
        try:
            step(run)
            step(run)
        except torch.OutOfMemoryError:
            return False
        finally:
            optimizer.zero_grad(set_to_none=True)
            gc.collect()  # frames of the failed call may hold its tensors
            if device.type == "cuda":
                torch.cuda.empty_cache()
        return True

    return fits


def network(quick: bool) -> SEDDConfig:
    """SEDD-small, or something tiny."""
    if quick:
        return SEDDConfig(vocab_size=1009, hidden_size=32, n_blocks=1, n_heads=2, length=32)
    return SEDDConfig(vocab_size=50257, hidden_size=768, n_blocks=12, n_heads=12, length=1024)


def measure(args: argparse.Namespace) -> None:
    """Print, and write, the largest batches by form of the head, each as soon as it is known."""
    torch.manual_seed(0)
    config = network(args.quick)
    model, length = SEDD(config).to(args.device).train(), config.length
    found = {}
    for form, step in (("fused head", fused), ("dense scores", dense)):
        with sf.use_backend(args.backend):
            found[form] = largest(fitting(model, length, args.dtype, step), args.most)
        reached = " or more" if found[form] == args.most else ""
        print(f"{form:14} {found[form]:6,} sequences of {length:,} tokens{reached}", flush=True)
        if args.json:
            write(args, found)


def write(args: argparse.Namespace, found: dict[str, int]) -> None:
    """What was found, and on what."""
    gpu = torch.cuda.get_device_name() if args.device == "cuda" else None
    record = {"gpu": gpu, "backend": args.backend, "dtype": args.dtype, "largest_batch": found}
    record["share_of_memory"] = SHARE
    Path(args.json).expanduser().write_text(json.dumps(record, indent=1) + "\n")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--backend", help="of ours (default: the one of that device)")
    parser.add_argument("--most", type=int, help="stop there (4,096; 4 with --quick)")
    parser.add_argument("--quick", action="store_true", help="a tiny network: does it run?")
    parser.add_argument("--json", metavar="FILE", help="write what was found")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no CUDA device; --device cpu --quick tries the code", file=sys.stderr)
        return 2
    if args.device == "cpu" and not args.quick:
        parser.error("--device cpu has no such limit; add --quick to try the code")
    args.backend = args.backend or registry.choose(args.device)
    args.most = args.most or (4 if args.quick else 4096)
    if args.device == "cuda":
        torch.cuda.set_per_process_memory_fraction(SHARE)
    measure(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
