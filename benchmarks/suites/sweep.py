"""The operations over a range of vocabularies, and over the fraction of positions noised.

Against the eager formulas only: torch.compile would compile every one of these shapes anew. Along
the vocabularies the tensor keeps its size and the number of positions changes.
"""

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.harness.cases import Case
from benchmarks.harness.config import BenchmarkConfig
from benchmarks.suites.ops import op_cases

VOCABULARIES = (32, 128, 512, 2048, 8192, 32768, 50257, 131072)
FRACTIONS = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
#: With more, overhead of short rows would dominate: with 32 tokens a position moves 128 bytes.
MOST_POSITIONS = 2**17


def sweep_cases(config: BenchmarkConfig) -> Iterator[Case]:
    """The suites "vocabulary" and "noised"."""
    plain = replace(config, compile=False)
    scores = config.positions * config.vocab_size
    for vocab in [size for size in VOCABULARIES if 2 * size <= scores]:
        positions = min(scores // vocab, MOST_POSITIONS) // 2 * 2
        at = replace(plain, vocab_size=vocab, positions=positions)
        yield from placed(at, "vocabulary", vocab)
    for fraction in FRACTIONS:
        yield from placed(replace(plain, masked=fraction), "noised", fraction)


def placed(config: BenchmarkConfig, suite: str, at: float) -> Iterator[Case]:
    """The operations on scores at one point of an axis of the sweep."""
    for case in op_cases(config, None):
        if case.dtype == "int64":
            continue
        shape = case.shape if suite == "vocabulary" else f"{case.shape}, {100 * at:.0f} % noised"
        yield replace(case, suite=suite, shape=shape, at=at)
