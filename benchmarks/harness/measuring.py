"""How things are timed: interleaved, from a cold cache, with medians; and their peak memory.

A meter times one call on one kind of device. Before every timed call it evicts the caches by
reading a buffer that is larger than they are. In training and sampling, too, an operation's inputs
are not in the cache: a matrix product larger than any cache has just written the scores.

What a call allocates it also frees within the timed interval, its results included, as in a loop.

On a CPU with glibc the cost of memory is set by the environment before the process starts
(``REGIMES``), so run.py starts one process for each regime:

- "reused": freed memory stays with the process, and the next call gets warm pages;
- "fresh": glibc's defaults; every large tensor gets new pages, and page faults dominate its cost;
- "memory": not timed; freed memory is returned at once, so that resident memory shows the peak.
"""

import gc
import platform
import random
import statistics
import time
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch

REGIMES: dict[str, dict[str, str]] = {
    "reused": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"},
    "fresh": {},
    "memory": {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"},
}

Name = TypeVar("Name", bound=Hashable)


def regimes(device: str) -> tuple[str, ...]:
    """The regimes in which a device's calls are worth timing."""
    if device == "cuda":
        return ("cuda",)
    return ("reused", "fresh") if platform.libc_ver()[0] == "glibc" else ("fresh",)


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: median, 20th and 80th percentile, and how many calls."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    calls: int


@dataclass(frozen=True)
class Budget:
    """How long a case may take: timings of each call, and seconds for all calls together."""

    rounds: int = 25
    seconds: float = 4.0

    def timings(self, seconds: float, calls: int) -> int:
        """How often a call of that length, one of ``calls``, is timed.

        As often as its share of the budget allows, but at least five times, or three times where it
        takes over a second: a median of fewer is worthless.
        """
        fewest = 3 if seconds > 1 else 5
        share = self.seconds / calls / max(seconds, 1e-9)
        return max(1, min(self.rounds, max(fewest, round(share))))


class Meter(Protocol):
    """Times one call in milliseconds, and measures the peak memory beyond what was there before."""

    def time(self, call: Callable[[], object]) -> float: ...
    def peak_extra(self, call: Callable[[], object]) -> int | None: ...


class CpuMeter:
    """Wall time; memory as the high-water mark of resident pages, which covers every allocator."""

    def __init__(self, evict: bool = True) -> None:
        size = max(64 * 2**20, min(3 * last_level_cache(), 512 * 2**20))
        self._evictor = torch.ones(size // 4 if evict else 1)

    def time(self, call: Callable[[], object]) -> float:
        # torch's own threads read it, so that each core's private cache is evicted too.
        self._evictor.sum()
        start = time.perf_counter_ns()
        call()
        return (time.perf_counter_ns() - start) / 1e6

    def peak_extra(self, call: Callable[[], object]) -> int | None:
        """Bytes, to about 1 MB; None where the system has no resettable high-water mark."""
        gc.collect()
        try:
            Path("/proc/self/clear_refs").write_text("5")
            before = _status_bytes("VmRSS")
            call()
            return max(0, _status_bytes("VmHWM") - before)
        except (OSError, KeyError):
            return None


#: Clock cycles for which a GPU spins before the eviction: a millisecond, in which Python launches
#: about twenty kernels.
SPIN = 2_000_000


class CudaMeter:
    """CUDA events around a call that is queued while the GPU is busy, which hides its launch."""

    def __init__(self, evict: bool = True) -> None:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        cache = getattr(properties, "L2_cache_size", 64 * 2**20)
        size = max(256 * 2**20, 4 * cache)
        self._evictor = torch.ones(size // 4 if evict else 1, device="cuda")

    def time(self, call: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(SPIN)
        self._evictor.sum()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def peak_extra(self, call: Callable[[], object]) -> int | None:
        """Bytes of torch's caching allocator."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


def wall_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Wall time of a call on an idle device, until it is idle again."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def make_meter(device: torch.device, evict: bool = True) -> Meter:
    """The meter of that kind of device; ``evict=False`` leaves the caches as they are."""
    return CudaMeter(evict) if device.type == "cuda" else CpuMeter(evict)


def interleave(
    meter: Meter,
    calls: dict[Name, Callable[[], object]],
    budget: Budget,
    warm: Collection[Name] = (),
) -> dict[Name, Timing]:
    """Time the calls in turn, shuffled anew in every round, so that drift hits all of them alike.

    After a call to warm up, which those in ``warm`` have had, the first timing decides how many
    more there will be (``Budget.timings``), spread evenly over the rounds.
    """
    times: dict[Name, list[float]] = {}
    wanted: dict[Name, int] = {}
    for name, call in calls.items():
        if name not in warm:
            call()  # compiles, imports, fills allocators and thread pools
        times[name] = [meter.time(call)]
        wanted[name] = budget.timings(times[name][0] / 1e3, len(calls))
    order = random.Random(0)
    for turn in range(1, budget.rounds):
        due = [name for name in calls if _is_due(turn, wanted[name] - 1, budget.rounds - 1)]
        for name in order.sample(due, len(due)):
            times[name].append(meter.time(calls[name]))
    return {name: summarise(values) for name, values in times.items()}


def _is_due(turn: int, wanted: int, turns: int) -> bool:
    """Whether one of ``wanted`` evenly spread events falls into that turn of 1 .. ``turns``."""
    return turn * wanted // turns > (turn - 1) * wanted // turns


def summarise(values: list[float]) -> Timing:
    """Median and percentiles of some times."""
    if len(values) == 1:
        return Timing(values[0], values[0], values[0], 1)
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return Timing(statistics.median(values), fifths[0], fifths[3], len(values))


def median_ms(meter: Meter, call: Callable[[], object], timings: int = 12) -> float:
    """Median milliseconds of a few calls, none of them to warm up."""
    return statistics.median(meter.time(call) for _ in range(timings))


def last_level_cache() -> int:
    """Bytes of the largest cache that Linux reports for a core; 32 MiB where it does not."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    texts = [path.read_text().strip() for path in sizes]
    found = [int(text[:-1]) * units[text[-1]] for text in texts if text[-1:] in units]
    return max(found, default=32 * 2**20)


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(values[key].split()[0]) * 1024
