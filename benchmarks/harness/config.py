"""What to measure: the command line of ``run.py`` as the suites read it."""

from dataclasses import dataclass, field

import torch

from benchmarks.harness.measuring import Budget

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure, on what, and for how long.

    Attributes:
        masked: fraction of positions that noise has changed.
        head_positions: numbers of positions of the suite "head"; None for its own choice.
        operations: the operations to measure, by the titles of their tables; empty for all.
        slow: include the contenders that the suite "head" leaves out on a CPU.
        backends: of sedd_fast; empty for all that run on the device but the reference.
        quick: tiny shapes, also where a suite has shapes of its own.
    """

    suites: tuple[str, ...] = ("ops", "train", "sample")
    device: str = "cpu"
    dtypes: tuple[str, ...] = ("fp32",)
    positions: int = 256
    vocab_size: int = 50257
    masked: float = 0.35
    hidden_size: int = 256
    n_blocks: int = 4
    steps: int = 4
    head_positions: tuple[int, ...] | None = None
    operations: tuple[str, ...] = ()
    slow: bool = False
    backends: tuple[str, ...] = ()
    compile: bool = True
    quick: bool = False
    budget: Budget = field(default_factory=Budget)

    @property
    def shape(self) -> tuple[int, int]:
        """Batch and length of the positions."""
        batch = 2 if self.positions % 2 == 0 else 1
        return batch, self.positions // batch
