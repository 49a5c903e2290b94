"""The benchmark's option --isa, and which contenders of the head take part on which CPU."""

import json
import os
import platform
import subprocess
import sys

import pytest
import torch

from benchmarks import run
from benchmarks.harness import instruction_sets
from benchmarks.harness.command import ROOT
from benchmarks.harness.config import BenchmarkConfig
from benchmarks.suites import head, sums

V = 11


@pytest.mark.parametrize(
    ("best", "asked", "words"),
    [
        ("avx512", ("avx512", "avx2", "baseline"), None),
        ("avx2", ("avx2", "baseline"), None),
        ("avx2", ("avx2", "avx512"), "--isa avx512: this processor does not have it, and the "
         "kernels would use avx2; choose from avx2, baseline, or leave the option out"),
        ("baseline", ("avx2",), "would use baseline; choose from baseline,"),
        ("its compiled module is missing", ("avx2",), "cannot be used: its compiled module"),
    ],
)  # fmt: skip
def test_a_missing_instruction_set_is_refused(monkeypatch, capsys, best, asked, words):
    def used(name: str) -> str:
        sets = instruction_sets.SETS
        return best if best not in sets else sets[max(sets.index(name), sets.index(best))]

    monkeypatch.setattr(instruction_sets, "used_by_kernels", used)
    reason = instruction_sets.refusal(asked)
    assert reason is None if words is None else words in reason
    if words is not None:
        assert run.main(["--isa", ",".join(asked)]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.skipif(platform.machine() != "x86_64", reason="limits are for x86-64")
def test_torch_is_limited_too():
    code = """
import json
from benchmarks.harness import instruction_sets
instruction_sets.limit_compiler()
from torch._inductor import config
used = instruction_sets.used_by_torch(compiling=False)
print(json.dumps([used["eager"], config.cpp.simdlen, instruction_sets.march()]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | instruction_sets.limits("avx2"),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    eager, bits, march = json.loads(done.stdout)
    assert (eager, bits) == ("AVX2", 256)
    assert march in ("x86-64-v3", None)  # None: a torch without that setting


def test_a_torch_without_a_target_for_its_compiler_is_named(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CPP_MARCH", "x86-64-v3")
    for found, named in ((None, True), ("x86-64-v3", False)):
        monkeypatch.setattr(instruction_sets, "march", lambda found=found: found)
        assert bool(instruction_sets.remark()) == named
    monkeypatch.delenv("TORCHINDUCTOR_CPP_MARCH")
    monkeypatch.setattr(instruction_sets, "march", lambda: None)
    assert instruction_sets.remark() is None


def test_the_processes_of_a_run():
    both = ("reused", "fresh")

    def workers(*arguments: str, timed=both) -> list[tuple[str | None, str]]:
        return run.workers(run.options(list(arguments)), timed)

    assert workers() == [(None, "reused"), (None, "fresh"), (None, "memory")]
    assert workers("--suite", "head") == [(None, "reused"), (None, "memory")]
    assert workers("--suite", "sweep") == [(None, "reused")]
    assert workers("--device", "cuda", timed=("cuda",)) == [(None, "cuda")]
    sets = workers("--isa", "avx2,baseline", "--regimes", "fresh,memory")
    assert sets == [("avx2", "fresh"), ("baseline", "fresh"), ("avx2", "memory")]
    assert run.options(["--isa", "avx2"]).suite == ("ops",)
    assert run.options(["--isa", "avx2", "--suite", "head"]).suite == ("head",)


def names(config: BenchmarkConfig) -> dict[str, list[str]]:
    """Operation and dtype of every case of the head -> its contenders and its floors."""
    return {
        f"{case.operation[6:10]} {case.dtype}": [c.name for c in case.contenders]
        + list(case.floor_runs)
        for case in head.head_cases(config, None)
    }


def test_contenders_of_the_head_that_take_minutes_are_left_out(monkeypatch):
    monkeypatch.setattr(head, "times_slower", lambda dtype: 1.0 + 50 * (dtype != torch.float32))
    monkeypatch.setattr(head, "yardsticks", lambda p: ())
    config = BenchmarkConfig(vocab_size=V, dtypes=("fp32", "bf16"), compile=False, hidden_size=8,
                             backends=("reference",), head_positions=(16,))  # fmt: skip
    dense, fused = "ours, reference, dense", "ours, reference, fused"
    all_products, eager = ["whole", "padded", "blocked"], "eager, original formulas"
    assert names(config) == {
        "loss fp32": [eager, dense, fused, *all_products],
        "anal fp32": [dense, fused, *all_products],
        "loss bf16": [fused, "in float32"],
        "anal bf16": [dense, fused, "in float32"],
    }
    (line,) = head.left_out(config)
    assert line.startswith("products of bf16 take over 8 times as long as those of fp32")
    everything = BenchmarkConfig(**(vars(config) | {"slow": True}))
    assert names(everything)["loss bf16"] == [eager, dense, fused, f"{fused}, none", *all_products]
    assert names(everything)["anal fp32"] == [eager, dense, fused, *all_products]
    assert head.left_out(everything) == []


def test_how_much_slower_products_of_a_dtype_are():
    assert head.times_slower(torch.float32) == 1
    assert head.times_slower(torch.bfloat16) > 0


def test_the_head_has_1024_positions_on_a_cpu():
    (case, _) = head.head_cases(
        BenchmarkConfig(vocab_size=V, compile=False, backends=("reference",), hidden_size=4), None
    )
    assert (case.at, case.shape) == (1024, "1,024 x 4 x 12")


def test_contenders_of_the_head_agree():
    config = BenchmarkConfig(vocab_size=V, compile=False, hidden_size=6, backends=("reference",),
                             head_positions=(8,), slow=True)  # fmt: skip
    case = next(iter(head.head_cases(config, None)))
    ours = [c for c in case.contenders if c.kind != "yardstick"]
    expected = ours[0].run()
    for contender in ours[1:]:
        torch.testing.assert_close(contender.run(), expected, rtol=1e-4, atol=1e-6)
    problem = head.make_head(config, 8, 6, torch.float32)
    h, w = problem.touched(), problem.weight.detach()
    total, of_weight = head.products(h, w, True, in_float32=True)["in float32"]()
    f = h @ w.T
    torch.testing.assert_close((total, of_weight), (f @ w, f.T @ h))


def test_contenders_of_row_sums_agree():
    config = BenchmarkConfig(positions=8, vocab_size=V, compile=False, backends=("reference",))
    cases = list(sums.sums_cases(config))
    assert len(cases) == 3
    for case in cases:
        eager, ours = (contender.run()[0] for contender in case.contenders)
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-5)
        assert eager.abs().max() > 0
