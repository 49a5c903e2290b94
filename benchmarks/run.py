"""Measure sedd_fast against the original's formulas and torch.compile, on this machine.

    python benchmarks/run.py                                  # operations and runs, on the CPU
    python benchmarks/run.py --suite ops --dtype fp32,bf16
    python benchmarks/run.py --isa avx512,avx2,baseline       # operations, by instruction set
    python benchmarks/run.py --suite head --dtype fp32,bf16   # 1,024 positions; under four minutes
    python benchmarks/run.py --suite head --head-positions 256,1024,4096 --slow
    python benchmarks/run.py --reference ~/Score-Entropy-Discrete-Diffusion
    python benchmarks/run.py --json figures.json --plot figures.png
    python benchmarks/run.py --suite sweep --plot sweep.png

On a CPU one process measures each memory regime (see harness/measuring.py), and a third one the
peak memory. With --isa each instruction set has processes of its own, in which torch is limited too
(see harness/instruction_sets.py). Only what this run measured is printed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.harness.command import (
    make_parser,
    output_file,
    positive_int,
    positive_ints,
    read_json,
    some_of,
    write_json,
)
from benchmarks.harness.instruction_sets import SETS, limits, refusal

#: The suites that are measured by default, and all that there are: "head" measures the fused heads,
#: "preset" a training step by masked cross entropy, "small" a whole SEDD-small, "sweep" the
#: operations over vocabularies and fractions noised.
USUAL = ("ops", "train", "sample")
SUITES = (*USUAL, "head", "preset", "small", "sweep")
#: What a process on a CPU measures (harness/measuring.py).
REGIMES = ("reused", "fresh", "memory")


def options(argv: list[str]) -> argparse.Namespace:
    """The parsed and checked command line, with the defaults that depend on others filled in."""
    p = make_parser(__doc__)
    p.add_argument(
        "--suite",
        type=some_of(*SUITES, every="all"),
        help=f"what to measure: {', '.join(SUITES)}, several with commas between, or all "
        f"(default: {','.join(USUAL)}; ops with --isa)",
    )
    p.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where to run (%(default)s)"
    )
    p.add_argument(
        "--isa",
        type=some_of(*SETS),
        default=(),
        help=f"instruction set of the C++ kernels, and of torch: {', '.join(SETS)}, or several: "
        "avx2,baseline (default: the best of the processor)",
    )
    p.add_argument(
        "--dtype",
        type=some_of("fp32", "bf16", "fp16"),
        help="dtype of the scores: fp32, bf16, fp16, or several: fp32,bf16 "
        "(default: fp32 on a CPU, bf16 on CUDA)",
    )
    p.add_argument(
        "--positions", type=positive_int, help="rows of scores (default: 256; 8192 on CUDA)"
    )
    p.add_argument(
        "--vocab", type=positive_int, default=50257, help="size of the vocabulary (%(default)s)"
    )
    p.add_argument(
        "--masked", type=float, default=0.35, help="fraction of positions noised (%(default)s)"
    )
    p.add_argument(
        "--operations",
        type=lambda text: tuple(title.strip() for title in text.split(";")),
        default=(),
        metavar="TITLES",
        help='measure only these tables, with ";" between: "absorbing loss; uniform euler step"',
    )
    p.add_argument(
        "--head-positions",
        type=positive_ints,
        metavar="N",
        help="positions of the suite head, several with commas between (default: 1024; "
        "--positions on CUDA)",
    )
    p.add_argument(
        "--slow",
        action="store_true",
        help="in the suite head on a CPU, also the contenders that take longest",
    )
    p.add_argument(
        "--regimes",
        type=some_of(*REGIMES),
        help=f"what is measured on a CPU: {', '.join(REGIMES)}, several with commas between "
        "(default: all; reused,memory for the suite head alone, reused for sweep alone)",
    )
    p.add_argument(
        "--backend",
        action="append",
        help="backend of sedd_fast to measure, may be repeated (default: all but reference)",
    )
    p.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    p.add_argument(
        "--no-graphs",
        action="store_true",
        help="on CUDA, time neither CUDA-graph replays nor wall time beside the eager calls",
    )
    p.add_argument(
        "--reference", metavar="PATH", help="a checkout of the original code, measured too"
    )
    p.add_argument("--threads", type=positive_int, help="CPU threads (default: torch's own choice)")
    p.add_argument(
        "--rounds",
        type=positive_int,
        default=25,
        help="how often each contender is timed (%(default)s)",
    )
    p.add_argument(
        "--seconds",
        type=float,
        default=4.0,
        help="time for each operation and regime (%(default)s); slow calls take more, since each "
        "is timed at least 5 times, or 3 times where it takes over a second",
    )
    p.add_argument(
        "--warm", action="store_true", help="do not evict the caches before each timed call"
    )
    p.add_argument(
        "--quick", action="store_true", help="tiny shapes, to check that everything runs"
    )
    p.add_argument(
        "--json", metavar="FILE", type=output_file, help="write every figure and the environment"
    )
    p.add_argument(
        "--plot",
        metavar="FILE",
        type=output_file,
        help="write a chart (PNG) of time over floor; for a sweep two, FILE-vocabulary and "
        "FILE-noised",
    )
    p.add_argument("--worker", help=argparse.SUPPRESS)
    p.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    if not 0 < args.masked <= 1:
        p.error(f"--masked must lie in (0, 1], got {args.masked}")
    if args.reference and not (Path(args.reference).expanduser() / "graph_lib.py").is_file():
        p.error(f"--reference {args.reference} holds no graph_lib.py; give a checkout")
    cuda = args.device == "cuda"
    if cuda and (args.isa or args.regimes):
        p.error("--isa and --regimes are for the CPU; leave them out with --device cuda")
    if args.regimes == ("memory",):
        p.error("--regimes memory alone times nothing; add reused or fresh")
    if args.quick:
        args.positions, args.vocab = args.positions or 32, min(args.vocab, 1009)
        args.rounds, args.seconds = min(args.rounds, 3), 0.1
        args.head_positions = args.head_positions or (32, 64)
    args.suite = args.suite or (("ops",) if args.isa else USUAL)
    args.positions = args.positions or (8192 if cuda else 256)
    args.dtype = args.dtype or ("bf16" if cuda else "fp32",)
    return args


def main(argv: list[str]) -> int:
    """Run the workers, then print the report; the exit status."""
    args = options(argv)
    if args.worker:
        return work(args, argv)
    from benchmarks.harness import measuring, merging, report

    started = time.monotonic()
    if reason := refusal(args.isa):
        print(reason, file=sys.stderr)
        return 2
    parts, planned = [], workers(args, measuring.regimes(args.device))
    if args.regimes and set(args.regimes) - {regime for _, regime in planned}:
        print("--regimes reused needs glibc; leave reused out", file=sys.stderr)
        return 2
    for isa, regime in planned:
        limited = measuring.REGIMES.get(regime, {}) | (limits(isa) if isa else {})
        try:
            parts.append(run_worker(regime, argv, limited))
        except subprocess.CalledProcessError as error:
            return abs(error.returncode)  # the worker has printed the reason
    results = merging.merge(parts, command(argv))
    results["environment"]["seconds"] = round(time.monotonic() - started, 1)
    report.show(results)
    if args.json:
        write_json(args.json, results)
    if args.plot:
        report.plot(results, args.plot)
    return 0


def workers(args: argparse.Namespace, timed: tuple[str, ...]) -> list[tuple[str | None, str]]:
    """The instruction set and the regime of every process, the peak memory once, as the last.

    Args:
        timed: the regimes in which the device's calls can be timed.
    """
    usual = {("sweep",): timed[:1], ("head",): (*timed[:1], "memory")}
    chosen = args.regimes or usual.get(args.suite, (*timed, "memory"))
    sets = args.isa or (None,)
    found = [(isa, regime) for isa in sets for regime in timed if regime in chosen]
    if "memory" in chosen and args.device == "cpu":
        found.append((sets[0], "memory"))
    return found


def work(args: argparse.Namespace, argv: list[str]) -> int:
    """Measure one worker's part, and write it after every case.

    On a GPU one worker measures everything, and writes --json as well: an interrupted run loses no
    finished case.
    """
    from benchmarks.harness import merging
    from benchmarks.suites import worker

    for part in worker.measure(args):
        write_json(args.result, part)
        if args.json and args.device == "cuda":
            so_far = merging.merge([part], command(argv))
            write_json(args.json, so_far)
    return 0


def command(argv: list[str]) -> str:
    """The command line, without the options of a worker."""
    words = argv[: argv.index("--worker")] if "--worker" in argv else argv
    return " ".join(["benchmarks/run.py", *words])


def run_worker(regime: str, argv: list[str], given: dict[str, str]) -> dict[str, Any]:
    """What a process measures in this regime, under these environment variables.

    Raises:
        subprocess.CalledProcessError: the process failed.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, __file__, *argv, "--worker", regime, "--result", str(result)]
        subprocess.run(command, env=environment | given, check=True)
        return read_json(result)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
