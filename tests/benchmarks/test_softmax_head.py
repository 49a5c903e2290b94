"""The benchmarks of heads of p(x_0 | x_t): their contenders agree, and their commands run."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import run
from benchmarks.contenders import cross_entropy
from benchmarks.contenders import softmax_head as contenders
from benchmarks.harness import gpu_steps
from benchmarks.harness.config import BenchmarkConfig
from benchmarks.studies import softmax_cuts
from benchmarks.suites import decoding, head, preset, softmax_head, worker
from sedd_fast.backends import cpp, softmax_plan
from sedd_fast.data.batches import Batch

CPU = torch.device("cpu")
SMALL = BenchmarkConfig(("head",), vocab_size=11, hidden_size=4, head_positions=(8,), quick=True,
                        compile=False, backends=("reference",))  # fmt: skip


def problem(dtype: torch.dtype) -> tuple[softmax_head.SoftmaxHead, softmax_head.Rows]:
    p = softmax_head.make_head(CPU, 10, 12, 6, dtype)
    return p, softmax_head.make_rows(p)


def test_half_of_the_rows_carry_a_loss():
    _, rows = problem(torch.float32)
    assert len(rows.index) == 5
    assert torch.equal(rows.row_weight.nonzero().squeeze(-1), rows.index)
    assert int(rows.target.max()) < 11


def test_cross_entropies_agree_in_float64(monkeypatch):
    monkeypatch.setattr(cross_entropy, "contenders", lambda *operands: ())
    p, rows = problem(torch.float64)
    chosen = head.Chosen(eager=True, slow=True, fast_products=True)
    found = {c.name: c for c in softmax_head.losses(SMALL, p, rows, chosen)}
    expected = found["eager, F.cross_entropy"].run()
    assert float(expected[1].abs().sum()) > 0.1
    for name in ("row chunks in plain torch", "ours, reference", "ours, reference, none"):
        torch.testing.assert_close(found[name].run(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-9), (torch.bfloat16, 0.02)])
def test_row_chunks_add_up(dtype, close):
    p, rows = problem(dtype)
    inputs = (rows.target, rows.row_weight.to(dtype), rows.index)
    loss = contenders.cross_entropy(*p.leaves, *inputs)
    made, gradients = contenders.row_chunks(*p.leaves, *inputs, chunk_bytes=2 * 12 * dtype.itemsize)
    torch.testing.assert_close(made.double(), loss.double(), rtol=close, atol=close)
    expected = torch.autograd.grad(loss, p.leaves)
    torch.testing.assert_close(gradients, expected, rtol=close, atol=close)


@pytest.mark.parametrize("name", ["everything", "gumbel_everything"])
def test_denoising_steps_agree(name):
    p, _ = problem(torch.float64)
    operands = [x.detach() for x in p.leaves]
    ours = softmax_head.sf.linear_denoise(*operands, excluded=p.excluded)
    token, log_p, *others = getattr(contenders, name)(*operands)
    expected = (ours.argmax, ours.max_log_prob, ours.entropy)
    torch.testing.assert_close(tuple(others), expected, rtol=1e-6, atol=1e-7)
    logits = torch.nn.functional.linear(*operands)
    at_token = logits.log_softmax(-1).gather(-1, token[:, None]).squeeze(-1)
    torch.testing.assert_close(log_p, at_token)


@pytest.mark.parametrize("draw", [contenders.token, contenders.gumbel_token])
def test_draws_follow_the_softmax(draw):
    p, _ = problem(torch.float64)
    hidden, weight, bias = (x.detach() for x in p.leaves)
    torch.manual_seed(3)
    draws = 40_000
    probs = torch.nn.functional.linear(hidden[0], weight, bias).softmax(-1)
    counts = torch.bincount(draw(hidden[:1].expand(draws, -1), weight, bias), minlength=12)
    spread = (draws * probs * (1 - probs)).sqrt() + 1
    assert ((counts - draws * probs).abs() < 5 * spread).all()


def test_what_takes_minutes_on_a_cpu_is_left_out(monkeypatch):
    slow = torch.bfloat16
    monkeypatch.setattr(head, "times_slower", lambda dtype: 50.0 if dtype == slow else 1.0)
    monkeypatch.setattr(cross_entropy, "contenders", lambda *operands: ())

    def names(dtype: str, config: BenchmarkConfig = SMALL) -> list[list[str]]:
        found = softmax_head.softmax_head_cases(
            BenchmarkConfig(**vars(config) | {"dtypes": [dtype]})
        )
        return [[*(c.name for c in case.contenders), *case.floor_runs] for case in found]

    floors, chunks = ["whole", "padded", "blocked"], "row chunks in plain torch"
    ours, eager, denoise = "ours, reference", "eager, F.cross_entropy", "eager, float32 softmax"
    assert names("fp32") == [[eager, chunks, ours, *floors], *[[denoise, ours, *floors]] * 2]
    assert names("bf16") == [[ours, "in float32"], *[[denoise, ours, "in float32"]] * 2]
    everything = BenchmarkConfig(**vars(SMALL) | {"slow": True})
    assert names("bf16", everything) == [
        [eager, chunks, ours, f"{ours}, none", *floors],
        *[[denoise, "eager, float64 (LLaDA)", ours, *floors]] * 2,
    ]


def test_a_decoding_step_keeps_the_surest_token():
    """At a temperature so low that every contender draws the likeliest token."""
    config = BenchmarkConfig(**vars(SMALL) | {"quick": True, "slow": True})
    [case] = decoding.decoding_cases(config)
    p = softmax_head.make_head(torch.device("cpu"), *decoding.QUICK_SHAPE, torch.float32)
    with torch.no_grad():
        p.weight.mul_(1000)
        log_p = torch.log_softmax(p.hidden @ p.weight.T + p.bias, -1)
    likeliest, token = log_p.max(-1)
    x = torch.full((1, len(token)), p.excluded)
    after = decoding.on_logits(contenders.everything, p, x)[0]
    [kept] = (after != p.excluded).nonzero().flatten().tolist()
    assert after[kept] == token[kept]
    assert likeliest[kept] == likeliest.max()
    for contender in case.contenders:
        result = contender.run()
        tokens = result[0] if isinstance(result, tuple) else result
        assert int((tokens != p.excluded).sum()) == 1, contender.name


def test_shapes_of_the_suite():
    cpu = BenchmarkConfig(vocab_size=11, hidden_size=4, compile=False)
    cases = list(softmax_head.cross_entropy_cases(cpu))
    assert [case.shape for case in cases] == ["1,024 x 4 x 12", "4,096 x 4 x 12"]
    assert cases[0].returned_bytes == 4 * (1024 * 4 + 12 * 4 + 12)
    assert cases[0].logits_bytes == 4 * 1024 * 12
    assert {states for _, states, _ in softmax_head.SHAPES} == {262_144, 50_257}


@pytest.mark.parametrize("step", ["head", "rivals", "softmax"])
def test_the_gpu_run_chooses_tables_that_the_suite_has(step):
    machine = gpu_steps.Machine("90", lambda n: Path(f"{n}.json"), lambda n: Path(f"{n}.xml"))
    first, *_ = gpu_steps.STEPS[step].commands(machine)
    asked = run.options(list(first.words[1:])).operations
    config = BenchmarkConfig(**vars(SMALL) | {"operations": asked})
    chosen = [case.operation for (case,) in worker.all_cases(config, None)]
    assert tuple(dict.fromkeys(chosen)) == asked
    assert asked == softmax_head.TITLES or step != "softmax"


def test_a_preset_step_is_the_trainers():
    """Its loss and gradients through logits are those of the network's own request."""
    pytest.importorskip("accelerate")
    step = preset.make_step(BenchmarkConfig(vocab_size=101, quick=True), "fp32")
    logits = preset.MaskedLogits(step.learner.plain, step.learner.accelerator.autocast)
    found = []
    for model in (step.learner.model, logits):
        step.learner.model = model
        loss = step.learner.accumulate(Batch(step.x_0), step=1)
        found.append([loss.float(), *(p.grad.clone() for p in step.learner.plain.parameters())])
        step.learner.plain.zero_grad()
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
    case = preset.preset_case(BenchmarkConfig(vocab_size=101, quick=True), "fp32")
    assert [c.kind for c in case.contenders] == ["eager", "ours"]
    for call in (*(c.run for c in case.contenders), *case.floor_runs.values()):
        call()  # a step, gradients freed


def test_the_command_measures_and_prints(tmp_path, capfd):
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    figures = tmp_path / "figures.json"
    arguments = [
        "--suite", "head", "--quick", "--no-compile", "--threads", "1", "--vocab", "101",
        "--head-positions", "16", "--regimes", "fresh,memory", "--json", str(figures),
        "--operations", "; ".join(softmax_head.TITLES),
        "--plot", str(tmp_path / "figures.png"),
    ]  # fmt: skip
    assert run.main(arguments) == 0
    out = capfd.readouterr().out
    written = json.loads(figures.read_text())["results"]
    assert {row["operation"] for row in written} == set(softmax_head.TITLES)
    for row in written:
        assert row["besides_bytes"] <= row["extra_bytes"]
        assert row["implementation"] in out
    assert "a tenth of the logits" in out
    picture = tmp_path / "figures-cross-entropy.png"
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.skipif(cpp.unavailable() is not None, reason="no C++ kernels")
def test_cuts_are_forced_and_shown(monkeypatch, capsys):
    used: list[softmax_plan.Plan] = []
    force = softmax_cuts.force

    def spied(cut: softmax_plan.Plan):
        used.append(cut)
        return force(cut)

    monkeypatch.setattr(softmax_cuts, "PARTS", (1, 3, 8))
    p = softmax_head.make_head(CPU, 64, 10_000, 16, torch.float32)
    meter = softmax_cuts.make_meter(CPU, evict=False)
    budget = softmax_cuts.Budget(rounds=1, seconds=0.1)
    found = softmax_cuts.measure(p, 1 << 20, meter, budget, spied)
    assert (found["rows"], found["states"]) == (64, 10_000)
    made = [softmax_plan.Plan(row["rows"], row["kept"]) for row in found["cuts"]]
    assert made == list(dict.fromkeys(used))
    assert len(made) > 5
    head = softmax_plan.Head(*(found[k] for k in softmax_plan.Head._fields))
    assert made[0] == softmax_plan.plan(head)
    assert min(row["ms_over_least"] for row in found["cuts"]) == 1
    lines = softmax_cuts.lines_of({"dtype": "fp32", **found})
    assert sum(line.startswith("*") for line in lines) == 1
    with softmax_cuts.force(softmax_plan.Plan(3, 1)):
        assert softmax_plan.plan(head) == (3, 1)
