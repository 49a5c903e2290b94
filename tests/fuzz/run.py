"""Fuzzes the operations of a backend against the float64 reference.

    python tests/fuzz/run.py --minutes 5          # fresh seeds
    python tests/fuzz/run.py --seed 12345         # one case again

Each case is made from one integer. The exit status is 1 at the first case that differs; it is
printed with its seed.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (1, 2)]

from fuzz import cases  # noqa: E402

#: Where the seeds of the default test run end; fresh ones begin above.
FIRST = 1_000_000


def main() -> int:
    """Run the cases; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="how long")
    parser.add_argument("--seed", type=int, help="one case")
    parser.add_argument("--first", type=int, help="the first seed; by default from the clock")
    parser.add_argument("--kind", choices=cases.KINDS, help="one kind of case")
    parser.add_argument("--backend", default="cpp", help="the backend under test")
    parser.add_argument("--all", action="store_true", help="go on after a failure")
    asked = parser.parse_args()
    if asked.seed is not None:
        found = cases.check(asked.seed, asked.backend, asked.kind)
        print(found or "no difference")
        return int(found is not None)
    seed = first = FIRST + int(time.time()) * 1000 if asked.first is None else asked.first
    end, failures = time.monotonic() + 60 * asked.minutes, 0
    while time.monotonic() < end:
        if found := cases.check(seed, asked.backend, asked.kind):
            failures += 1
            chosen = f" --kind {asked.kind}" if asked.kind else ""
            print(f"{found}\n  again: python tests/fuzz/run.py --seed {seed}{chosen}", flush=True)
            if not asked.all:
                break
        seed += 1
    print(f"{seed - first + (failures > 0 and not asked.all)} cases, {failures} failed")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
