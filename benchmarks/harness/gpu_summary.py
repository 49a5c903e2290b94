"""The short summary that ``on_gpu.py`` prints last: steps, failures, figures."""

import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.harness.gpu_steps import STEPS

#: Limits in characters: of the summary, of all failures, of one failure.
LONGEST, FAILURES, FAILURE = 11_500, 4_500, 420
#: Other times of a contender, where run.py measures them.
FORMS = ("replay", "wall")
#: Most lines of figures for one step.
FIGURES = 30


def summary(record: dict[str, Any]) -> str:
    """The whole summary."""
    steps = record["steps"]
    head = [f"=== {record['gpu']}, commit {record['commit']}", *step_lines(steps)]
    failures = cut("\n".join(failure_lines(steps)), FAILURES)
    figures = "\n".join(figure_lines(steps))
    text = "\n".join(filter(None, ["\n".join(head), failures]))
    return cut("\n".join(filter(None, [text, figures])), LONGEST)


def cut(text: str, most: int) -> str:
    """Whole lines up to ``most`` characters; the last line says that there are more."""
    if len(text) <= most:
        return text
    kept = text[: most - 40].rpartition("\n")[0]
    return f"{kept}\n... (the rest is in the results)"


def status_of(found: dict[str, Any]) -> str:
    """How a step ended, in words."""
    named = {0: "done", 124: "CUT OFF"}
    return named.get(found["status"], f"FAILED ({found['status']})")


def step_lines(steps: dict[str, Any]) -> Iterable[str]:
    """One line for each step: how it ended, its seconds, its tests; below it why it failed."""
    for step, found in steps.items():
        limit = STEPS[step].seconds
        line = f"{step:10} {status_of(found):12} {found['seconds']:6.1f} of {limit} s"
        if tests := found.get("tests"):
            counts = ("passed", "failed", "skipped")
            line += "; " + ", ".join(f"{tests[name]} {name}" for name in counts)
        yield line
        if reason := found.get("reason"):
            yield f"      {reason}"[:FAILURE]


# --- tests ----------------------------------------------------------------------------------------


def tests_of(path: Path) -> dict[str, Any] | None:
    """Counts of a JUnit report, and its distinct failures, the most frequent first."""
    try:
        cases = list(ET.parse(path).iter("testcase"))
    except (OSError, ET.ParseError):
        return None
    reasons: Counter[str] = Counter()
    counts, distinct = {"passed": 0, "failed": 0, "skipped": 0}, {}
    for case in cases:
        wrong = next((e for e in case if e.tag in ("failure", "error")), None)
        if wrong is None:
            skipped = case.find("skipped")
            counts["passed" if skipped is None else "skipped"] += 1
            if skipped is not None:
                reasons[skipped.get("message") or ""] += 1
            continue
        counts["failed"] += 1
        test = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        key = re.sub(r"[\d.]+(e[+-]?\d+)?", "#", first_line(wrong))
        entry = distinct.setdefault(key, {"count": 0, "tests": {}, "said": said(wrong)})
        entry["count"] += 1
        entry["tests"].setdefault(test.partition("[")[0], test)
    failures = sorted(distinct.values(), key=lambda entry: -entry["count"])
    return {**counts, "failures": failures, "skips": dict(reasons.most_common(4))}


def first_line(wrong: ET.Element) -> str:
    """The first line of what was raised."""
    return (wrong.get("message") or wrong.text or "").strip().partition("\n")[0]


def said(wrong: ET.Element) -> str:
    """The first lines of what was raised, and where."""
    message = (wrong.get("message") or "").strip().splitlines()[:3]
    places = re.findall(r"^(\S+\.py:\d+): ", wrong.text or "", re.MULTILINE)
    return " | ".join([*message, *places[-1:]])


def failure_lines(steps: dict[str, Any]) -> Iterable[str]:
    """Every distinct failure once."""
    for step, found in steps.items():
        failures = (found.get("tests") or {}).get("failures", [])
        if failures:
            yield f"--- {step}: {len(failures)} distinct failures"
        for entry in failures:
            yield failure_line(entry)
        for reason, count in (found.get("tests") or {}).get("skips", {}).items():
            yield f"{count:3} skipped: {reason}"[:FAILURE]


def failure_line(entry: dict[str, Any]) -> str:
    """How often a failure occurred, its first test, what was raised and where, other tests."""
    first, *others = entry["tests"].values()
    line = f"{entry['count']:3} x {first}: {entry['said']}"[:FAILURE]
    if others:
        names = [test.partition("[")[0].partition("::")[2] for test in others]
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        line += f"\n      also in {', '.join(names[:4])}{more}"
    return line


# --- figures --------------------------------------------------------------------------------------


def figure_lines(steps: dict[str, Any]) -> Iterable[str]:
    """The figures of every part of every step."""
    for step, found in steps.items():
        lines = [
            line for part in found.values() if isinstance(part, dict) for line in lines_of(part)
        ]
        if lines:
            yield f"--- {step}"
            yield from lines[:FIGURES]
        if len(lines) > FIGURES:
            yield f"... {len(lines) - FIGURES} more in the results"


def lines_of(part: dict[str, Any]) -> Iterable[str]:
    """The lines that a study has formed itself, or one line for every case of run.py."""
    if "results" in part:
        yield from case_lines(part["results"])
        yield from (f"note: {remark}"[:200] for remark in part.get("remarks", []))
    else:
        yield from part.get("lines", [])


def case_lines(rows: list[dict[str, Any]]) -> Iterable[str]:
    """Milliseconds of every contender, and in brackets the floor divided by them.

    The floor is the fewest bytes at the bandwidth of a copy, or the bare matrix products. What is
    divided for ours under autograd is a floor of its own, which is not printed.
    """
    cases: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        times = row["regimes"].get("cuda")
        if times is None:
            continue
        key = (row["suite"], row["operation"], row["shape"], row["dtype"])
        floor = times.get("floor_ms")
        start = "" if floor is None else f"floor {floor:.3g} ms"
        entries = cases.setdefault(key, [start] if start else [])
        entries.append(entry(row, times, floor))
    for (_, operation, _, dtype), entries in cases.items():
        yield f"{operation}, {dtype}: " + "; ".join(entries)


def entry(row: dict[str, Any], times: dict[str, Any], floor: float | None) -> str:
    """A contender's times: the eager call, its replay as a CUDA graph, its wall time."""
    name = row["implementation"].removeprefix("ours, ").replace("original formulas", "").strip(", ")
    share = f" ({floor / times['median_ms']:.2f})" if floor else ""
    others = [f", {form} {times[form]['median_ms']:.3g}" for form in FORMS if times.get(form)]
    return f"{name} {times['median_ms']:.3g}{share}{''.join(others)}"
