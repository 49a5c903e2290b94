"""Measure sedd_fast against the original's formulas and torch.compile, on this machine.

    python benchmarks/run.py                                  # everything, on the CPU
    python benchmarks/run.py --suite ops --dtype fp32,bf16
    python benchmarks/run.py --reference ~/Score-Entropy-Discrete-Diffusion
    python benchmarks/run.py --json figures.json --plot figures.png
    python benchmarks/run.py --suite sweep --plot sweep.png

On a CPU each memory regime is a process of its own (see measuring.py); a third process finds the
peak memory. What is printed is what was measured in this run, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

#: What is measured unless something else is asked for, and what there is: the fused head, a whole
#: SEDD-small, and the operations over vocabularies and over the fraction noised.
USUAL = ("ops", "train", "sample")
SUITES = (*USUAL, "head", "small", "sweep")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    summary, examples = (__doc__ or "").split("\n\n", 1)
    p = argparse.ArgumentParser(
        description=summary, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--suite",
        type=_suites,
        default=USUAL,
        help=f"what to measure: {', '.join(SUITES)}, several with commas between, or all "
        f"(default: {','.join(USUAL)})",
    )
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument(
        "--dtype",
        type=_dtypes,
        help="of the scores: fp32, bf16, fp16, or several: fp32,bf16 "
        "(default: fp32 on a CPU, bf16 on CUDA)",
    )
    p.add_argument(
        "--positions", type=_positive, help="rows of scores (default: 256; 8192 on CUDA)"
    )
    p.add_argument("--vocab", type=_positive, default=50257, help="real tokens (%(default)s)")
    p.add_argument(
        "--masked", type=float, default=0.35, help="fraction of positions noised (%(default)s)"
    )
    p.add_argument(
        "--backend", action="append", help="of ours, may be repeated (default: all but reference)"
    )
    p.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    p.add_argument(
        "--no-graphs",
        action="store_true",
        help="on CUDA, time neither CUDA-graph replays nor wall time beside the eager calls",
    )
    p.add_argument("--reference", metavar="PATH", help="a checkout of the original code, run too")
    p.add_argument("--threads", type=_positive, help="CPU threads (default: torch's own choice)")
    p.add_argument("--rounds", type=_positive, default=25, help="timings of each (%(default)s)")
    p.add_argument(
        "--seconds",
        type=float,
        default=4.0,
        help="for each operation and regime (%(default)s); slow calls take more, for each is timed "
        "5 times, or 3 where it takes over a second",
    )
    p.add_argument(
        "--warm", action="store_true", help="leave the caches as the call before left them"
    )
    p.add_argument("--quick", action="store_true", help="tiny shapes: does everything run?")
    p.add_argument("--json", metavar="FILE", help="write every figure and the environment")
    p.add_argument(
        "--plot",
        metavar="FILE",
        help="write a chart (PNG) of time over floor; of a sweep two, ...-vocabulary, ...-noised",
    )
    p.add_argument("--worker", help=argparse.SUPPRESS)
    p.add_argument("--result", help=argparse.SUPPRESS)
    return p


def _suites(text: str) -> tuple[str, ...]:
    names = SUITES if text == "all" else tuple(text.split(","))
    if wrong := [n for n in names if n not in SUITES]:
        raise argparse.ArgumentTypeError(f"{', '.join(SUITES)} or all, got {wrong[0]!r}")
    return names


def _dtypes(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if wrong := [n for n in names if n not in ("fp32", "bf16", "fp16")]:
        raise argparse.ArgumentTypeError(f"fp32, bf16, fp16 or several, got {wrong[0]!r}")
    return names


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a positive whole number is needed, got {text!r}")
    return int(text)


def options(argv: list[str]) -> argparse.Namespace:
    """The parsed and checked command line, with the defaults that depend on others filled in."""
    p = parser()
    args = p.parse_args(argv)
    if not 0 < args.masked <= 1:
        p.error(f"--masked must lie in (0, 1], got {args.masked}")
    if args.reference and not (Path(args.reference).expanduser() / "graph_lib.py").is_file():
        p.error(f"--reference {args.reference} holds no graph_lib.py; give a checkout")
    for name in ("json", "plot"):
        folder = Path(getattr(args, name) or ".").expanduser().absolute().parent
        if not folder.is_dir():
            p.error(f"--{name}: there is no folder {folder}; make it first")
    if args.quick:
        args.positions, args.vocab = args.positions or 32, min(args.vocab, 1009)
        args.rounds, args.seconds = min(args.rounds, 3), 0.1
    cuda = args.device == "cuda"
    args.positions = args.positions or (8192 if cuda else 256)
    args.dtype = args.dtype or ("bf16" if cuda else "fp32",)
    return args


def main(argv: list[str]) -> int:
    """The command: one worker per regime, then the report."""
    args = options(argv)
    if args.worker:
        return work(args, argv)
    import measuring
    import report

    started = time.monotonic()
    names = (*measuring.regimes(args.device), *(("memory",) if args.device == "cpu" else ()))
    names = names[:1] if args.suite == ("sweep",) else names
    parts = {}
    for name in names:
        try:
            parts[name] = run_worker(name, argv, measuring.REGIMES.get(name, {}))
        except subprocess.CalledProcessError as error:
            return abs(error.returncode)  # it has said why
    results = report.merge(parts, command(argv))
    results["environment"]["seconds"] = round(time.monotonic() - started, 1)
    report.show(results)
    if args.json:
        write(Path(args.json).expanduser(), results)
    if args.plot:
        report.plot(results, Path(args.plot).expanduser())
    return 0


def work(args: argparse.Namespace, argv: list[str]) -> int:
    """One worker's part, written after every case.

    On a GPU, where one worker measures all, --json has it too: a run cut short loses one case.
    """
    import report
    import worker

    for part in worker.measure(args):
        write(Path(args.result), part)
        if args.json and args.device == "cuda":
            so_far = report.merge({args.worker: part}, command(argv))
            write(Path(args.json).expanduser(), so_far)
    return 0


def command(argv: list[str]) -> str:
    """The command line, without what only a worker is given."""
    words = argv[: argv.index("--worker")] if "--worker" in argv else argv
    return " ".join(["benchmarks/run.py", *words])


def write(path: Path, results: dict[str, Any]) -> None:
    """As JSON; whoever is interrupted leaves the file that was there."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(results, indent=1) + "\n")
    new.replace(path)


def run_worker(regime: str, argv: list[str], malloc: dict[str, str]) -> dict[str, Any]:
    """What one process measured under these malloc settings.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, __file__, *argv, "--worker", regime, "--result", str(result)]
        subprocess.run(command, env=environment | malloc, check=True)
        return json.loads(result.read_text())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
