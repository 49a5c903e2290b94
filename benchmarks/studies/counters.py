"""Hardware counters of the GPU kernels, read by Nsight Compute (ncu).

    python benchmarks/counters.py --json counters.json

Of the loss, the loss with its gradient, a step of both graphs and one block of a head, in bf16, on
the backends "triton" and "cuda": the share of the peak of DRAM and of issue slots, microseconds
(at the clocks as they are), registers, and the three commonest reasons for which warps stall, in
cycles between two instructions of a warp. Without ncu one line says so.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

BACKENDS = ("triton", "cuda")
#: The kernels launched once each, in this order; then the block of a head, on Triton.
ROWS = (
    ("absorbing", "loss"),
    ("absorbing", "gradient"),
    ("absorbing", "step"),
    ("uniform", "loss"),
    ("uniform", "gradient"),
    ("uniform", "step"),
)
DRAM = "dram__throughput.avg.pct_of_peak_sustained_elapsed"
ISSUE = "smsp__issue_active.avg.pct_of_peak_sustained_active"
TIME, REGISTERS = "gpu__time_duration.sum", "launch__registers_per_thread"
WARPS = "sm__warps_active.avg.pct_of_peak_sustained_active"
STALL = re.compile(r"smsp__average_warps_issue_stalled_(\w+)_per_issue_active\.ratio")
#: No stalls: what was issued, and warps that were ready but not picked.
BUSY = ("selected", "not_selected")
SECONDS = 60
MICROSECONDS = {"n": 1e-3, "u": 1.0, "m": 1e3, "s": 1e6}


def command(ncu: str, backend: str) -> list[str]:
    """The profiler around this script; it reads only between the two marks of ``launch``."""
    return [
        ncu, "--csv", "--page", "raw", "--clock-control", "none", "--profile-from-start", "off",
        "--section", "WarpStateStats", "--metrics", ",".join((DRAM, ISSUE, TIME, REGISTERS, WARPS)),
        "--kernel-name", "regex:score_entropy|reverse_step",
        sys.executable, __file__, "--launch", backend,
    ]  # fmt: skip


def launch(backend: str) -> None:
    """Every call twice, then once to be read."""
    for call in launches(backend):
        call()
        call()
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        call()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def launches(backend: str) -> Iterable[Callable[[], object]]:
    """The calls; each is made when asked for, so that one call's tensors are there at a time."""
    from benchmarks.studies.row_calls import LARGE, Case, call_of

    for graph, form in ROWS:
        yield call_of(Case(form, graph, "bf16", LARGE), "cuda", backend)
    if backend == "triton":
        yield head_block()


def head_block() -> Callable[[], object]:
    """Loss and gradients of a head whose vocabulary is one block of 5,632 states."""
    import sedd_fast as sf

    graph, on = sf.Uniform(5632), {"device": "cuda", "dtype": torch.bfloat16}
    hidden = torch.randn(4, 1024, 768, **on, requires_grad=True)
    weight = (torch.randn(5632, 768, **on) / 28).requires_grad_()
    x_t, x_0 = torch.randint(5632, (2, 4, 1024), device="cuda").unbind()

    def call() -> object:
        with sf.use_backend("triton"):
            loss = sf.linear_score_entropy(
                hidden, weight, None, 0.7, x_t, x_0, graph, reduction="sum", workspace=128 << 20
            )
        return torch.autograd.grad(loss, (hidden, weight))

    return call


def names(backend: str, rows: list[dict[str, str]]) -> Iterable[str]:
    """What each kernel that ncu saw belongs to."""
    for number, row in enumerate(rows):
        of = " ".join(ROWS[number]) if number < len(ROWS) else "head block"
        yield f"{backend} {of}, {row.get('Kernel Name', '')[:40]}"


def parsed(said: str) -> list[dict[str, str]]:
    """The rows of ncu's raw page: a header, a row of units, a row a kernel; units under "units"."""
    lines = [line for line in said.splitlines() if line.startswith('"')]
    header = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if header is None:
        return []
    reader = list(csv.DictReader(lines[header:]))
    units, rows = reader[0], reader[1:]
    return [{**row, "time unit": units.get(TIME, "")} for row in rows]


def number(row: dict[str, str], key: str) -> float | None:
    """A value; ncu writes thousands as 1,234."""
    text = (row.get(key) or "").replace(",", "")
    try:
        return float(text)
    except ValueError:
        return None


def record_of(name: str, row: dict[str, str]) -> dict[str, Any]:
    """What is kept of a kernel."""
    stalls = {found.group(1): number(row, key) for key in row if (found := STALL.search(key))}
    stalls = {k: v for k, v in stalls.items() if v is not None and k not in BUSY}
    time = number(row, TIME)
    scale = MICROSECONDS.get(row["time unit"][:1], 1.0)
    return {
        "kernel": name, "dram_percent": number(row, DRAM), "issue_percent": number(row, ISSUE),
        "microseconds": None if time is None else time * scale,
        "registers": number(row, REGISTERS), "warps_percent": number(row, WARPS),
        "stalls": dict(sorted(stalls.items(), key=lambda item: -item[1])),
    }  # fmt: skip


def line_of(record: dict[str, Any]) -> str:
    """triton absorbing loss: 88 % of DRAM, 41 % of issue slots, ..."""
    top = ", ".join(f"{name} {value:.1f}" for name, value in list(record["stalls"].items())[:3])

    def shown(key: str, words: str) -> str:
        return f"? {words}" if record[key] is None else f"{record[key]:.0f} {words}"

    return "; ".join(
        [
            f"{record['kernel']}: {shown('dram_percent', '% DRAM')}",
            shown("issue_percent", "% issue"),
            shown("microseconds", "us"),
            shown("registers", "registers"),
            shown("warps_percent", "% warps"),
            f"stalls {top or '?'}",
        ]
    )


def find_ncu() -> str | None:
    """On PATH, in CUDA's folder, or in its own."""
    places = [Path("/usr/local/cuda/bin/ncu"), *Path("/opt/nvidia").glob("nsight-compute/*/ncu")]
    return shutil.which("ncu") or next((str(path) for path in places if path.is_file()), None)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE", help="write all of it")
    parser.add_argument("--launch", choices=BACKENDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("torch sees no CUDA device", file=sys.stderr)
        return 2
    if args.launch:
        launch(args.launch)
        return 0
    if (ncu := find_ncu()) is None:
        write(args.json, ["counters are left out: ncu (Nsight Compute) is not there"], [])
        return 0
    return measure(ncu, args.json)


def measure(ncu: str, path: str | None) -> int:
    """Read and write the counters of each backend; 1 where ncu read nothing of one."""
    lines: list[str] = []
    records: list[dict[str, Any]] = []
    for backend in BACKENDS:
        try:
            done = subprocess.run(
                command(ncu, backend), capture_output=True, text=True, check=False, timeout=SECONDS
            )
            said, rows = done.stdout + done.stderr, parsed(done.stdout)
        except subprocess.TimeoutExpired:
            said, rows = f"nothing within {SECONDS} s", []
        if not rows:
            print(said[-2000:], file=sys.stderr)
            lines.append(f"{backend}: ncu read nothing: {' | '.join(said.splitlines()[-3:])[:300]}")
        found = [record_of(name, row) for name, row in zip(names(backend, rows), rows, strict=True)]
        records += found
        lines += map(line_of, found)
        write(path, lines, records)
    return 1 if any("read nothing" in line for line in lines) else 0


def write(path: str | None, lines: list[str], records: list[dict[str, Any]]) -> None:
    """The whole file anew, and what is in it."""
    print("\n".join(lines))
    if path is not None:
        record = {"lines": lines, "kernels": records}
        Path(path).expanduser().write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    sys.exit(main())
