"""Settings of the Triton row kernels, timed on this GPU: rows for kernels/settings.py.

    python -m benchmarks.studies.row_settings --json settings.json
    python -m benchmarks.studies.row_settings --compile-only sm_90     # no GPU: do all compile?

Every candidate (16-byte loads of a thread, warps, limit of registers) of every kind of call is
compiled first, by as many processes as there are cores, into Triton's cache. Then they are timed in
turn, each from a cold cache. The study prints the fastest settings of each kind ("lines" in the
JSON file; "cases" has every time). The file is written anew after every case. The settings of 1,000
states belong to the rule for rows up to SHORT, not to the table.
"""

import functools
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures import TimeoutError as TooLate
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch

from benchmarks.harness.command import make_parser, output_file, positive_int, write_json
from benchmarks.harness.config import DTYPES
from benchmarks.harness.measuring import Meter, make_meter, median_ms
from benchmarks.studies.row_calls import LARGE, MASKED, SHAPE, SMALL, RowCall, all_calls, call_of

#: 16-byte loads of a thread in a block, and warps of a program.
VECTORS = {LARGE: (2, 4), SMALL: (1, 2, 4)}
WARPS = {LARGE: (2, 4, 8), SMALL: (1, 2, 4)}
#: A limit of registers at which nothing spills.
MANY_REGISTERS = 128


class Candidate(NamedTuple):
    """16-byte loads of a thread in a block, warps of a program, and the most registers of a thread
    (None on GPUs whose compiler knows no limit).
    """

    vectors: int
    warps: int
    registers: int | None

    def __str__(self) -> str:
        return f"Settings{tuple(self)!r}"


class Kind(NamedTuple):
    """A kind of call in kernels/settings.py, the bytes of a score, and its settings there."""

    name: str
    bytes: int
    settings: Candidate


def with_settings(call: Callable[[], object], candidate: Candidate | None, size: int) -> Kind:
    """Run a call with a candidate's settings, or (None) with those of ``settings.plan``.

    ``size``: bytes of a score.
    """
    from sedd_fast.kernels import settings

    original, seen = settings.plan, []

    def plan(kind: str, *rest: Any) -> Any:
        made = original(kind, *rest)
        seen.append(Kind(kind, size, candidate_of(made.options)))
        return made if candidate is None else replaced(made, candidate)

    with mock.patch.object(settings, "plan", plan):
        call()
    return seen[0]


def candidate_of(options: dict[str, Any]) -> Candidate:
    """The settings in the options of a launch."""
    block = options["BLOCK"]
    return Candidate(block.states // block.unit, options["num_warps"], options.get("maxnreg"))


def replaced(made: Any, candidate: Candidate) -> Any:
    """The plan of a kernel with the candidate's settings."""
    from sedd_fast.kernels import settings

    block = settings.block(candidate.vectors, candidate.warps, made.options["BLOCK"].vec)
    changed = {"BLOCK": block, "num_warps": candidate.warps}
    if candidate.registers is not None:
        changed["maxnreg"] = candidate.registers
    return made._replace(options={**made.options, **changed}, smallest=block.states)


def candidates(case: RowCall, kind: Kind) -> list[Candidate]:
    """The present settings first, then every number of loads and warps, each with the present limit
    of registers and with a high one.
    """
    limit = kind.settings.registers
    limits = dict.fromkeys((limit,) if limit is None else (limit, MANY_REGISTERS))
    every = itertools.product(VECTORS[case.vocab], WARPS[case.vocab], limits)
    return list(dict.fromkeys((kind.settings, *(Candidate(*one) for one in every))))


# --- compiling ------------------------------------------------------------------------------------


def only_compile(capability: int) -> None:
    """Make every launch compile for a GPU of that capability and do nothing else."""
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


def compile_one(case: RowCall, candidate: Candidate | None) -> Kind:
    """Compile one candidate of a call; the kind of the call."""
    return with_settings(call_of(case, "meta"), candidate, case.size)


def compile_all(
    cases: list[RowCall], capability: int, seconds: float | None
) -> dict[RowCall, list[Candidate]]:
    """The candidates of every case that compile in time; failures are printed."""
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
    pool: ProcessPoolExecutor, jobs: list[tuple[RowCall, Any]], seconds: float | None
) -> dict[tuple[RowCall, Any], Kind]:
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
        print(
            f"{len(jobs) - len(done)} candidates are not compiled in {seconds} s: left out",
            file=sys.stderr,
        )
    for future in futures:
        future.cancel()  # compiling would disturb the timing that follows
    return done


# --- timing ---------------------------------------------------------------------------------------


def times(case: RowCall, compiled: list[Candidate]) -> dict[str, Any]:
    """Median milliseconds of every candidate, and of a copy of the scores."""
    meter, call = make_meter(torch.device("cuda")), call_of(case, "cuda")
    copied = milliseconds_of_a_copy(meter, DTYPES[case.dtype], case.vocab)
    kind, found = with_settings(call, None, case.size), []
    for candidate in compiled:
        try:
            run = functools.partial(with_settings, call, candidate, case.size)
            run()
            taken = median_ms(meter, run)
        except RuntimeError as error:  # it exceeds a resource of a multiprocessor
            print(f"{case}: {candidate} does not run: {error}", file=sys.stderr)
        else:
            found.append({"settings": str(candidate), "ms": taken})
    rows = 1.0 if case.graph == "uniform" else MASKED
    floor = copied / 2 * (rows + ("gradient" in case.form))
    about = {"case": str(case), "kind": [kind.name, kind.bytes], "small": case.vocab == SMALL}
    return {**about, "floor_ms": floor, "candidates": found}


def milliseconds_of_a_copy(meter: Meter, dtype: torch.dtype, vocab: int) -> float:
    """The time to read and write scores of that size."""
    source = torch.empty((*SHAPE, vocab), dtype=dtype, device="cuda").normal_()
    target = torch.empty_like(source)
    return median_ms(meter, lambda: target.copy_(source))


def case_line(case: dict[str, Any]) -> str:
    """The line of a case: its time with the present settings, and with the best."""
    best = min(case["candidates"], key=lambda c: c["ms"])["settings"]
    return f"{case['case']}: {gain(case, best)} with {best}"


def gain(case: dict[str, Any], chosen: str) -> str:
    """Milliseconds with the present settings and with the chosen ones, and their bandwidth."""
    ms, first = {c["settings"]: c["ms"] for c in case["candidates"]}, case["candidates"][0]["ms"]
    share = case["floor_ms"] / ms[chosen]
    return f"{first:.3f} ms as it is, {ms[chosen]:.3f} ({share:.2f} of copy)"


def table_rows(cases: list[dict[str, Any]]) -> Iterator[str]:
    """The fastest settings of each kind: ``"uniform_loss": {2: Settings(...)},  # gain``.

    A kind has several cases; its settings minimise the product of their times over the best ones.
    """
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
        chosen = min(common, key=slower.__getitem__)
        notes = [f"{SMALL:,} states"] * small + [gain(case, chosen) for case in of]
        yield f'    "{name}": {{{size}: {chosen}}},  # {"; ".join(notes)}'


def names_of(case: dict[str, Any]) -> set[str]:
    """The candidates of a case that were timed."""
    return {candidate["settings"] for candidate in case["candidates"]}


def main() -> int:
    """Run the command; its exit status."""
    parser = make_parser(__doc__)
    parser.add_argument("--json", metavar="FILE", type=output_file, help="write every time")
    parser.add_argument("--compile-only", metavar="sm_N", help="compile for that GPU, time nothing")
    parser.add_argument(
        "--cases",
        type=positive_int,
        metavar="N",
        help="measure only the first N cases (default: all)",
    )
    parser.add_argument(
        "--seconds", type=float, default=80, help="time limit of the compilation (%(default)s)"
    )
    args = parser.parse_args()
    cases = list(all_calls())[: args.cases]
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
        found = times(case, compiled[case]) if compiled[case] else {"candidates": []}
        if found["candidates"]:
            measured.append(found)
            print(case_line(measured[-1]), flush=True)
            write(args.json, measured)
    print("\n".join(table_rows(measured)))
    return 0


def write(path: Path | None, measured: list[dict[str, Any]]) -> None:
    """Write the whole file anew."""
    if path is not None:
        write_json(path, {"lines": list(table_rows(measured)), "cases": measured})


if __name__ == "__main__":
    sys.exit(main())
