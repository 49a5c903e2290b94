"""Every kind of fuzz case, and a run of one."""

import traceback
from collections.abc import Callable

import torch
from fuzz import heads, operations, softmax
from fuzz.draws import Draws
from fuzz.operations import Case, differences

#: Every kind of case, by name; the later a name, the rarer.
KINDS: dict[str, Callable[[Draws], Case]] = {
    "entropy": operations.entropy,
    "step": operations.step,
    "sums": operations.sums,
    "linear_entropy": heads.linear_entropy,
    "linear_step": heads.linear_step,
    "linear_cross_entropy": softmax.cross_entropy,
    "linear_denoise": softmax.denoise,
    "bad_value": operations.bad_value,
    "noising": operations.noising,
}


def made(seed: int, kind: str | None = None) -> tuple[str, Case, int]:
    """The kind of a seed's case, the case, and the number of threads to run it with."""
    draws = Draws(seed)
    drawn = draws.choices(list(KINDS), weights=range(2 * len(KINDS), 0, -2))[0]
    chosen, threads = kind or drawn, draws.choice((1, 2, 3))
    return chosen, KINDS[chosen](draws), threads


def check(seed: int, backend: str = "cpp", kind: str | None = None) -> str | None:
    """Run a seed's case; a line that says what failed, or None."""
    chosen, case, threads = made(seed, kind)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = differences(case, backend)
    except Exception as error:  # no backend may raise anything but a ValueError
        found = "".join(traceback.format_exception(error))
    finally:
        torch.set_num_threads(before)
    text = f"seed {seed}, {chosen}, {threads} threads: {case.text}"
    return None if found is None else f"{text}\n  {found}"
