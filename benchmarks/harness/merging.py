"""The results of a run, from what its processes measured.

The records of one contender from several processes become one for each instruction set: its times
in every memory regime, its peak extra memory, its cycles per touched element, and its ratios to the
floor, to the eager formulas and to torch.compile. Every ratio compares times of one process. Peak
memory does not depend on the instruction set; one process measures it for all.
"""

from statistics import median
from typing import Any

from benchmarks.harness.clock import cycles_per_element

Record = dict[str, Any]

#: What names a case; with the instruction set and the implementation, a row of the results.
KEYS = ("suite", "operation", "shape", "dtype")
CASE = ("instruction_set", *KEYS)
SIZES = ("floor_bytes", "tensor_bytes", "touched", "at", "returned_bytes", "logits_bytes")
TIMES = ("median_ms", "p20_ms", "p80_ms", "calls", "floor_ms", "yardsticks_ms")
OPTIONAL = ("replay", "wall", "clock_hz")  # the first two on a GPU only, the third on a CPU


def merge(parts: list[Record], command: str) -> Record:
    """The results: "environment", "remarks" and a row for every contender and instruction set.

    Each part is what one process measured: "regime", "instruction_set" (None on a GPU and without
    the C++ kernels), "torch_uses", "environment", "remarks" and "records".
    """
    rows: dict[tuple[str | None, ...], Record] = {}
    for part in parts:
        for record in part["records"]:
            if "median_ms" in record:
                row = rows.setdefault((part["instruction_set"], *name_of(record)), {})
                row["instruction_set"] = part["instruction_set"]
                row |= {k: record[k] for k in (*KEYS, "implementation", "kind", *SIZES)}
                times = {k: record[k] for k in TIMES} | {k: record.get(k) for k in OPTIONAL}
                row.setdefault("regimes", {})[part["regime"]] = times
    found = list(rows.values())
    add_memory(found, parts)
    environment = parts[0]["environment"] | {"command": command}
    for row in found:
        rivals = [r for r in found if all(r[k] == row[k] for k in CASE)]
        add_ratios(row, rivals, environment.get("threads", 1))
    environment["instruction_sets"] = sets_of(parts, found)
    remarks = list(dict.fromkeys(text for part in parts for text in part["remarks"]))
    return {"environment": environment, "remarks": remarks, "results": found}


def name_of(record: Record) -> tuple[str, ...]:
    """What distinguishes a record from others of one process."""
    return tuple(record[k] for k in (*KEYS, "implementation"))


def add_memory(rows: list[Record], parts: list[Record]) -> None:
    """Add to every row: extra_bytes; extra_tensors, the same over the bytes of its tensor; and
    besides_bytes, the same without the gradients that are returned.
    """
    records = [record for part in parts for record in part["records"]]
    peaks = {name_of(r): r["extra_bytes"] for r in records if r.get("extra_bytes") is not None}
    for row in rows:
        if (extra := peaks.get(name_of(row))) is not None:
            row["extra_bytes"] = extra
            if row["tensor_bytes"]:
                row["extra_tensors"] = extra / row["tensor_bytes"]
            if row["returned_bytes"] is not None:
                row["besides_bytes"] = max(0, extra - row["returned_bytes"])


def add_ratios(row: Record, rivals: list[Record], threads: int) -> None:
    """Add to every regime of ``row``: over_floor, faster_than_eager, faster_than_compile and
    faster_than_best_compile, the last also against the rewritten formulas; and, of our contenders,
    cycles, those per touched element.
    """
    for regime, times in row["regimes"].items():
        mine = times["median_ms"]

        def fastest(*kinds: str, of: str = regime) -> float | None:
            found = [
                r["regimes"][of]["median_ms"]
                for r in rivals
                if r["kind"] in kinds and of in r["regimes"]
            ]
            return min(found, default=None)

        def over(other: float | None, by: float = mine) -> float | None:
            return None if other is None else other / by

        floor = times["floor_ms"]
        times["over_floor"] = mine / floor if floor else None
        times["faster_than_eager"] = over(fastest("eager"))
        times["faster_than_compile"] = over(fastest("compile"))
        times["faster_than_best_compile"] = over(fastest("compile", "rewritten"))
        elements = row["touched"] if row["kind"] == "ours" else None
        times["cycles"] = cycles_per_element(mine, threads, times["clock_hz"], elements)


def sets_of(parts: list[Record], rows: list[Record]) -> list[Record]:
    """For each instruction set: its name, what torch uses beside it, the clock in GHz (the median
    over the cases), and the bandwidths of every regime.
    """
    found: dict[str | None, Record] = {}
    for part in parts:
        name = part["instruction_set"]
        own = [row for row in rows if row["instruction_set"] == name]
        clocks = [t["clock_hz"] for row in own for t in row["regimes"].values() if t["clock_hz"]]
        found[name] = {
            "name": name,
            "torch_uses": part["torch_uses"],
            "clock_ghz": median(clocks) / 1e9 if clocks else None,
            "bandwidth": bandwidths(own),
        }
    return list(found.values())


def bandwidths(rows: list[Record]) -> dict[str, dict[str, float]]:
    """For each regime the bandwidth of a copy and of a read of the scores, in GB/s, and how many
    times longer a copy takes that allocates its result. Medians over the cases.
    """
    found: dict[str, dict[str, float]] = {}
    timed = [row for row in rows if row["tensor_bytes"] and row["dtype"] != "int64"]
    for regime in timed[0]["regimes"] if timed else ():
        pairs = [
            (row["tensor_bytes"] / 1e6, row["regimes"][regime]["yardsticks_ms"]) for row in timed
        ]
        found[regime] = {
            "copy_gb_s": median([2 * size / times["copy"] for size, times in pairs]),
            "read_gb_s": median([size / times["read"] for size, times in pairs]),
            "allocating": median([times["clone"] / times["copy"] for _, times in pairs]),
        }
    return found
