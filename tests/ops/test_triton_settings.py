"""Launch settings of the Triton kernels: the table, and timing the candidates instead."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from op_cases import make_inputs

import sedd_fast as sf
from sedd_fast.backends import registry

pytestmark = pytest.mark.skipif(
    registry.unavailable("triton") is not None, reason="needs Triton's interpreter: no GPU, Triton"
)


def test_every_kernel_has_settings_for_every_size():
    from sedd_fast.kernels import settings

    for kind in ("loss", "gradient", "row_sums", "reverse_step"):
        for score_bytes in (2, 4):
            for states in (2, 1024, 1025, 50_258, 10**6):
                plan = settings.plan(kind, score_bytes, states, None, ())
                block = plan.options["BLOCK"]
                assert block == plan.smallest
                assert block & (block - 1) == 0
                # At most two vectors of 16 bytes for a thread, at least one.
                lanes = 32 * plan.options["num_warps"]
                assert 1 <= block * score_bytes / (16 * lanes) <= 2


def test_candidates_are_timed_once_for_each_kind_of_call(monkeypatch):
    import triton

    from sedd_fast.kernels import settings

    timed: list[float] = []

    def fake_timing(call: Callable[[], object], quantiles: object = None) -> list[float]:
        call()
        timed.append(len(timed))
        return [timed[-1]] * 3

    settings.autotuned.cache_clear()
    monkeypatch.setattr(
        triton, "autotune", functools.partial(triton.autotune, do_bench=fake_timing)
    )
    monkeypatch.setenv("SEDD_FAST_AUTOTUNE", "1")
    inputs = make_inputs(sf.Uniform(11), shape=(1, 2))
    with sf.use_backend("reference"):
        expected = sf.reverse_step(*inputs.reverse(), u=inputs.u)
    with sf.use_backend("triton"):
        for _ in range(2):
            assert torch.equal(sf.reverse_step(*inputs.reverse(), u=inputs.u), expected)
    assert len(timed) == len(settings.CANDIDATES)
    settings.autotuned.cache_clear()
