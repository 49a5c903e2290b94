"""Time of a fused head by the size of its workspace, which sets the width of its blocks.

    python -m benchmarks.studies.head_blocks --json blocks.json
    python -m benchmarks.studies.head_blocks --device cpu --quick    # does it run?

The calls are the loss with gradients, and an analytic step, of SEDD-small's head (8,192 positions,
half of them masked, bf16), eager and as a CUDA graph. The number in brackets is the time divided by
that of the bare matrix products on the masked rows. In a graph the rows are a list of fixed length
(``touched_rows(max_rows=...)``), so that nothing synchronises the device.
"""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

import sedd_fast as sf
from benchmarks.harness.cases import Call, backends
from benchmarks.harness.command import gpu_parser, lacks_gpu, write_json
from benchmarks.harness.config import DTYPES, BenchmarkConfig
from benchmarks.harness.cuda_graphs import captured
from benchmarks.harness.measuring import Meter, make_meter, median_ms
from benchmarks.suites.head import HeadProblem, make_head, products
from sedd_fast.ops import TouchedRows

#: Sizes of the workspace in MiB; with 4,096 rows in bf16 a block has 128 states for each MiB.
WORKSPACES = (16, 32, 44, 64, 96, 128, 192, 256, 512)


def calls(p: HeadProblem, rows: TouchedRows | None, workspace: int | None) -> dict[str, Call]:
    """The loss with gradients, and a step."""
    inputs = (p.sigma, p.x_t, p.x_0)
    options = {"rows": rows, "workspace": workspace}

    def loss() -> object:
        found = sf.linear_score_entropy(
            *p.leaves, *inputs, p.graph, row_weight=p.row_weight, reduction="sum", **options
        )
        return torch.autograd.grad(found, p.leaves)

    def step() -> object:
        with torch.no_grad():
            return sf.linear_reverse_step(*p.leaves, p.x_t, p.sigma, p.removed, p.graph, **options)

    return {"loss + gradients": loss, "step": step}


def measure(
    config: BenchmarkConfig, workspaces: tuple[int, ...], evict: bool
) -> Iterator[dict[str, Any]]:
    """A record for every backend, call, workspace and form."""
    problem = make_head(config, config.positions, config.hidden_size, DTYPES["bf16"])
    meter = make_meter(torch.device(config.device), evict)
    operands = problem.touched(), problem.weight.detach()
    floors = {
        "loss + gradients": fastest(meter, products(*operands, True)),
        "step": fastest(meter, products(*operands, False)),
    }
    most = int((problem.x_t == problem.graph.mask_index).sum())
    listed = sf.touched_rows(problem.x_t, problem.graph, problem.row_weight, max_rows=most)
    for backend in backends(config, "linear_score_entropy"):
        for mib in (None, *workspaces):
            size = None if mib is None else mib << 20
            for form, rows in (("eager", None), ("graph", listed)):
                if form == "graph" and config.device == "cpu":
                    continue
                for name, call in calls(problem, rows, size).items():
                    about = {"backend": backend, "call": name, "workspace_mib": mib, "form": form}
                    with sf.use_backend(backend):
                        yield about | timed(meter, call, form == "graph", floors[name])


def fastest(meter: Meter, runs: dict[str, Call]) -> float:
    """Milliseconds of the fastest of these calls."""
    for run in runs.values():
        run()
    return min(median_ms(meter, run) for run in runs.values())


def timed(meter: Meter, call: Call, graph: bool, floor: float) -> dict[str, Any]:
    """Milliseconds of a call or of its replay as a CUDA graph, or the error that it raises."""
    try:
        with captured(call) if graph else contextlib.nullcontext() as replayed:
            run = call if replayed is None else replayed.replay
            run()
            taken = median_ms(meter, run)
    except (RuntimeError, ValueError) as error:
        return {"error": (str(error).splitlines() or [""])[0][:200]}
    return {"ms": taken, "floor_ms": floor, "over_products": taken / floor}


def lines_of(found: list[dict[str, Any]]) -> list[str]:
    """A line for every backend, call and form: the default, then every workspace."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in found:
        groups.setdefault((row["backend"], row["call"], row["form"]), []).append(row)
    return [f"{', '.join(key)}: {'; '.join(map(entry, rows))}" for key, rows in groups.items()]


def entry(row: dict[str, Any]) -> str:
    """One time: "64 MiB 1.9 ms (1.31)"."""
    size = "default" if row["workspace_mib"] is None else f"{row['workspace_mib']} MiB"
    if "error" in row:
        return f"{size} failed: {row['error']}"
    return f"{size} {row['ms']:.3g} ms ({row['over_products']:.2f})"


def main() -> int:
    """Run the command; its exit status."""
    parser = gpu_parser(__doc__)
    args = parser.parse_args()
    if lacks_gpu(args):
        return 2
    config = BenchmarkConfig(device=args.device, positions=8192, hidden_size=768)
    workspaces = WORKSPACES
    if args.quick:
        config, workspaces = replace(config, positions=64, vocab_size=97, hidden_size=16), (1,)
    found: list[dict[str, Any]] = []
    for row in measure(config, workspaces, evict=not args.quick):
        found.append(row)
        if args.json:
            write_json(args.json, {"lines": lines_of(found), "rows": found})
    print("\n".join(lines_of(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
