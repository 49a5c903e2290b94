"""What a sampler is: a number of steps, made one after the other."""

from abc import ABC, abstractmethod

from torch import Tensor

from sedd_fast.sampling.reverse_process import ReverseProcess


class Sampler(ABC):
    """Made from the process and the tokens x (B, L) at time 1, before the first network call.

    Attributes:
        process: what draws the tokens.
        steps: number of steps, at most.
    """

    def __init__(self, process: ReverseProcess, steps: int) -> None:
        self.process, self.steps = process, steps

    @abstractmethod
    def step(self, i: int, x: Tensor) -> tuple[Tensor, float] | None:
        """The tokens (B, L) after step i, from those before, and the time reached.

        None: nothing is left to draw, and no step was made.
        """
