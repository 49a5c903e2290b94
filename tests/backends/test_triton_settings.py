"""Launch settings of the Triton kernels: the table, and timing of the candidates."""

import functools
from collections.abc import Callable

import pytest
import torch

import sedd_fast as sf
from helpers.op_cases import make_inputs
from sedd_fast.backends import registry

pytestmark = pytest.mark.skipif(registry.unavailable("triton") is not None, reason="needs Triton")


def test_every_kernel_has_settings_for_every_size():
    from sedd_fast.kernels import settings

    for kind in settings.TABLE:
        for vec in (4, 8):
            for states in (2, 1024, 1025, 50_258, 10**6):
                plan = settings.plan(kind, vec, states, 1, None, torch.float32)
                block, unit, _ = plan.options["BLOCK"]
                assert block == plan.smallest
                assert block & (block - 1) == 0
                # One vector of 16 bytes per thread in a unit, at most four in a block.
                assert unit == 32 * plan.options["num_warps"] * vec
                assert block // unit in (1, 2, 4)
                # The most registers that ptxas can give to that many warps.
                assert 24 <= plan.options["maxnreg"] <= 255
                assert plan.options["maxnreg"] % 8 == 0


def test_programs_take_several_rows_only_if_rows_are_many_and_most_are_skipped(monkeypatch):
    from sedd_fast.kernels import settings

    like = torch.zeros(1)
    places = settings.RESIDENT * settings.multiprocessors(like.device)
    assert settings.multiprocessors(like.device) == 132
    for rows in (1, 100, 8192, 10**7):
        assert settings.rows_per_program(rows, like, sparse=False) == 1
        some = settings.rows_per_program(rows, like, sparse=True)
        assert some == 1 or rows // some >= settings.TURNS * places
    assert settings.rows_per_program(8192, like, sparse=True) == 1
    assert settings.rows_per_program(32_768, like, sparse=True) == 3
    assert settings.rows_per_program(10**7, like, sparse=True) == 16


def test_several_rows_per_program_give_the_same_results(monkeypatch):
    from sedd_fast.kernels import settings

    inputs = make_inputs(sf.Absorbing(37), shape=(2, 4))  # the last program has two rows
    inputs.x_t[0, 1] = -1  # a bad row between good ones
    monkeypatch.setattr("sedd_fast.backends.values.enabled", lambda device: False)

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        with sf.use_backend("triton"):
            return sf.score_entropy(*inputs.entropy()), sf.reverse_step(
                *inputs.reverse(), u=inputs.u
            )

    loss, x_s = both()
    seen: list[bool] = []
    monkeypatch.setattr(
        settings, "rows_per_program", lambda rows, like, sparse: seen.append(sparse) or 3
    )
    again, x_again = both()
    assert seen == [True, True]
    assert loss[0, 1].isnan()
    assert torch.equal(again.nan_to_num(-1), loss.nan_to_num(-1))
    assert torch.equal(x_again, x_s)


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


def test_a_step_refuses_a_vocabulary_that_exceeds_its_registers():
    """Given log scores, before the launch; given hidden states, before the first product."""
    from sedd_fast.backends.triton.launch import MOST_STATES_OF_A_STEP

    graph = sf.Absorbing(MOST_STATES_OF_A_STEP)
    x_t = torch.full((1, 1), graph.mask_index)
    remedy = r"at most 1,048,576 states .*got 1,048,577.*reference"
    with sf.use_backend("triton"):
        with pytest.raises(RuntimeError, match="reverse_step takes " + remedy):
            sf.reverse_step(torch.zeros(1, 1, graph.dim), x_t, 1.0, 0.5, graph)
        head = torch.zeros(graph.dim, 1), torch.zeros(graph.dim)
        with pytest.raises(RuntimeError, match="linear_reverse_step cannot .*" + remedy):
            sf.linear_reverse_step(torch.zeros(1, 1, 1), *head, x_t, 1.0, 0.5, graph)
