"""A few seeds of every kind of fuzz case; `make fuzz` runs fresh ones for minutes."""

from dataclasses import replace

import pytest
import torch
from fuzz import cases

import sedd_fast as sf
from sedd_fast.backends import cpp, registry

pytestmark = [
    pytest.mark.skipif(bool(registry.unavailable("cpp", "cpu")), reason="no C++ kernels"),
    pytest.mark.not_in_smoke,
]
#: Cases of each kind; all of them take about four seconds.
SEEDS = 25


@pytest.mark.parametrize("kind", cases.KINDS)
def test_cpp_against_the_reference(kind):
    for seed in range(SEEDS):
        found = cases.check(seed, kind=kind)
        again = f"python tests/fuzz/run.py --seed {seed} --kind {kind}"
        assert found is None, f"{found}\n  again: {again}"


def test_a_wrong_result_is_found(monkeypatch: pytest.MonkeyPatch):
    """Each in few cases: a loss of another noise level, tokens of other uniforms, no error."""
    loss, step = cpp.score_entropy, cpp.reverse_step
    monkeypatch.setattr(
        cpp, "score_entropy", lambda s, e: loss(s, replace(e, sigma=e.sigma * 1.001))
    )
    monkeypatch.setattr(cpp, "reverse_step", lambda s, r: step(s, replace(r, u=1 - r.u - 2**-53)))
    monkeypatch.setattr(cpp, "sample_transition", lambda noising: noising.x_0)
    for kind in ("entropy", "step", "bad_value", "noising"):
        assert any(cases.check(seed, kind=kind) for seed in range(10)), kind


def test_a_seed_makes_one_case():
    first, again = (cases.made(7, "entropy")[1] for _ in range(2))
    assert first.text == again.text
    with sf.use_backend("cpp"):
        one, other = first.run(False), again.run(False)
    for name in ("loss", "once"):
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0, equal_nan=True)
