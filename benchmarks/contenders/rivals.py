"""The contenders that every case measures ours against, in one order and under one set of names."""

from dataclasses import dataclass

from benchmarks.contenders.original import Original
from benchmarks.harness.cases import Call, Contender
from benchmarks.harness.config import BenchmarkConfig


@dataclass(frozen=True)
class Rivals:
    """Which rivals take part.

    Attributes:
        config: says whether torch.compile does.
        original: the original code, where a checkout of it was given.
    """

    config: BenchmarkConfig
    original: Original | None

    def contenders(
        self, eager: Call, plain: Call, rewritten: Call | None = None, original: Call | None = None
    ) -> list[Contender]:
        """One contender for each call.

        ``plain`` and ``rewritten`` are compiled: the original formulas, and our algorithms.
        """
        found = [Contender("eager, original formulas", "eager", eager)]
        if self.original is not None and original is not None:
            found.append(Contender("the original's code", "original", original))
        if self.config.compile:
            found.append(Contender("torch.compile", "compile", plain))
            if rewritten is not None:
                found.append(Contender("torch.compile, rewritten", "rewritten", rewritten))
        return found
