"""The benchmark's baselines are right (golden values, our operations), and its command runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sedd_fast as sf

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
V = 11
GRAPHS = {"absorbing": sf.Absorbing(V), "uniform": sf.Uniform(V)}
CLOSE = {"rtol": 1e-9, "atol": 1e-11}

sys.path.insert(0, str(BENCHMARKS))
import baselines  # noqa: E402
import cases  # noqa: E402
import choices  # noqa: E402
import compiled  # noqa: E402
import cross_entropy  # noqa: E402
import head  # noqa: E402
import largest_batch  # noqa: E402
import measuring  # noqa: E402
import report  # noqa: E402
import settings  # noqa: E402
import sweep  # noqa: E402
import worker  # noqa: E402

sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(Path(__file__).parent / "golden" / "process.safetensors")


@pytest.fixture(params=["absorbing", "uniform"])
def case(request, golden):
    """The graph and its golden tensors, sigma and dsigma as (B, 1)."""
    kind = request.param
    values = {k.split(".", 1)[1]: v for k, v in golden.items() if k.startswith(kind + ".")}
    values["sigma"], values["dsigma"] = (values[k].view(-1, 1) for k in ("sigma", "dsigma"))
    return GRAPHS[kind], values


def normal(weights: torch.Tensor) -> torch.Tensor:
    weights = weights.clamp(min=0)
    return weights / weights.sum(-1, keepdim=True)


def euler_step(g: dict[str, torch.Tensor]) -> torch.Tensor:
    return (g["step_size"] * g["noise_rate"]).view(-1, 1)


def test_eager_entropy_is_golden(case):
    graph, g = case
    leaf = g["log_score"].clone().requires_grad_()
    entropy = baselines.score_entropy(leaf, g["sigma"], g["xt"], g["x0"], graph)
    torch.testing.assert_close(entropy, g["score_entropy"], **CLOSE)
    (grad,) = torch.autograd.grad((entropy * g["loss_weight"]).sum(), leaf)
    grad = grad.scatter(-1, g["xt"][..., None], 0.0)  # at x_t nothing is owed
    wanted = g["grad_log_score"].scatter(-1, g["xt"][..., None], 0.0)
    torch.testing.assert_close(grad, wanted, **CLOSE)


def test_eager_dense_tensors_are_golden(case):
    graph, g = case
    score = g["log_score"].exp()
    for made, name in (
        (baselines.staggered_score(score, g["dsigma"], graph), "staggered_score"),
        (baselines.transposed_transition(g["xt"], g["dsigma"], graph), "transp_transition"),
        (baselines.reverse_rate(score, g["xt"], graph), "reverse_rate"),
    ):
        torch.testing.assert_close(made.double(), g[name].double(), **CLOSE)


@pytest.mark.parametrize("method", ["analytic", "euler", "denoise"])
def test_step_laws_are_golden_and_ours(case, method):
    graph, g = case
    dsigma = {"analytic": g["dsigma"], "euler": euler_step(g), "denoise": g["sigma"]}[method]
    eager = baselines.step_weights(g["log_score"], g["xt"], dsigma, graph, method)
    torch.testing.assert_close(eager, g[f"{method}_probs"], **CLOSE)
    moves, stay = compiled.moves_and_stay(
        g["log_score"],
        g["xt"],
        dsigma,
        graph.kind,
        V,
        "analytic" if method == "denoise" else method,
    )
    static = normal(moves.scatter(-1, g["xt"][..., None], stay[..., None]))
    dense = torch.zeros_like(g["log_score"])
    dense[..., : eager.shape[-1]] = normal(eager)
    ours = sf.reverse_probs(g["log_score"], g["xt"], g["sigma"], dsigma, graph, method)
    torch.testing.assert_close(dense, ours, **CLOSE)
    if method != "denoise" or graph.kind == "uniform":
        torch.testing.assert_close(static.double(), ours, rtol=1e-4, atol=1e-6)


def test_static_denoising_never_draws_the_mask():
    graph, x_t = GRAPHS["absorbing"], torch.tensor([[V, 3]])
    log_score = torch.randn(1, 2, V + 1, generator=torch.Generator().manual_seed(0))
    moves, stay = compiled.moves_and_stay(
        log_score, x_t, torch.ones(1, 1), graph.kind, V, "denoise"
    )
    ours = sf.reverse_probs(log_score, x_t, 1.0, None, graph, "denoise")
    static = normal(moves.scatter(-1, x_t[..., None], stay[..., None]))
    torch.testing.assert_close(static, ours, rtol=1e-5, atol=1e-7)


def test_static_losses_are_golden(case):
    graph, g = case
    leaf = g["log_score"].float().requires_grad_()
    inputs = (g["sigma"], g["xt"], g["x0"], g["loss_weight"], graph.kind, V)
    wanted = (g["score_entropy"] * g["loss_weight"]).sum()
    loss = compiled.entropy(leaf, *inputs)
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-5)
    by_hand, grad = compiled.entropy_with_grad(leaf.detach(), *inputs)
    torch.testing.assert_close(by_hand.double(), wanted, rtol=1e-5, atol=1e-5)
    here = g["xt"][..., None]
    golden_grad = g["grad_log_score"].scatter(-1, here, 0.0).float()
    torch.testing.assert_close(grad, golden_grad, rtol=1e-4, atol=1e-5)
    (derived,) = torch.autograd.grad(loss, leaf)
    torch.testing.assert_close(derived.scatter(-1, here, 0.0), golden_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["absorbing", "uniform"])
@pytest.mark.parametrize("method", ["analytic", "euler"])
def test_every_draw_follows_our_law(kind, method):
    graph, draws = GRAPHS[kind], 40_000
    torch.manual_seed(1)
    x_t = torch.tensor([[graph.dim - 1]])
    log_score = (0.7 * torch.randn(1, 1, graph.dim) - 2.0).scatter(-1, x_t[..., None], 0.0)
    dsigma = torch.full((1, 1), 0.3)
    law = sf.reverse_probs(log_score, x_t, 0.9, 0.3, graph, method).flatten().double()
    many, tokens = log_score.expand(1, draws, -1), x_t.expand(1, draws)
    for draw in (
        lambda: baselines.reverse_step(many, tokens, dsigma, graph, method),
        lambda: compiled.race_step(many, tokens, dsigma, kind, V, method),
        lambda: compiled.inverse_cdf_step(many, tokens, dsigma, kind, V, method),
    ):
        counts = torch.bincount(draw().flatten(), minlength=graph.dim).double()
        spread = (draws * law * (1 - law)).sqrt() + 1
        assert ((counts - draws * law).abs() < 5 * spread).all()


@pytest.mark.parametrize("kind", ["absorbing", "uniform"])
def test_noise_falls_as_often_as_ours(kind):
    graph, sigma = GRAPHS[kind], torch.full((4, 1), 0.7)
    torch.manual_seed(2)
    x_0 = torch.randint(V, (4, 20_000))
    moved = (sf.sample_transition(x_0, sigma, graph) != x_0).double().mean().item()
    for x_t in (
        baselines.sample_transition(x_0, sigma, graph),
        compiled.sample_transition(x_0, sigma, kind, V),
    ):
        assert (x_t != x_0).double().mean().item() == pytest.approx(moved, abs=0.012)
        assert int(x_t.max()) < graph.dim


@pytest.mark.parametrize("kind", ["absorbing", "uniform"])
def test_problem_has_the_noise_it_claims(kind):
    graph = GRAPHS[kind]
    chosen = settings.Settings(positions=20, vocab_size=V, masked=0.35)
    problem = cases.make_problem(graph, chosen, torch.float32, torch.device("cpu"))
    assert int((problem.x_t != problem.x_0).sum()) == 7
    rows = 7 if kind == "absorbing" else 20
    assert problem.touched_bytes == rows * graph.dim * 4
    assert problem.bytes == 20 * graph.dim * 4
    assert (problem.log_score.gather(-1, problem.x_t[..., None]) == 0).all()
    assert 0 < problem.removed.min() < problem.sigma.min()


def test_contenders_of_a_case_agree():
    chosen = settings.Settings(positions=8, vocab_size=V, compile=False, backends=("reference",))
    for case in cases.op_cases(chosen, None):
        if "gradient" in case.operation:
            grads = [c.run()[-1] for c in case.contenders]
            scores = case.tensor
            for grad in grads[1:]:
                # The eager uniform loss owes nothing at x_t, up to the rounding of a difference.
                torch.testing.assert_close(grad, grads[0], rtol=1e-3, atol=1e-4)
            assert grads[0].shape == scores.shape


class FakeMeter:
    """A clock on which every call takes as many milliseconds as it returns."""

    def time(self, call) -> float:
        return float(call())

    def peak_extra(self, call) -> int | None:
        return 7


def test_interleaving_shares_the_budget():
    calls = {"slow": lambda: 900.0, "fast": lambda: 2.0}
    timing = measuring.interleave(FakeMeter(), calls, measuring.Budget(rounds=25, seconds=4.0))
    assert timing["fast"].calls == 25
    assert timing["slow"].calls == 5
    assert timing["slow"].median_ms == 900.0


@pytest.mark.parametrize(("seconds", "timings"), [(0.02, 25), (0.25, 8), (0.9, 5), (1.8, 3)])
def test_slow_calls_are_timed_less_often(seconds, timings):
    assert measuring.Budget(rounds=25, seconds=4.0).timings(seconds, calls=2) == timings
    assert measuring.Budget(rounds=2, seconds=0.1).timings(seconds, calls=2) <= 2


def test_timings_are_spread_over_the_rounds():
    turns = [turn for turn in range(1, 25) if measuring._is_due(turn, 4, 24)]
    assert turns == [6, 12, 18, 24]


def test_cases_measured_together_call_what_they_share_once():
    called: list[str] = []

    def contender(name: str, ms: float) -> cases.Contender:
        return cases.Contender(name, "ours", lambda: called.append(name) or ms)

    shared = contender("eager", 1500.0)
    pair = tuple(
        cases.Case("small", "o", "s", dtype, (shared, contender(dtype, ms)),
                   floor_runs={"network": lambda ms=ms: ms / 2})
        for dtype, ms in (("fp32", 1100.0), ("bf16", 400.0))
    )  # fmt: skip
    records = worker.time_records(FakeMeter(), pair, measuring.Budget(25, 4.0))
    found = [(r["dtype"], r["implementation"], r["median_ms"], r["floor_ms"]) for r in records]
    assert found == [
        ("fp32", "eager", 1500.0, 550.0), ("fp32", "fp32", 1100.0, 550.0),
        ("bf16", "eager", 1500.0, 200.0), ("bf16", "bf16", 400.0, 200.0),
    ]  # fmt: skip
    assert called.count("eager") == 1 + 3  # a call to warm up, then three that are timed
    called.clear()
    assert [r["extra_bytes"] for r in worker.memory_records(FakeMeter(), pair)] == [7] * 4
    assert called.count("eager") == 1


def test_percentiles():
    timing = measuring.summarise([float(n) for n in range(1, 12)])
    assert (timing.p20_ms, timing.median_ms, timing.p80_ms) == (3.0, 6.0, 9.0)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_peak_memory_sees_what_a_call_frees():
    meter = measuring.CpuMeter()
    if meter.peak_extra(lambda: None) is None:
        pytest.skip("this system cannot reset the high-water mark")
    size = 64 * 2**20
    peak = meter.peak_extra(lambda: torch.ones(size // 4).sum())
    assert 0.95 * size < peak < 1.2 * size


def test_ratios_stay_within_a_regime():
    def record(kind: str, ms: float) -> dict:
        times = {"median_ms": ms, "p20_ms": ms, "p80_ms": ms, "calls": 1, "floor_ms": 2.0}
        keys = {"suite": "ops", "operation": "o", "shape": "s", "dtype": "fp32"}
        sizes = {"floor_bytes": 8, "tensor_bytes": 8, "at": None}
        yardsticks = {"yardsticks_ms": {"copy": ms, "read": ms, "clone": ms}}
        return keys | {"implementation": kind, "kind": kind} | times | sizes | yardsticks

    kinds = ("eager", "compile", "rewritten", "ours")
    parts = {
        regime: {
            "environment": {},
            "remarks": ["same"],
            "records": [record(k, ms) for k, ms in zip(kinds, speeds, strict=True)],
        }
        for regime, speeds in {"reused": (80, 40, 20, 4), "fresh": (90, 60, 50, 10)}.items()
    }
    merged = report.merge(parts, "run.py")
    ours = merged["results"][-1]["regimes"]
    assert ours["reused"]["over_floor"] == 2
    assert ours["reused"]["faster_than_eager"] == 20
    assert ours["reused"]["faster_than_compile"] == 10
    assert ours["reused"]["faster_than_best_compile"] == 5
    assert ours["fresh"]["faster_than_compile"] == 6
    assert merged["remarks"] == ["same"]
    assert merged["environment"]["bandwidth"]["fresh"]["allocating"] == 1


def test_a_sweep_covers_its_axes():
    small = settings.Settings(positions=4, vocab_size=101, backends=("reference",))
    swept = list(sweep.sweep_cases(small))
    for suite, axis in (("vocabulary", (32, 128)), ("noised", sweep.FRACTIONS)):
        assert sorted({case.at for case in swept if case.suite == suite}) == sorted(axis)
    assert len({(c.suite, c.operation, c.shape, c.dtype) for c in swept}) == len(swept)
    unread = [c for c in swept if c.at == 0 and c.operation == "absorbing loss"]
    assert [case.floor_bytes for case in unread] == [0]


def test_choices_of_a_sweep():
    def record(vocab: int, backend: str, ms: float) -> dict:
        return {
            "suite": "vocabulary", "operation": "absorbing analytic step", "dtype": "bf16",
            "kind": "ours", "implementation": f"ours, {backend}", "at": vocab,
            "regimes": {"cuda": {"median_ms": ms}},
        }  # fmt: skip

    times = {99: (1.0, 0.98), 399: (1.0, 0.8), 1599: (1.0, 0.7), 6399: (1.0, 1.2)}
    results = [
        record(vocab, backend, ms)
        for vocab, both in times.items()
        for backend, ms in zip(("triton", "cuda"), both, strict=True)
    ]
    found = choices.rows({"environment": {"capability": [9, 0]}, "results": results})
    # From half way between 100 and 400 states to half way between 1,600 and 6,400.
    assert found == [((9, 0), "reverse_step", "absorbing", "bfloat16", 201, 3200, "cuda")]
    with pytest.raises(SystemExit, match="not from a GPU"):
        choices.rows({"environment": {"capability": None}, "results": results})


def test_choices_of_the_head():
    """One measured head speaks for all, and a backend that is no device's own may win."""

    def record(form: str, backend: str, ms: float) -> dict:
        return {
            "suite": "head", "operation": "head, loss + gradients", "dtype": "bf16",
            "kind": "ours", "implementation": f"ours, {backend}, {form}", "at": 8192,
            "regimes": {"cuda": {"median_ms": ms}},
        }  # fmt: skip

    times = {"fused": (2.0, 1.8), "fused, none": (2.0, 1.99), "dense": (9.0, 1.0)}
    results = [
        record(form, backend, ms)
        for form, both in times.items()
        for backend, ms in zip(("triton", "tiled"), both, strict=True)
    ]
    found = choices.rows({"environment": {"capability": [9, 0]}, "results": results})
    op = "linear_score_entropy_with_grad"
    assert found == [((9, 0), op, "absorbing", "bfloat16", 0, None, "tiled")]


@pytest.mark.parametrize("limit", [0, 1, 5, 64, 99, 100, 101])
def test_the_largest_batch_that_fits(limit):
    tried: list[int] = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= limit

    assert largest_batch.largest(fits, most=100) == min(limit, 100)
    assert len(tried) == len(set(tried)) <= 15


def test_a_batch_that_runs_out_of_memory_does_not_fit():
    config = sf.SEDDConfig(vocab_size=V, hidden_size=8, n_blocks=1, n_heads=1, length=4)
    model = sf.SEDD(config)

    def step(run) -> None:
        largest_batch.fused(run)
        largest_batch.dense(run)
        if len(run.x_0) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    fits = largest_batch.fitting(model, 4, "bf16", step)
    assert largest_batch.largest(fits, most=9) == 2


def test_the_head_is_timed_on_backends_that_have_one():
    chosen = settings.Settings(backends=("reference", "cuda", "tiled"), vocab_size=V)
    assert cases.backends(chosen) == ("reference", "cuda", "tiled")
    assert cases.backends(chosen, head=True) == ("reference", "tiled")


def test_cross_entropies_agree():
    """Those that run here, with the plain one; the others are named where a GPU is."""
    problem = head.make_head(settings.Settings(vocab_size=V), 8, 6, torch.float32)
    hidden, target = problem.touched().requires_grad_(), problem.x_0[problem.x_t == V]
    operands = (hidden, problem.weight, problem.bias)
    scores = torch.nn.functional.linear(*operands)
    plain = torch.nn.functional.cross_entropy(scores, target)
    expected = torch.autograd.grad(plain, operands)
    for contender in cross_entropy.contenders(*operands, target):
        torch.testing.assert_close(contender.run(), expected)
    assert cross_entropy.missing("cpu") == []
    assert all("pip install" in line for line in cross_entropy.missing("cuda"))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / "run.py"), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_command_writes_json_and_picture(tmp_path):
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    figures, picture = tmp_path / "figures.json", tmp_path / "figures.png"
    done = run(
        "--quick", "--no-compile", "--threads", "1", "--vocab", "101",
        "--json", str(figures), "--plot", str(picture),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    written = json.loads(figures.read_text())
    assert written["environment"]["torch"] == torch.__version__
    assert {r["suite"] for r in written["results"]} == {"ops", "train", "sample"}
    for row in written["results"]:
        assert set(row["regimes"]) == set(measuring.regimes("cpu"))
        for times in row["regimes"].values():
            assert 0 < times["p20_ms"] <= times["median_ms"] <= times["p80_ms"]
            assert times["over_floor"] > 0
        assert row["implementation"] in done.stdout


def test_command_sweeps_into_two_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    done = run(
        "--quick", "--suite", "sweep", "--threads", "1", "--backend", "reference",
        "--positions", "4", "--vocab", "101", "--plot", str(tmp_path / "s.png"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("s-vocabulary.png", "s-noised.png"):
        assert (tmp_path / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--suite", "everything"], "--suite"),
        (["--dtype", "int8"], "int8"),
        (["--masked", "0"], "--masked"),
        (["--positions", "none"], "--positions"),
        (["--reference", "/nowhere"], "graph_lib.py"),
        (["--json", "/nowhere/at/all.json"], "--json"),
        (["--backend", "abacus"], "abacus"),
    ],
)
def test_wrong_option_is_one_line(arguments, named):
    done = run(*arguments)
    assert done.returncode == 2
    assert named in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
