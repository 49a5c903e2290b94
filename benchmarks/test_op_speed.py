"""pytest-benchmark figures of the operations: ``pytest benchmarks`` from the root of the checkout.

Every operation is a group of its contenders, at the default shape of run.py. Here contenders run
one after the other, in the memory regime that the environment sets; run.py interleaves them,
measures both regimes and memory, and gives ratios to the floor. SEDD_BENCH_POSITIONS and
SEDD_BENCH_VOCAB change the shape; SEDD_BENCH_COMPILE=1 adds torch.compile.
"""

import functools
import os
from typing import Any

import pytest

from benchmarks.harness.cases import Case, Contender
from benchmarks.harness.config import BenchmarkConfig
from benchmarks.suites.ops import op_cases

pytest.importorskip("pytest_benchmark")

CONFIG = BenchmarkConfig(
    positions=int(os.environ.get("SEDD_BENCH_POSITIONS", "256")),
    vocab_size=int(os.environ.get("SEDD_BENCH_VOCAB", "50257")),
    compile=os.environ.get("SEDD_BENCH_COMPILE", "0") == "1",
)
#: The names of the contenders, from the same cases over a vocabulary of two.
NAMES = [
    (case.operation, contender.name)
    for case in op_cases(BenchmarkConfig(positions=2, vocab_size=2, compile=CONFIG.compile), None)
    for contender in case.contenders
]


@functools.lru_cache(maxsize=1)
def case_of(operation: str) -> Case:
    """The case at full size; one is cached, so that the scores of one graph exist at a time."""
    return next(case for case in op_cases(CONFIG, None) if case.operation == operation)


def contender_of(operation: str, name: str) -> Contender:
    return next(c for c in case_of(operation).contenders if c.name == name)


@pytest.mark.parametrize(("operation", "name"), NAMES)
def test_speed(benchmark: Any, operation: str, name: str) -> None:
    benchmark.group = operation
    case = case_of(operation)
    benchmark.extra_info.update(shape=case.shape, dtype=case.dtype, floor_bytes=case.floor_bytes)
    benchmark.pedantic(contender_of(operation, name).run, rounds=9, warmup_rounds=2)
