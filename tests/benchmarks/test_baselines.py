"""The benchmark's contenders are correct: they agree with golden values and our operations."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sedd_fast as sf
from benchmarks.contenders import baselines, compiled, cross_entropy
from benchmarks.harness.config import BenchmarkConfig
from benchmarks.suites import head, ops

V = 11
GRAPHS = {"absorbing": sf.Absorbing(V), "uniform": sf.Uniform(V)}
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(Path(__file__).parents[1] / "golden" / "process.safetensors")


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
    grad = grad.scatter(-1, g["xt"][..., None], 0.0)  # the gradient at x_t is not defined
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
def test_step_distributions_are_golden_and_ours(case, method):
    graph, g = case
    dsigma = {"analytic": g["dsigma"], "euler": euler_step(g), "denoise": g["sigma"]}[method]
    eager = baselines.step_weights(g["log_score"], g["xt"], dsigma, graph, method)
    torch.testing.assert_close(eager, g[f"{method}_probs"], **CLOSE)
    moves, stay = compiled.moves_and_stay(
        g["log_score"],
        g["xt"],
        dsigma,
        graph,
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
    moves, stay = compiled.moves_and_stay(log_score, x_t, torch.ones(1, 1), graph, "denoise")
    ours = sf.reverse_probs(log_score, x_t, 1.0, None, graph, "denoise")
    static = normal(moves.scatter(-1, x_t[..., None], stay[..., None]))
    torch.testing.assert_close(static, ours, rtol=1e-5, atol=1e-7)


def test_static_losses_are_golden(case):
    graph, g = case
    leaf = g["log_score"].float().requires_grad_()
    inputs = (g["sigma"], g["xt"], g["x0"], g["loss_weight"], graph)
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
def test_every_draw_follows_our_distribution(kind, method):
    graph, draws = GRAPHS[kind], 40_000
    torch.manual_seed(1)
    x_t = torch.tensor([[graph.dim - 1]])
    log_score = (0.7 * torch.randn(1, 1, graph.dim) - 2.0).scatter(-1, x_t[..., None], 0.0)
    dsigma = torch.full((1, 1), 0.3)
    probs = sf.reverse_probs(log_score, x_t, 0.9, 0.3, graph, method).flatten().double()
    many, tokens = log_score.expand(1, draws, -1), x_t.expand(1, draws)
    for draw in (
        lambda: baselines.reverse_step(many, tokens, dsigma, graph, method),
        lambda: compiled.race_step(many, tokens, dsigma, graph, method),
        lambda: compiled.inverse_cdf_step(many, tokens, dsigma, graph, method),
    ):
        counts = torch.bincount(draw().flatten(), minlength=graph.dim).double()
        spread = (draws * probs * (1 - probs)).sqrt() + 1
        assert ((counts - draws * probs).abs() < 5 * spread).all()


@pytest.mark.parametrize("kind", ["absorbing", "uniform"])
def test_noise_changes_as_many_tokens_as_ours(kind):
    graph, sigma = GRAPHS[kind], torch.full((4, 1), 0.7)
    torch.manual_seed(2)
    x_0 = torch.randint(V, (4, 20_000))
    moved = (sf.sample_transition(x_0, sigma, graph) != x_0).double().mean().item()
    for x_t in (
        baselines.sample_transition(x_0, sigma, graph),
        compiled.sample_transition(x_0, sigma, graph),
    ):
        assert (x_t != x_0).double().mean().item() == pytest.approx(moved, abs=0.012)
        assert int(x_t.max()) < graph.dim


@pytest.mark.parametrize("kind", ["absorbing", "uniform"])
def test_problem_has_the_noise_it_claims(kind):
    graph = GRAPHS[kind]
    chosen = BenchmarkConfig(positions=20, vocab_size=V, masked=0.35)
    problem = ops.make_problem(graph, chosen, torch.float32, torch.device("cpu"))
    assert int((problem.x_t != problem.x_0).sum()) == 7
    rows = 7 if kind == "absorbing" else 20
    assert problem.touched_bytes == rows * graph.dim * 4
    assert problem.bytes == 20 * graph.dim * 4
    assert (problem.log_score.gather(-1, problem.x_t[..., None]) == 0).all()
    assert 0 < problem.removed.min() < problem.sigma.min()


def test_contenders_of_a_case_agree():
    chosen = BenchmarkConfig(positions=8, vocab_size=V, compile=False, backends=("reference",))
    for case in ops.op_cases(chosen, None):
        if "gradient" in case.operation:
            grads = [c.run()[-1] for c in case.contenders]
            scores = case.tensor
            for grad in grads[1:]:
                # The eager uniform loss has no gradient at x_t, up to the rounding of a difference.
                torch.testing.assert_close(grad, grads[0], rtol=1e-3, atol=1e-4)
            assert grads[0].shape == scores.shape


def test_cross_entropies_agree():
    """Those that run on a CPU agree with the plain one; missing ones are named on a GPU only."""
    problem = head.make_head(BenchmarkConfig(vocab_size=V), 8, 6, torch.float32)
    problem.bias.data[-1] = -torch.inf  # the mask: the suite excludes it so
    hidden, target = problem.touched().requires_grad_(), problem.x_0[problem.x_t == V]
    operands = (hidden, problem.weight, problem.bias)
    scores = torch.nn.functional.linear(*operands)
    plain = torch.nn.functional.cross_entropy(scores, target)
    expected = torch.autograd.grad(plain, operands)
    for contender in cross_entropy.contenders(*operands, target):
        torch.testing.assert_close(contender.run(), expected)
    assert cross_entropy.missing("cpu") == []
    assert all("pip install" in line for line in cross_entropy.missing("cuda"))
