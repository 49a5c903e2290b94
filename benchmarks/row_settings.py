"""Blocks and warps of the Triton row kernels, timed on this GPU: rows for kernels/settings.py.

    python benchmarks/row_settings.py --json settings.json
    python benchmarks/row_settings.py --compile-only sm_90     # no GPU: do all compile?

Every candidate of every kind of call is compiled first, by as many processes as there are cores,
into Triton's cache; then they are timed in turn, each from a cold cache. What is printed, and
"lines" in the JSON file, are the rows of ``settings.TABLE`` that were fastest; "cases" has every
time. The file is written anew after every case.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures import TimeoutError as TooLate
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from settings import DTYPES
from torch import Tensor

from sedd_fast.backends import registry
from sedd_fast.backends.inputs import Entropy, Reverse, Sums

SHAPE = (8, 1024)
MASKED = 0.35
#: Vocabularies: the one of GPT-2, and one whose rows a warp reads alone, as in settings.TABLE.
LARGE, SMALL = 50257, 1000
#: 16-byte loads of a thread in a block, and warps of a program.
VECTORS = (1, 2, 4)
WARPS = {LARGE: (2, 4, 8), SMALL: (1, 2, 4)}
TIMINGS = 12


@dataclass(frozen=True)
class Case:
    """One kind of call: what is launched, on which graph, dtype and vocabulary."""

    form: str
    graph: str
    dtype: str
    vocab: int

    def __str__(self) -> str:
        return f"{self.graph} {self.form}, {self.dtype}, {self.vocab}"


FORMS = ("loss", "gradient", "step", "sums", "sums gradient")


def all_cases() -> Iterator[Case]:
    """The most important ones first: should time run out, the rest keeps its settings."""
    for vocab, dtype in ((LARGE, "bf16"), (LARGE, "fp32"), (SMALL, "bf16")):
        for form in FORMS:
            for graph in ("absorbing", "uniform") if "sums" not in form else ("uniform",):
                yield Case(form, graph, dtype, vocab)


# --- calls ----------------------------------------------------------------------------------------


def call_of(case: Case, device: str, name: str = "triton") -> Callable[[], object]:
    """The call on a backend, of random tensors; on "meta" without memory."""
    backend = registry.module(name)
    scores, tokens = operands(case, device)
    x_0 = tokens["x_0"]
    sigma = torch.full(SHAPE[:1], 0.7, dtype=torch.float64, device=device)
    weight = torch.ones(SHAPE, dtype=torch.float64, device=device)
    process = (case.graph, case.vocab)
    entropy = Entropy(sigma, tokens["x_t"], x_0, weight, *process)
    reverse = Reverse(tokens["x_t"], sigma, sigma * 0.02, tokens["u"], *process, "analytic")
    sums = Sums(tokens["x_t"], x_0, weight, weight, "affine", *process)
    calls: dict[str, Callable[[], object]] = {
        "loss": lambda: backend.score_entropy(scores, entropy),
        "gradient": lambda: backend.score_entropy_with_grad(scores, entropy, 1.0),
        "step": lambda: backend.reverse_step(scores, reverse),
        "sums": lambda: backend.row_sums(scores, sums),
        "sums gradient": lambda: backend.row_sums_backward(weight, weight, scores, sums),
    }
    return calls[case.form]


def operands(case: Case, device: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Scores, and tokens of which MASKED are noised."""
    dim = case.vocab + (case.graph == "absorbing")
    scores = torch.empty((*SHAPE, dim), dtype=DTYPES[case.dtype], device=device)
    x_0 = torch.zeros(SHAPE, dtype=torch.int64, device=device)
    x_t, u = x_0.clone(), torch.empty((*SHAPE, 2), dtype=torch.float64, device=device)
    if device != "meta":
        scores.normal_(-8 if case.graph == "absorbing" else 0, 1.5)
        x_0.random_(case.vocab)
        u.uniform_()
        other = case.vocab if case.graph == "absorbing" else (x_0 + 1) % case.vocab
        x_t = torch.where(torch.rand(SHAPE, device=device) < MASKED, other, x_0)
    return scores, {"x_t": x_t, "x_0": x_0, "u": u}


class OneRow:
    """In place of the table: one candidate for every call, and the kind that was asked for."""

    def __init__(self, candidate: Any, table: Any) -> None:
        self.candidate, self.table, self.kind = candidate, table, None

    def __getitem__(self, kind: tuple[str, int]) -> tuple[tuple[float, Any], ...]:
        self.kind = kind
        return self.table[kind] if self.candidate is None else ((math.inf, self.candidate),)


def with_settings(call: Callable[[], object], candidate: Any) -> tuple[str, int]:
    """Call it with a candidate, or with those of the table where it is None: the kind of call."""
    from sedd_fast.kernels import settings

    row = OneRow(candidate, settings.TABLE)
    with mock.patch.object(settings, "TABLE", row):
        call()
    assert row.kind is not None
    return row.kind


def candidates(case: Case, kind: tuple[str, int]) -> list[Any]:
    """The table's settings first, then every block and warps; with its limit of registers and,
    where there is one, with none.
    """
    from sedd_fast.kernels import settings

    states = case.vocab + (case.graph == "absorbing")
    row = next(row for most, row in settings.TABLE[kind] if states <= most)
    limits = [{}] if not hasattr(row, "registers") else [{}, {"registers": 128}]
    found = [row]
    for limit in limits:
        for vectors in VECTORS:
            for warps in WARPS[case.vocab]:
                block = 32 * warps * vectors * 16 // kind[1]
                found.append(row._replace(block=block, warps=warps, **limit))
    return list(dict.fromkeys(found))


# --- compiling ------------------------------------------------------------------------------------


def only_compile(capability: int) -> None:
    """Launches compile for a GPU of that capability and do nothing: no process takes GPU memory."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    target = GPUTarget("cuda", capability, 32)
    answers = {"get_current_target": target, "get_current_device": 0, "get_current_stream": 0}
    calls = {name: lambda *_, answer=answer: answer for name, answer in answers.items()}
    driver.set_active(SimpleNamespace(**calls))
    original = JITFunction.run

    def run(this: Any, *args: Any, grid: Any, warmup: bool, **given: Any) -> None:
        original(this, *args, grid=grid, warmup=True, **given)

    JITFunction.run = run


def compile_one(case: Case, candidate: Any) -> tuple[str, int]:
    """The kind of call that it is."""
    return with_settings(call_of(case, "meta"), candidate)


def compile_all(cases: list[Case], capability: int, seconds: float | None) -> dict[Case, list[Any]]:
    """Candidates of every case that compile; what is late is left out, what fails is said."""
    pool = ProcessPoolExecutor(
        os.cpu_count(), get_context("spawn"), initializer=only_compile, initargs=(capability,)
    )
    try:
        kinds = compiled_of(pool, [(case, None) for case in cases], None)
        wanted = {case: candidates(case, kind) for (case, _), kind in kinds.items()}
        jobs = [(case, candidate) for case, some in wanted.items() for candidate in some]
        done = compiled_of(pool, jobs, seconds)
    finally:
        pool.shutdown(cancel_futures=True)
    return {case: [c for c in wanted.get(case, []) if (case, c) in done] for case in cases}


def compiled_of(
    pool: ProcessPoolExecutor, jobs: list[tuple[Case, Any]], seconds: float | None
) -> dict[tuple[Case, Any], tuple[str, int]]:
    """The kind of call of every job that was compiled in time."""
    futures, done = {pool.submit(compile_one, *job): job for job in jobs}, {}
    try:
        for future in as_completed(futures, timeout=seconds):
            case, candidate = futures[future]
            if error := future.exception():
                print(f"{case}: {candidate} does not compile: {error}", file=sys.stderr)
            else:
                done[case, candidate] = future.result()
    except TooLate:
        print(f"{len(jobs) - len(done)} are not compiled in {seconds} s: left out", file=sys.stderr)
    for future in futures:
        future.cancel()  # what is compiled while others are timed would disturb them
    return done


# --- timing ---------------------------------------------------------------------------------------


def times(case: Case, compiled: list[Any]) -> dict[str, Any]:
    """Median milliseconds of every candidate, and of a copy of the scores."""
    from measuring import make_meter

    meter, call = make_meter(torch.device("cuda")), call_of(case, "cuda")
    copied = milliseconds_of_a_copy(meter, DTYPES[case.dtype], case.vocab)
    kind, found = with_settings(call, None), []
    for candidate in compiled:
        try:
            with_settings(call, candidate)
            taken = [meter.time(lambda c=candidate: with_settings(call, c)) for _ in range(TIMINGS)]
        except RuntimeError as error:  # too much of something for a multiprocessor
            print(f"{case}: {candidate} does not run: {error}", file=sys.stderr)
        else:
            found.append({"settings": repr(candidate), "ms": median(taken)})
    rows = 1.0 if case.graph == "uniform" else MASKED
    floor = copied / 2 * (rows + ("gradient" in case.form))
    about = {"case": str(case), "kind": list(kind), "small": case.vocab == SMALL}
    return {**about, "floor_ms": floor, "candidates": found}


def milliseconds_of_a_copy(meter: Any, dtype: torch.dtype, vocab: int) -> float:
    """Of scores of that size, read and written."""
    source = torch.empty((*SHAPE, vocab), dtype=dtype, device="cuda").normal_()
    target = torch.empty_like(source)
    return median(meter.time(lambda: target.copy_(source)) for _ in range(TIMINGS))


def lines_of(cases: list[dict[str, Any]]) -> list[str]:
    """A line a case, then the rows of the table: the settings best for all cases of a kind."""
    lines = []
    for case in cases:
        best, first = min(case["candidates"], key=lambda c: c["ms"]), case["candidates"][0]
        share = case["floor_ms"] / best["ms"]
        lines.append(
            f"{case['case']}: {first['ms']:.3f} ms as it is, {best['ms']:.3f} ({share:.2f} of copy)"
            f" with {best['settings']}"
        )
    return [*lines, *table_rows(cases)]


def table_rows(cases: list[dict[str, Any]]) -> Iterator[str]:
    """``("loss", 2): Settings(...)``, of the least product of times over the best of its case."""
    kinds = dict.fromkeys((*case["kind"], case["small"]) for case in cases)
    for name, size, small in kinds:
        of = [c for c in cases if (*c["kind"], c["small"]) == (name, size, small)]
        slower: dict[str, float] = {}
        for case in of:
            best = min(candidate["ms"] for candidate in case["candidates"])
            for candidate in case["candidates"]:
                ratio = math.log(candidate["ms"] / best)
                slower[candidate["settings"]] = slower.get(candidate["settings"], 0.0) + ratio
        common = [s for s in slower if all(s in names_of(case) for case in of)]
        states = "up to 1024 states" if small else "any"
        chosen = min(common, key=slower.__getitem__)
        yield f'    ("{name}", {size}): {chosen},  # {states}'


def names_of(case: dict[str, Any]) -> set[str]:
    """The candidates that were timed."""
    return {candidate["settings"] for candidate in case["candidates"]}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE", help="write every time")
    parser.add_argument("--compile-only", metavar="sm_N", help="compile for that GPU, time nothing")
    parser.add_argument("--cases", type=int, help="the first so many (default all)")
    parser.add_argument("--seconds", type=float, default=80, help="for compiling (%(default)s)")
    args = parser.parse_args()
    cases = list(all_cases())[: args.cases]
    if args.compile_only:
        found = compile_all(cases, int(args.compile_only.removeprefix("sm_")), None)
        print(f"{sum(map(len, found.values()))} candidates of {len(found)} cases compile")
        return 0
    if not torch.cuda.is_available():
        print("torch sees no CUDA device; --compile-only sm_90 needs none", file=sys.stderr)
        return 2
    major, minor = torch.cuda.get_device_capability()
    compiled, measured = compile_all(cases, 10 * major + minor, args.seconds), []
    for case in cases:
        if compiled[case]:
            measured.append(times(case, compiled[case]))
            print(lines_of(measured[-1:])[0], flush=True)
            write(args.json, measured)
    print("\n".join(table_rows(measured)))
    return 0


def write(path: str | None, measured: list[dict[str, Any]]) -> None:
    """The whole file anew."""
    if path is not None:
        record = {"lines": lines_of(measured), "cases": measured}
        Path(path).expanduser().write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    sys.exit(main())
