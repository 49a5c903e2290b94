"""A fused head by the workspace that sets the width of its blocks, eager and as a CUDA graph.

    python benchmarks/head_blocks.py --json blocks.json
    python benchmarks/head_blocks.py --device cpu --quick      # does it run?

Loss with gradients, and an analytic step, of SEDD-small's head (8,192 positions, half of them
masked, bf16). "x products" is the time over that of the bare matrix products on the masked rows. In
a graph the rows are a list of fixed length (``touched_rows(max_rows=...)``): nothing waits.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

import sedd_fast as sf
from benchmarks.harness.config import DTYPES, Settings
from benchmarks.harness.measuring import Meter, make_meter
from benchmarks.suites.head import HeadProblem, make_head, products
from benchmarks.suites.ops import backends

Call = Callable[[], object]
#: MiB of workspace; a block of 4,096 rows in bf16 has 128 states for each.
WORKSPACES = (16, 32, 44, 64, 96, 128, 192, 256, 512)
TIMINGS = 12


def calls(p: HeadProblem, rows: sf.TouchedRows | None, workspace: int | None) -> dict[str, Call]:
    """Loss with gradients, and a step."""
    inputs = (p.sigma, p.x_t, p.x_0)
    given = {"rows": rows, "workspace": workspace}

    def loss() -> object:
        found = sf.linear_score_entropy(
            *p.leaves, *inputs, p.graph, row_weight=p.row_weight, reduction="sum", **given
        )
        return torch.autograd.grad(found, p.leaves)

    def step() -> object:
        with torch.no_grad():
            return sf.linear_reverse_step(*p.leaves, p.x_t, p.sigma, p.removed, p.graph, **given)

    return {"loss + gradients": loss, "step": step}


def captured(call: Call) -> Call:
    """The replay of a graph of that call."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def measure(
    settings: Settings, workspaces: tuple[int, ...], evict: bool
) -> Iterator[dict[str, Any]]:
    """A record for every backend, call, workspace and form."""
    problem = make_head(settings, settings.positions, settings.hidden_size, DTYPES["bf16"])
    meter = make_meter(torch.device(settings.device), evict)
    floors = {
        "loss + gradients": least(meter, products(problem, True)),
        "step": least(meter, products(problem, False)),
    }
    most = int((problem.x_t == problem.graph.mask_index).sum())
    listed = sf.touched_rows(problem.x_t, problem.graph, problem.row_weight, max_rows=most)
    for backend in backends(settings, head=True):
        for mib in (None, *workspaces):
            size = None if mib is None else mib << 20
            for form, rows in (("eager", None), ("graph", listed)):
                if form == "graph" and settings.device == "cpu":
                    continue
                for name, call in calls(problem, rows, size).items():
                    about = {"backend": backend, "call": name, "workspace_mib": mib, "form": form}
                    with sf.use_backend(backend):
                        yield about | timed(meter, call, form == "graph", floors[name])


def least(meter: Meter, runs: dict[str, Call]) -> float:
    """Milliseconds of the fastest."""
    for run in runs.values():
        run()
    return min(median(meter.time(run) for _ in range(TIMINGS)) for run in runs.values())


def timed(meter: Meter, call: Call, graph: bool, floor: float) -> dict[str, Any]:
    """Milliseconds of a call, or why there are none."""
    try:
        run = captured(call) if graph else call
        run()
        taken = median(meter.time(run) for _ in range(TIMINGS))
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
    """64 MiB 1.9 ms (1.31 x products)."""
    size = "default" if row["workspace_mib"] is None else f"{row['workspace_mib']} MiB"
    if "error" in row:
        return f"{size} failed: {row['error']}"
    return f"{size} {row['ms']:.3g} ms ({row['over_products']:.2f})"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="a tiny head: does it run?")
    parser.add_argument("--json", metavar="FILE", help="write every time")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no CUDA device; --device cpu --quick tries the code", file=sys.stderr)
        return 2
    settings = Settings(device=args.device, positions=8192, hidden_size=768)
    workspaces = WORKSPACES
    if args.quick:
        settings, workspaces = replace(settings, positions=64, vocab_size=97, hidden_size=16), (1,)
    found: list[dict[str, Any]] = []
    for row in measure(settings, workspaces, evict=not args.quick):
        found.append(row)
        if args.json:
            record = {"lines": lines_of(found), "rows": found}
            Path(args.json).expanduser().write_text(json.dumps(record) + "\n")
    print("\n".join(lines_of(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
