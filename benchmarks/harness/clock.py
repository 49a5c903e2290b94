"""The clock of the processor during a run, and the arithmetic of an operation in its cycles."""

from concurrent.futures import ThreadPoolExecutor

from sedd_fast.backends import cpp


def clock_hz(threads: int) -> float | None:
    """Cycles per second, measured on as many threads at once as the operations use.

    The C++ module times a chain of instructions that each take one cycle (csrc/cpu/clock.cpp). It
    takes about 10 ms and should follow the timed calls at once. The largest of the threads' figures
    counts, because others may have had to share their core. None without the module, or where it
    has no such chain.
    """
    if cpp.unavailable() is not None:
        return None
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(lambda _: cpp.kernels().clock_hz(), range(threads))
        return max(found, default=0.0) or None


def cycles_per_element(
    ms: float, threads: int, hz: float | None, elements: int | None
) -> float | None:
    """Cycles that the threads together spend on one element: time x threads x clock / elements.

    None where the clock is not known, or no element is touched.
    """
    return ms / 1e3 * threads * hz / elements if hz and elements else None
