"""Times of a cross entropy with gradients by how a CPU cuts its rows and states.

    python -m benchmarks.studies.softmax_cuts
    python -m benchmarks.studies.softmax_cuts --rows 512,2048 --width 768 --workspace 8,32,128
    python -m benchmarks.studies.softmax_cuts --quick          # does it run?

For checking the cost model of ``sedd_fast/backends/softmax_plan.py``: for every number of rows and
every workspace, explicit cuts are forced on the C++ backend and timed in turn. A cut is the rows at
a time, and the blocks of states whose exponentials are kept between the two passes. Beside the
time stand that of the model and both over the least. Freed memory is best kept by the process, as
in the regime "reused" of the benchmark: MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import torch

import sedd_fast as sf
from benchmarks.harness.cases import Call
from benchmarks.harness.command import (
    make_parser,
    output_file,
    positive_int,
    positive_ints,
    some_of,
    write_json,
)
from benchmarks.harness.config import DTYPES
from benchmarks.harness.environment import provenance
from benchmarks.harness.measuring import Budget, Meter, interleave, make_meter
from benchmarks.suites.softmax_head import SoftmaxHead, make_head
from sedd_fast.backends import cpp, softmax_plan
from sedd_fast.backends.softmax_plan import Head, Plan

#: In how many parts the rows are cut.
PARTS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 32)

Force = Callable[[Plan], AbstractContextManager[object]]


def force(cut: Plan) -> AbstractContextManager[object]:
    """Give every cross entropy with gradients this cut."""
    return mock.patch.object(softmax_plan, "plan", return_value=cut)


@contextlib.contextmanager
def recorded() -> Iterator[list[Head]]:
    """The heads that were planned within the context."""
    seen: list[Head] = []
    planned = softmax_plan.plan

    def plan(head: Head) -> Plan:
        seen.append(head)
        return planned(head)

    with mock.patch.object(softmax_plan, "plan", plan):
        yield seen


def loss_with_gradients(p: SoftmaxHead, workspace: int) -> Call:
    """The call that is timed; every row carries a loss."""
    target = torch.arange(len(p.hidden)) % p.excluded

    def run() -> object:
        with sf.use_backend("cpp"):
            loss = sf.linear_cross_entropy(
                *p.leaves, target, excluded=p.excluded, reduction="sum", workspace=workspace
            )
        return torch.autograd.grad(loss, p.leaves)

    return run


def cuts(head: Head) -> list[Plan]:
    """The cuts that fit the workspace, with most, half or none of the blocks kept; and the plan."""
    found = [softmax_plan.plan(head)]
    for parts in PARTS:
        rows = min(head.rows, head.padded(-(-head.rows // parts)))
        widest = softmax_plan.widest(head, rows)
        if widest is not None:
            found += [widest._replace(kept=kept) for kept in (widest.kept, widest.kept // 2, 0)]
    return list(dict.fromkeys(found))


def measure(
    p: SoftmaxHead, workspace: int, meter: Meter, budget: Budget, force: Force = force
) -> dict[str, Any]:
    """The head, and a record for every cut; the plan's own is the first."""
    call = loss_with_gradients(p, workspace)
    with recorded() as seen:
        call()
    head = seen[0]

    def under(cut: Plan) -> Call:
        def run() -> object:
            with force(cut):
                return call()

        return run

    timing = interleave(meter, {cut: under(cut) for cut in cuts(head)}, budget)
    rows = [
        {**cut._asdict(), "ms": found.median_ms, "model_ms": 1e3 * softmax_plan.seconds(head, cut)}
        for cut, found in timing.items()
    ]
    for key in ("ms", "model_ms"):
        least = min(row[key] for row in rows)
        for row in rows:
            row[f"{key}_over_least"] = row[key] / least
    return {**head._asdict(), "blocks": head.blocks, "cuts": rows}


def lines_of(found: dict[str, Any]) -> list[str]:
    """A heading, and a line for every cut, the fastest first; "*" marks the plan."""
    made = [
        f"{found['rows']:,} x {found['width']} x {found['states']:,}, {found['dtype']}, "
        f"workspace {found['workspace'] / 2**20:.3g} MiB, {found['blocks']} blocks",
        f"  {'rows':>6} {'kept':>6} {'ms':>10} {'x least':>8} {'model ms':>10} {'x least':>8}",
    ]
    chosen = found["cuts"][0]
    for row in sorted(found["cuts"], key=lambda row: row["ms"]):
        made.append(
            f"{'*' if row is chosen else ' '} {row['rows']:>6} {row['kept']:>6} {row['ms']:>10.1f} "
            f"{row['ms_over_least']:>8.2f} {row['model_ms']:>10.1f} "
            f"{row['model_ms_over_least']:>8.2f}"
        )
    return made


def options(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--rows", type=positive_ints, default=(512, 2048), help="rows (512,2048)", metavar="N"
    )
    parser.add_argument("--states", type=positive_int, default=50258, help="(%(default)s)")
    parser.add_argument("--width", type=positive_int, default=256, help="(%(default)s)")
    parser.add_argument(
        "--workspace", type=positive_ints, default=(8, 32, 128), help="MiB (8,32,128)", metavar="N"
    )
    parser.add_argument(
        "--dtype", type=some_of("fp32", "bf16"), default=("fp32",), help="fp32, bf16 (fp32)"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="for each table (%(default)s)")
    parser.add_argument("--threads", type=positive_int, help="(default: torch's own choice)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to check that it runs")
    parser.add_argument("--json", metavar="FILE", type=output_file, help="write every figure")
    args = parser.parse_args(argv)
    if args.quick:
        args.rows, args.states, args.width, args.workspace = (64,), 10_000, 16, (1,)
        args.seconds = 0.1
    return args


def main(argv: Sequence[str]) -> int:
    """Run the command; its exit status."""
    args = options(argv)
    if reason := cpp.unavailable():
        print(f"the cuts are those of the C++ backend, and {reason}", file=sys.stderr)
        return 2
    if args.threads:
        torch.set_num_threads(args.threads)
    meter = make_meter(torch.device("cpu"), evict=not args.quick)
    budget = Budget(rounds=2 if args.quick else 15, seconds=args.seconds)
    found: list[dict[str, Any]] = []
    for dtype in args.dtype:
        for rows in args.rows:
            p = make_head(torch.device("cpu"), rows, args.states, args.width, DTYPES[dtype])
            for mib in args.workspace:
                found.append({"dtype": dtype, **measure(p, mib << 20, meter, budget)})
                print("\n".join(lines_of(found[-1])), flush=True)
                if args.json:
                    write_json(args.json, {"environment": provenance(), "heads": found})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
