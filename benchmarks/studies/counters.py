"""Hardware counters of the GPU kernels, read by Nsight Compute (ncu).

    python -m benchmarks.studies.counters --json counters.json

The kernels are the loss, the loss with its gradient, a step of both graphs and one block of a head,
in bf16, on the backends "triton" and "cuda". The study prints for each the percentage of peak DRAM
bandwidth and of issue slots, microseconds (at unlocked clocks), registers, and the three most
frequent stall reasons, in cycles between two instructions of a warp. Without ncu it prints a line.
"""

import argparse
import csv
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.command import ROOT, make_parser, output_file, write_json

BACKENDS = ("triton", "cuda")
#: The kernels that are launched once each, in this order; on Triton a head's block follows.
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
#: States that are no stalls: an instruction was issued, or the warp was ready but not selected.
BUSY = ("selected", "not_selected")
SECONDS = 60
MICROSECONDS = {"n": 1e-3, "u": 1.0, "m": 1e3, "s": 1e6}


def command(ncu: str, backend: str) -> list[str]:
    """The profiler around this script; it reads only between the marks that ``launch`` sets."""
    return [
        ncu, "--csv", "--page", "raw", "--clock-control", "none", "--profile-from-start", "off",
        "--section", "WarpStateStats", "--metrics", ",".join((DRAM, ISSUE, TIME, REGISTERS, WARPS)),
        "--kernel-name", "regex:score_entropy|reverse_step",
        sys.executable, "-m", "benchmarks.studies.counters", "--launch", backend,
    ]  # fmt: skip


def launch(backend: str) -> None:
    """Run every call twice, then once more between the profiler's marks."""
    for call in launches(backend):
        call()
        call()
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        call()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def launches(backend: str) -> Iterable[Callable[[], object]]:
    """The calls, each made when asked for, so that the tensors of only one exist at a time."""
    from benchmarks.studies.row_calls import LARGE, RowCall, call_of

    for graph, form in ROWS:
        yield call_of(RowCall(form, graph, "bf16", LARGE), "cuda", backend)
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
                hidden, weight, None, 0.7, x_t, x_0, graph, scale_by_sigma=False, reduction="sum",
                workspace=128 << 20,
            )  # fmt: skip
        return torch.autograd.grad(loss, (hidden, weight))

    return call


def names(backend: str, rows: list[dict[str, str]]) -> Iterable[str]:
    """A name for each kernel that ncu read."""
    for number, row in enumerate(rows):
        of = " ".join(ROWS[number]) if number < len(ROWS) else "head block"
        yield f"{backend} {of}, {row.get('Kernel Name', '')[:40]}"


def parsed(said: str) -> list[dict[str, str]]:
    """The kernels of ncu's raw page: after a header and a row of units, a row for each kernel."""
    lines = [line for line in said.splitlines() if line.startswith('"')]
    header = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if header is None:
        return []
    reader = list(csv.DictReader(lines[header:]))
    units, rows = reader[0], reader[1:]
    return [{**row, "time unit": units.get(TIME, "")} for row in rows]


def number(row: dict[str, str], key: str) -> float | None:
    """The value of a metric, or None; ncu writes thousands as 1,234."""
    text = (row.get(key) or "").replace(",", "")
    try:
        return float(text)
    except ValueError:
        return None


def record_of(name: str, row: dict[str, str]) -> dict[str, Any]:
    """The record of a kernel."""
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
    """A line: "triton absorbing loss: 88 % DRAM; 41 % issue; ..."."""
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
    """The path of ncu: on PATH, in the CUDA toolkit, or in a folder of its own; else None."""
    places = [Path("/usr/local/cuda/bin/ncu"), *Path("/opt/nvidia").glob("nsight-compute/*/ncu")]
    return shutil.which("ncu") or next((str(path) for path in places if path.is_file()), None)


def main() -> int:
    """Run the command; its exit status."""
    parser = make_parser(__doc__)
    parser.add_argument("--json", metavar="FILE", type=output_file, help="write all counters")
    parser.add_argument("--launch", choices=BACKENDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("torch sees no CUDA device", file=sys.stderr)
        return 2
    if args.launch:
        launch(args.launch)
        return 0
    if (ncu := find_ncu()) is None:
        write(args.json, ["counters are left out: ncu (Nsight Compute) is not installed"], [])
        return 0
    return measure(ncu, args.json)


def last_error(said: str) -> str:
    """The last line that names an error, of what a process has printed."""
    errors = [line for line in said.splitlines() if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (errors or said.splitlines() or [""])[-1][:300]


def measure(ncu: str, path: Path | None) -> int:
    """Read and write the counters of each backend; 1 where ncu reads nothing for one."""
    lines: list[str] = []
    records: list[dict[str, Any]] = []
    for backend in BACKENDS:
        try:
            done = subprocess.run(
                command(ncu, backend),
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
                timeout=SECONDS,
            )
            said, rows = done.stdout + done.stderr, parsed(done.stdout)
            if done.returncode:
                print(said[-2000:], file=sys.stderr)
                lines.append(f"{backend}: stopped early: {last_error(said)}")
        except subprocess.TimeoutExpired:
            said, rows = f"nothing within {SECONDS} s", []
        if not rows:
            print(said[-2000:], file=sys.stderr)
            lines.append(f"{backend}: ncu read nothing: {' | '.join(said.splitlines()[-3:])[:300]}")
        found = [record_of(name, row) for name, row in zip(names(backend, rows), rows, strict=True)]
        records += found
        lines += map(line_of, found)
        write(path, lines, records)
    return 1 if any("read nothing" in line or "stopped early" in line for line in lines) else 0


def write(path: Path | None, lines: list[str], records: list[dict[str, Any]]) -> None:
    """Print the lines, and write the whole file anew."""
    print("\n".join(lines))
    if path is not None:
        write_json(path, {"lines": lines, "kernels": records})


if __name__ == "__main__":
    sys.exit(main())
