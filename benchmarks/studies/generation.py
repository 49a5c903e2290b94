"""Seconds to generate text on a GPU: SEDD-small beside the original formulas and GPT-2-small.

    python -m benchmarks.studies.generation --json generation.json
    python -m benchmarks.studies.generation --device cpu --quick    # does it run?

Sequences of 1,024 tokens. The SEDD contenders make 128 analytic steps and a denoising one with the
same network under bf16 autocast. The original formulas form all scores and draw by Gumbel noise.
Ours runs as it is, as CUDA graphs, and as CUDA graphs with the network's blocks compiled by
torch.compile. GPT-2-small (of ``transformers``, in bf16; left out where that is not installed)
makes one token a call with its key-value cache. All weights are random: that changes no time. Wall
time, the GPU idle before and after; the median of ``--repeats`` runs, one where a run takes over
five seconds, after a short run.
"""

import argparse
import copy
import functools
import statistics
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch

import sedd_fast as sf
from benchmarks.harness.cases import Call
from benchmarks.harness.command import (
    gpu_parser,
    lacks_gpu,
    positive_int,
    positive_ints,
    write_json,
)
from benchmarks.harness.measuring import wall_seconds
from benchmarks.studies.largest_batch import network
from benchmarks.suites.end_to_end import SamplingRun

#: The contenders, in the order in which they are timed.
CONTENDERS = (
    "original formulas",
    "ours",
    "ours, CUDA graphs",
    "ours, CUDA graphs, compiled blocks",
    "original formulas, compiled blocks",
    "GPT-2-small, generate",
)
#: Seconds from which on a run is timed once.
LONG = 5.0


def sedd_runs(models: tuple[sf.SEDD, sf.SEDD], batch: int) -> dict[str, Callable[[int], object]]:
    """The original formulas' loop, and ours, by the number of steps.

    Args:
        models: a network as it is, and one whose blocks are compiled.
    """
    shape = (batch, models[0].config.length)

    def eager(model: sf.SEDD) -> Callable[[int], object]:
        return lambda steps: SamplingRun(model, shape, steps, "bf16").original_formulas()

    def ours(network: Any) -> Callable[[int], object]:
        return lambda steps: SamplingRun(models[0], shape, steps, "bf16").ours(network)

    plain, compiled = models
    graphs = [ours(sf.CudaGraphNetwork(model)) for model in models]
    runs = (eager(plain), ours(plain), *graphs, eager(compiled))
    return dict(zip(CONTENDERS, runs, strict=False))


def gpt2(device: str, quick: bool) -> Any:
    """GPT-2-small with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    size = {"n_layer": 1, "n_embd": 32, "n_head": 2, "vocab_size": 101} if quick else {}
    config = GPT2Config(bos_token_id=0, eos_token_id=0, **size)
    return GPT2LMHeadModel(config).to(device, torch.bfloat16).eval()


def generating(model: Any, batch: int, length: int) -> Call:
    """``generate`` from one token to ``length``, drawing every token."""
    start = torch.ones(batch, 1, dtype=torch.int64, device=model.device)
    mask = torch.ones_like(start)

    def generate() -> object:
        return model.generate(
            start, attention_mask=mask, do_sample=True, top_k=0, use_cache=True,
            min_length=length, max_length=length, pad_token_id=0,
        )  # fmt: skip

    return generate


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A record for every contender and batch."""
    torch.manual_seed(0)
    config = network(args.quick)
    sedd = sf.SEDD(config).to(args.device).eval()
    compiled = copy.deepcopy(sedd)
    for block in compiled.blocks:
        block.compile(dynamic=False)
    autoregressive = gpt2(args.device, args.quick) if find_spec("transformers") else None
    for batch in args.batch_sizes:
        runs = {
            name: (functools.partial(run, 2), functools.partial(run, args.steps))
            for name, run in sedd_runs((sedd, compiled), batch).items()
        }
        if autoregressive is not None:
            lengths = (min(8, config.length), config.length)
            short, whole = (generating(autoregressive, batch, length) for length in lengths)
            runs[CONTENDERS[-1]] = (short, whole)
        for name in list(runs):
            if args.only and name not in args.only:
                continue
            short, call = runs.pop(name)
            short()
            yield {
                "contender": name, "batch": batch, "length": config.length, "steps": args.steps,
            } | timed(call, args)  # fmt: skip
            del short, call  # the memory of a CUDA graph
            if args.device == "cuda":
                torch.cuda.empty_cache()


def timed(call: Call, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a run: the median of a few, or of one that is long."""
    taken = [wall_seconds(call, torch.device(args.device))]
    while len(taken) < args.repeats and taken[0] < LONG:
        taken.append(wall_seconds(call, torch.device(args.device)))
    return {"seconds": statistics.median(taken), "all_seconds": taken}


def lines_of(rows: list[dict[str, Any]]) -> list[str]:
    """A line for every batch: seconds of each contender, and how many times those of ours."""
    lines = []
    for batch in dict.fromkeys(row["batch"] for row in rows):
        of = {row["contender"]: row["seconds"] for row in rows if row["batch"] == batch}
        own = of.get("ours, CUDA graphs")
        shown = (
            f"{name} {taken:.3g} s" + (f" ({taken / own:.2f} x ours as CUDA graphs)" if own else "")
            for name, taken in of.items()
        )
        lines.append(f"batch {batch}: {'; '.join(shown)}")
    return lines


def main() -> int:
    """Run the command; its exit status."""
    parser = gpu_parser(__doc__)
    parser.add_argument(
        "--steps", type=positive_int, default=128, help="denoising steps (%(default)s)"
    )
    parser.add_argument(
        "--batch-sizes",
        type=positive_ints,
        default=(1, 32),
        metavar="N,N,...",
        help="sequences at a time (default: 1,32)",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=CONTENDERS,
        metavar="NAME",
        help=f"time this contender: {'; '.join(CONTENDERS)}; may be repeated (default: all)",
    )
    parser.add_argument("--repeats", type=positive_int, default=3, help="(%(default)s)")
    args = parser.parse_args()
    if lacks_gpu(args):
        return 2
    if args.quick:
        args.steps, args.batch_sizes = min(args.steps, 2), (1,)
    found: list[dict[str, Any]] = []
    for row in measure(args):
        found.append(row)
        print(f"{row['contender']}, batch {row['batch']}: {row['seconds']:.3g} s", flush=True)
        if args.json:
            write_json(args.json, {"lines": lines_of(found), "rows": found})
    print("\n".join(lines_of(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
