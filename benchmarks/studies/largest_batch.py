"""The largest batch of SEDD-small that trains in a GPU's memory, and tokens per second.

    python -m benchmarks.studies.largest_batch              # on the GPU, bf16, 1,024 tokens
    python -m benchmarks.studies.largest_batch --device cpu --quick    # does it run?

The fused head stands beside dense scores and the original formulas. A training step (noise, network
under autocast, loss, backward, AdamW) runs twice at every batch that is tried. Batches double until
memory runs out; a binary search follows, to within a sixteenth. torch may use the fraction SHARE of
the GPU's memory, because kernels and libraries that are loaded late need some. Then each form is
timed at the largest batch that all can train, and at its own.
"""

import argparse
import gc
import statistics
import sys
from collections.abc import Callable

import torch

import sedd_fast as sf
from benchmarks.harness.command import gpu_parser, lacks_gpu, positive_int, some_of, write_json
from benchmarks.harness.config import DTYPES
from benchmarks.harness.measuring import wall_seconds
from benchmarks.suites.end_to_end import Training
from sedd_fast.backends import registry

Step = Callable[[Training], None]
SHARE = 0.95


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest batch up to ``most`` that fits, to within a sixteenth; 0 where none does.

    ``fits`` is true up to some batch and false beyond.
    """
    good, bad = 0, 1
    while bad <= most and fits(bad):
        good, bad = bad, 2 * bad
    bad = min(bad, most + 1)
    while bad - good > max(1, good // 16):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def fitting(model: sf.SEDD, length: int, dtype: str, step: Step) -> Callable[[int], bool]:
    """Whether two training steps of a batch fit into memory."""
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def fits(batch: int) -> bool:
        x_0 = torch.randint(model.graph.vocab_size, (batch, length), device=device)
        run = Training(model, optimizer, x_0, dtype)
        try:
            step(run)
            step(run)
        except torch.OutOfMemoryError:
            return False
        finally:
            optimizer.zero_grad(set_to_none=True)
            gc.collect()  # frames of the failed call may still hold its tensors
            if device.type == "cuda":
                torch.cuda.empty_cache()
        return True

    return fits


#: The forms of a training step.
FORMS: dict[str, Step] = {
    "fused head": Training.fused,
    "dense scores": Training.dense,
    "original formulas": Training.original_formulas,
}


def tokens_per_second(model: sf.SEDD, batch: int, dtype: str, step: Step, steps: int = 5) -> float:
    """By the median time of a few training steps of that batch, after one to warm up."""
    device, length = next(model.parameters()).device, model.config.length
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    x_0 = torch.randint(model.graph.vocab_size, (batch, length), device=device)
    run = Training(model, optimizer, x_0, dtype)
    step(run)
    taken = [wall_seconds(lambda: step(run), device) for _ in range(steps)]
    return batch * length / statistics.median(taken)


def network(quick: bool) -> sf.SEDDConfig:
    """SEDD-small, or a tiny network."""
    if quick:
        return sf.SEDDConfig(vocab_size=1009, hidden_size=32, n_blocks=1, n_heads=2, length=32)
    return sf.SEDDConfig(vocab_size=50257, hidden_size=768, n_blocks=12, n_heads=12, length=1024)


def measure(args: argparse.Namespace) -> None:
    """Find the largest batch of each form of the head; print and write each at once."""
    torch.manual_seed(0)
    config = network(args.quick)
    model, length = sf.SEDD(config).to(args.device).train(), config.length
    found: dict[str, int] = {}
    speed: dict[str, dict[int, float]] = {}
    forms = {form: FORMS[form] for form in args.forms}
    for form, step in forms.items():
        with sf.use_backend(args.backend):
            found[form] = largest(fitting(model, length, args.dtype, step), args.most)
        reached = " or more" if found[form] == args.most else ""
        print(f"{form:17} {found[form]:6,} sequences of {length:,} tokens{reached}", flush=True)
        write(args, found, speed)
    common = min(found.values())
    for form, step in forms.items():
        for batch in dict.fromkeys((common, found[form])) if common else ():
            with sf.use_backend(args.backend):
                made = tokens_per_second(model, batch, args.dtype, step)
            speed.setdefault(form, {})[batch] = made
            print(f"{form:17} {batch:6,} sequences: {made:,.0f} tokens a second", flush=True)
            write(args, found, speed)


def write(
    args: argparse.Namespace, found: dict[str, int], speed: dict[str, dict[int, float]]
) -> None:
    """Write the batches and speeds found so far, and what they hold for."""
    if not args.json:
        return
    gpu = torch.cuda.get_device_name() if args.device == "cuda" else None
    record = {"gpu": gpu, "backend": args.backend, "dtype": args.dtype, "largest_batch": found}
    record |= {
        "share_of_memory": SHARE,
        "tokens_per_second": speed,
        "lines": lines_of(found, speed),
    }
    write_json(args.json, record)


def lines_of(found: dict[str, int], speed: dict[str, dict[int, float]]) -> list[str]:
    """A line for every form: its largest batch, and tokens a second by batch."""
    return [
        f"{form}: largest batch {batch}"
        + "".join(f"; {made:,.0f} tokens/s at {at}" for at, made in speed.get(form, {}).items())
        for form, batch in found.items()
    ]


def main() -> int:
    """Run the command; its exit status."""
    parser = gpu_parser(__doc__)
    parser.add_argument(
        "--forms",
        type=some_of(*FORMS),
        default=tuple(FORMS),
        help=f"some of {', '.join(FORMS)} (default: all)",
    )
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16", help="(%(default)s)")
    parser.add_argument("--backend", help="backend of sedd_fast (default: the device's)")
    parser.add_argument(
        "--most", type=positive_int, help="largest batch to try (4,096; 4 with --quick)"
    )
    args = parser.parse_args()
    if lacks_gpu(args):
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
