"""The samplers by certainty on the toy world, written out: exact distributions, no draws.

The rules are stated here a second time, in plain loops over sequences, tokens and positions.
"""

import itertools
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from helpers.toy_world import L, ToyWorld, V

_UNIT = 2.0**-14

State = tuple[int, ...]


@dataclass(frozen=True)
class Rule:
    """A sampler's settings, as those of ``sf.sample``."""

    method: str = ""
    steps: int | None = None
    temperature: float = 1.0
    threshold: float = 0.9
    entropy_bound: float = 0.1
    block_length: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of ``sf.sample``: what differs from the defaults."""
        given = {name: value for name, value in vars(self).items() if value != getattr(Rule, name)}
        return {"method": self.method, "steps": self.steps, **given}

    @property
    def is_exact(self) -> bool:
        """Whether samples have the distribution of the data: one position a call, whose choice does
        not depend on the token drawn there.
        """
        one = self.steps is None and (self.method != "entropy_bound" or self.entropy_bound == 0)
        chosen_before = self.method in ("margin", "entropy", "entropy_bound")
        return one and self.temperature == 1 and (chosen_before or self.block_length == 1)


def decoding_distribution(
    world: ToyWorld, rule: Rule, prompt: dict[int, int] | None = None
) -> tuple[Tensor, float]:
    """The distribution of the samples, (4, 4, 4), and the mean number of network calls."""
    start = [V] * L
    for position, token in (prompt or {}).items():
        start[position] = token
    first = start.index(V)
    shares = _steps_of_blocks(rule, start, first)
    now: dict[tuple[State, int, int], float] = {(tuple(start), 0, -1): 1.0}
    final, calls = torch.zeros([V] * L, dtype=torch.float64), 0.0
    while now:
        after: dict[tuple[State, int, int], float] = defaultdict(float)
        for (x, made, before), p in now.items():
            calls += p
            block = (x.index(V) - first) // (rule.block_length or L)
            made = made if block == before else 0
            where = [
                i
                for i in range(L)
                if x[i] == V and (i - first) // (rule.block_length or L) == block
            ]
            due = 1 if shares is None else math.ceil(len(where) / (shares[block] - made))
            for y, q in _steps(world, rule, x, where, due):
                if V in y:
                    after[y, made + 1, block] += p * q
                else:
                    final[y] += p * q
        now = after
    return final, calls


def _steps_of_blocks(rule: Rule, start: list[int], first: int) -> list[int] | None:
    """The steps of every block: in proportion to its masks, one at least."""
    if rule.steps is None:
        return None
    masks = [0] * (-(-(L - first) // (rule.block_length or L)))
    for i in range(first, L):
        masks[(i - first) // (rule.block_length or L)] += start[i] == V
    made, end = [], 0
    for b, n in enumerate(masks):
        to_come = sum(m > 0 for m in masks[b + 1 :])
        share = sum(masks[: b + 1]) * rule.steps // sum(masks)
        until = min(max(share, end + 1), rule.steps - to_come) if n else end
        made.append(until - end)
        end = until
    return made


def posterior(world: ToyWorld, x: State) -> Tensor:
    """p(x_0 | x) of every position, (3, 4); meaningful at masks."""
    score = world(torch.tensor([x]), torch.tensor([1.0], dtype=torch.float64))[0, :, :V]
    return torch.softmax(score, -1)


def _steps(
    world: ToyWorld, rule: Rule, x: State, where: list[int], due: int
) -> list[tuple[State, float]]:
    """The sequences after a step, with their probabilities."""
    p = posterior(world, x)
    if rule.temperature == 0:
        drawn_from = torch.nn.functional.one_hot(p.argmax(-1), V).double()
    else:
        drawn_from = torch.softmax(p.log() / rule.temperature, -1)
    found = []
    for tokens in itertools.product(range(V), repeat=len(where)):
        chance = math.prod(float(drawn_from[i, t]) for i, t in zip(where, tokens, strict=True))
        if not chance:
            continue
        sure = [certainty(rule.method, p[i], t) for i, t in zip(where, tokens, strict=True)]
        kept = accepted(rule, sure, due)
        y = list(x)
        for k in kept:
            y[where[k]] = tokens[k]
        found.append((tuple(y), chance))
    return found


def certainty(method: str, p: Tensor, token: int) -> float:
    """How sure the network is of a position with distribution p (4,)."""
    if method in ("confidence", "threshold"):
        return float(p[token].log())
    if method == "margin":
        first, second = p.sort(descending=True).values[:2].tolist()
        return first - second
    return float((p * p.log()).sum())


def accepted(rule: Rule, sure: list[float], due: int) -> list[int]:
    """The places that are kept, of certainties by position."""
    order = sorted(range(len(sure)), key=lambda i: (-round(sure[i] / _UNIT), i))
    count = due
    if rule.method == "threshold":
        count = max(due, sum(s >= math.log(rule.threshold) - 2**-20 for s in sure))
    if rule.method == "entropy_bound":
        for k in range(1, len(order) + 1):
            entropies = [-sure[i] for i in order[:k]]
            if sum(entropies) - max(entropies) <= rule.entropy_bound + 2**-20:
                count = max(count, k)
    return order[:count]
