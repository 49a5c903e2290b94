"""The C++ kernels on two thread pools: torch's own OpenMP threads, or a pool beside them.

    python -m benchmarks.studies.threads            # on an idle machine
    python -m benchmarks.studies.threads --busy 1   # beside one process that keeps a core busy

Prints the median milliseconds of a reverse step alone, and right after two torch operations whose
threads still spin, for both pools. docs/performance.md has the conclusions.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

import sedd_fast as sf
from benchmarks.harness.command import make_parser
from sedd_fast.backends import cpp

VOCAB = 50257


def work(positions: int) -> dict[str, Callable[[], object]]:
    """The calls that are timed, by name."""
    graph = sf.Absorbing(VOCAB)
    log_score = torch.randn(1, positions, graph.dim)
    x_t = torch.where(torch.rand(1, positions) < 0.5, VOCAB, 0)
    matrix, vector = torch.randn(400, 400), torch.randn(1 << 20)

    def ours() -> torch.Tensor:
        return sf.reverse_step(log_score, x_t, 0.6, 0.01, graph)

    def torchs() -> tuple[torch.Tensor, torch.Tensor]:
        return matrix @ matrix, vector.exp()

    return {"ours": ours, "torch": torchs, "torch, then ours": lambda: (torchs(), ours())}


def measure(positions: int, rounds: int = 60) -> dict[tuple[str, str], float]:
    """Median milliseconds by (call, pool); the pools take turns."""
    pools = {"torch's OpenMP": cpp.openmp_address(), "own pool": 0}
    times: dict[tuple[str, str], list[float]] = {}
    tasks = work(positions)
    for _ in range(rounds):
        for pool, address in pools.items():
            cpp.kernels().use_openmp(address)
            for name, task in tasks.items():
                task()
                began = time.perf_counter()
                task()
                times.setdefault((name, pool), []).append(time.perf_counter() - began)
    return {key: 1e3 * statistics.median(values) for key, values in times.items()}


def main() -> int:
    """Run the command; its exit status."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--busy", type=int, default=0, help="number of competing processes (%(default)s)"
    )
    args = parser.parse_args()
    if (reason := cpp.unavailable()) or not cpp.openmp_address():
        print(f"nothing to compare: {reason or 'no OpenMP runtime in this process'}")
        return 2
    rivals = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(args.busy)
    ]
    try:
        for positions in (16, 256):
            for (name, pool), median in measure(positions).items():
                print(f"{positions:4} x {VOCAB:,}  {name:18} {pool:16} {median:8.2f} ms")
    finally:
        for rival in rivals:
            rival.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main())
