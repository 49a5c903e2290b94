"""compat: golden values of the original, models, samplers and data under its names."""

import copy
import math
from itertools import islice

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from scipy import stats
from torch import nn

from helpers.original_settings import GOLDEN, settings
from sedd_fast.compat import (
    catsample,
    data,
    graph_lib,
    load_model,
    losses,
    noise_lib,
    sampling,
    utils,
)
from sedd_fast.compat.model import SEDD
from sedd_fast.compat.model import utils as mutils
from sedd_fast.models.ema import ExponentialMovingAverage

CPU = torch.device("cpu")
GRAPHS = ("absorb", "uniform")


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# --- golden values ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["absorbing", "uniform"])
def test_graph_operations_of_the_original(kind, double):
    golden = load_file(GOLDEN / "process.safetensors")
    golden = {k.removeprefix(f"{kind}."): v for k, v in golden.items() if k.startswith(kind)}
    graph = {"absorbing": graph_lib.Absorbing, "uniform": graph_lib.Uniform}[kind](11)
    x, x0, d, sigma = (golden[name] for name in ("xt", "x0", "dsigma", "sigma"))
    score = golden["log_score"].exp()
    made = {
        "score_entropy": graph.score_entropy(golden["log_score"], sigma[:, None], x, x0),
        "rate": graph.rate(x),
        "transp_rate": graph.transp_rate(x),
        "reverse_rate": graph.reverse_rate(x, score),
        "staggered_score": graph.staggered_score(score, d[:, None]),
        "transp_transition": graph.transp_transition(x, d[:, None]),
    }
    for name, value in made.items():
        torch.testing.assert_close(value, golden[name], rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("graph", [graph_lib.Absorbing(5), graph_lib.Uniform(5)])
def test_rows_and_columns_are_those_of_the_matrices(graph, double):
    states, sigma = torch.arange(graph.dim), torch.tensor(0.3)
    torch.testing.assert_close(graph.rate(states), graph._graph.rate_matrix().T)
    torch.testing.assert_close(graph.transp_rate(states), graph._graph.rate_matrix())
    matrix = graph._graph.transition_matrix(0.3)
    torch.testing.assert_close(graph.transition(states, sigma), matrix.T)
    torch.testing.assert_close(graph.transp_transition(states, sigma), matrix)


@pytest.mark.parametrize("graph", [graph_lib.Absorbing(5), graph_lib.Uniform(5)])
def test_noise_may_differ_between_positions(graph):
    torch.manual_seed(0)
    x0, sigma = torch.randint(0, 5, (3, 4)), torch.rand(3, 4) + 0.1
    x = graph.sample_transition(x0, sigma)
    score = torch.randn(3, 4, graph.dim)
    loss = graph.score_entropy(score, sigma, x, x0)
    single = graph.score_entropy(score[1:2, 2:3], sigma[1:2, 2:3], x[1:2, 2:3], x0[1:2, 2:3])
    assert loss[1, 2].item() == pytest.approx(single.item())
    certain = graph.sample_transition(torch.zeros(2, 500).long(), torch.tensor([[1e-9], [50.0]]))
    assert (certain[0] == 0).all()
    assert (certain[1] != 0).float().mean() > 0.7


def test_noise_schedules_of_the_original():
    golden = load_file(GOLDEN / "process.safetensors")
    made = {
        "loglinear": noise_lib.LogLinearNoise(),
        "geometric": noise_lib.get_noise(settings("uniform")),
        "geometric_default": noise_lib.GeometricNoise(),
    }
    for name, noise in made.items():
        sigma, rate = noise(golden["noise.t"])
        torch.testing.assert_close(sigma, golden[f"noise.{name}.sigma"], rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(rate, golden[f"noise.{name}.rate"], rtol=1e-5, atol=1e-9)
        assert [n for n, _ in noise.named_parameters()] == ["empty"]
    with pytest.raises(ValueError, match="learnable"):
        noise_lib.GeometricNoise(learnable=True)


@pytest.mark.parametrize("name", GRAPHS)
def test_loss_and_gradient_of_the_original_network(name):
    golden = load_file(GOLDEN / "model.safetensors")
    model, graph, noise = load_model.load_model(GOLDEN / f"{name}-hf", CPU)
    batch, t, perturbed = (golden[f"{name}.{key}"] for key in ("batch", "t", "perturbed"))
    loss_fn = losses.get_loss_fn(noise, graph, train=False)
    loss = loss_fn(model, batch, t=t, perturbed_batch=perturbed)
    torch.testing.assert_close(loss, golden[f"{name}.loss"], rtol=1e-4, atol=1e-4)
    loss.mean().backward()
    norms = torch.stack([p.grad.norm() for p in model.parameters()])
    torch.testing.assert_close(norms, golden[f"{name}.grad_norm"], rtol=1e-3, atol=1e-5)


# --- models -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["absorb-hf", "local-run"])
def test_load_model(name):
    golden = load_file(GOLDEN / "model.safetensors")
    model, graph, noise = load_model.load_model(str(GOLDEN / name), CPU)
    key = {"absorb-hf": "absorb", "local-run": "local_run"}[name]
    with torch.no_grad():
        log_score = model(golden[f"{key}.indices"], golden[f"{key}.sigma"])
    torch.testing.assert_close(log_score, golden[f"{key}.log_score"], rtol=1e-4, atol=1e-4)
    assert (type(graph), graph.dim) == (graph_lib.Absorbing, 38)
    assert isinstance(noise, noise_lib.LogLinearNoise)
    assert not model.training
    assert (model.config.tokens, model.config.model.length) == (37, 24)


def test_load_model_reads_a_run_whose_learning_rate_is_a_numpy_number(tmp_path):
    (tmp_path / ".hydra").mkdir()
    OmegaConf.save(settings(), tmp_path / ".hydra" / "config.yaml")
    model = SEDD(settings())
    ema = ExponentialMovingAverage(model.parameters(), 0.9)
    optimizer = losses.get_optimizer(settings(), model.parameters())
    optimizer.param_groups[0]["lr"] = 3e-4 * np.minimum(1 / 3, 1.0)
    state = {"model": model, "ema": ema, "optimizer": optimizer, "step": 1}
    utils.makedirs(tmp_path / "checkpoints-meta")
    utils.save_checkpoint(tmp_path / "checkpoints-meta" / "checkpoint.pth", state)
    loaded = load_model.load_model(tmp_path, CPU)[0]
    assert torch.equal(loaded.vocab_embed.embedding, model.vocab_embed.embedding)
    path = tmp_path / "checkpoints-meta" / "checkpoint.pth"
    assert utils.restore_checkpoint(path, {**state, "step": 0}, CPU)["step"] == 1


@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_state_that_does_not_fit_is_refused_with_its_file(amsgrad, tmp_path):
    def made():
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, amsgrad=amsgrad, fused=True)
        ema = ExponentialMovingAverage(model.parameters(), 0.9)
        return {"model": model, "optimizer": optimizer, "ema": ema, "step": 0}

    def trained(state):
        state["optimizer"].zero_grad()
        state["model"](torch.ones(1, 3)).sum().backward()
        state["optimizer"].step()
        return {**state, "step": state["step"] + 1}

    first, path = trained(made()), tmp_path / "checkpoint.pth"
    utils.save_checkpoint(path, first)
    saved = torch.load(path, weights_only=True)
    again = trained(utils.restore_checkpoint(path, made(), CPU))
    assert again["step"] == 2
    assert torch.equal(again["model"].weight, trained(first)["model"].weight)
    wrong = [{name: value for name, value in saved.items() if name != left} for left in saved]
    wrong += [saved | {"step": "1"}, saved | {"optimizer": []}, saved | {"ema": {"decay": 1}}]
    changes = [("exp_avg", torch.zeros(1)), ("exp_avg_sq", torch.zeros(2, 3).half())]
    changes += [("step", torch.zeros(1)), ("exp_avg", None), ("max_exp_avg_sq", torch.zeros(4))]
    for name, value in changes:
        bad = copy.deepcopy(saved)
        bad["optimizer"]["state"][0][name] = value
        wrong.append(bad)
    for name, value in (("lr", "fast"), ("betas", (1.0,)), ("fused", 3), ("params", [0, 1, 2])):
        bad = copy.deepcopy(saved)
        bad["optimizer"]["param_groups"][0][name] = value
        wrong.append(bad)
    for content in wrong:
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"checkpoint\.pth does not hold a state"):
            utils.restore_checkpoint(path, made(), CPU)


@pytest.mark.parametrize("form", ["omegaconf", "dict", "nested", "struct"])
def test_model_takes_settings_in_any_form(form):
    config = settings()
    config.data.cache_dir = "${hydra:run.dir}"  # cannot be resolved here, and need not be
    plain = OmegaConf.to_container(config)
    OmegaConf.set_struct(config, form == "struct")
    given = {"dict": plain, "nested": {"config": plain}}.get(form, config)
    model = SEDD(given)
    assert model.config.graph.type == "absorb"
    assert graph_lib.get_graph(model.config, CPU).dim == 8
    assert isinstance(noise_lib.get_noise(model.config), noise_lib.LogLinearNoise)


def test_model_parameters_belong_to_it_alone(tmp_path):
    model = SEDD(settings())
    twin = copy.deepcopy(model)
    twin.double()
    nn.init.normal_(twin.output_layer.linear.weight)
    x, sigma = torch.zeros(1, 8).long(), torch.ones(1)
    assert twin(x, sigma).dtype == torch.float64
    assert not torch.allclose(twin(x, sigma).float(), model(x, sigma))
    assert not any(name.startswith("network") for name in model.state_dict())
    model.save_pretrained(tmp_path)
    again = SEDD.from_pretrained(tmp_path)
    assert torch.equal(again.vocab_embed.embedding, model.vocab_embed.embedding)
    with pytest.raises(TypeError, match="OmegaConf"):
        SEDD(7)


# --- sampling -----------------------------------------------------------------------------------


class ExactScore(nn.Module):
    """The true score of one token with distribution p, absorbing: p_y / expm1(sigma)."""

    def __init__(self, p: torch.Tensor) -> None:
        super().__init__()
        self.log_p = nn.Buffer(torch.cat((p.log(), torch.zeros(1))))

    def forward(self, indices, sigma):
        log_score = self.log_p - torch.expm1(sigma).log()[:, None, None]
        log_score = log_score.expand(*indices.shape, -1)
        return log_score.scatter(-1, indices[..., None], 0.0)


@pytest.mark.parametrize("predictor", ["analytic", "euler", "none"])
def test_sampler_gives_the_distribution_of_exact_scores(predictor):
    torch.manual_seed(0)
    p = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    graph, noise = graph_lib.Absorbing(4), noise_lib.LogLinearNoise()
    sampler = sampling.get_pc_sampler(graph, noise, (20_000, 1), predictor, 3)
    counts = sampler(ExactScore(p)).flatten().bincount(minlength=4)
    assert stats.chisquare(counts.numpy(), 20_000 * p.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("predictor", ["analytic", "euler"])
def test_size_of_a_step(predictor):
    torch.manual_seed(0)
    graph, noise = graph_lib.Absorbing(4), noise_lib.GeometricNoise(0.1, 2.0)
    score = torch.full((1, 20_000, 5), 0.5)  # S = 2
    step = sampling.get_predictor(predictor)(graph, noise).update_fn
    x = step(lambda x, sigma: score, graph.sample_limit(1, 20_000), torch.full((1, 1), 0.5), 0.1)
    before, after = 0.1**0.5 * 2**0.5, 0.1**0.6 * 2**0.4  # sigma(0.5), sigma(0.4)
    h = {"euler": 0.1 * before * math.log(20), "analytic": math.expm1(before - after)}
    moved = (x != 4).float().mean().item()
    assert moved == pytest.approx(2 * h[predictor], abs=0.01)


def test_sampler_keeps_the_prompt():
    graph, noise = graph_lib.Absorbing(4), noise_lib.LogLinearNoise()

    def proj_fun(x):
        x[:, [0, 3]] = torch.tensor([2, 1])
        return x

    arguments = (graph, noise, (5, 6), "euler", 4)
    sampler = sampling.get_pc_sampler(*arguments, device=CPU, proj_fun=proj_fun)
    x = proj_fun(sampler(ExactScore(torch.full((4,), 0.25))))
    assert x[:, [0, 3]].tolist() == [[2, 1]] * 5
    assert x.max() < 4


def test_a_predictor_of_ones_own_gets_scores(monkeypatch):
    monkeypatch.setattr(sampling, "_PREDICTORS", dict(sampling._PREDICTORS))
    seen = []

    @sampling.register_predictor(name="dense")
    class Dense(sampling.Predictor):
        def update_fn(self, score_fn, x, t, step_size):
            sigma, rate = self.noise(t)
            score = score_fn(x, sigma)
            seen.append(score)
            rates = step_size * rate[..., None] * self.graph.reverse_rate(x, score)
            return self.graph.sample_rate(x, rates)

    graph, noise = graph_lib.Absorbing(4), noise_lib.LogLinearNoise()
    x = sampling.get_pc_sampler(graph, noise, (3, 5), "dense", 4)(ExactScore(torch.ones(4) / 4))
    assert x.max() < 4
    assert all((score >= 0).all() for score in seen)
    step = sampling.AnalyticPredictor(graph, noise).update_fn  # and a score function of one's own
    start, t = graph.sample_limit(2, 3), torch.full((2, 1), 0.999)
    assert step(lambda x, sigma: torch.ones(2, 3, 5), start, t, 0.1).shape == (2, 3)
    with pytest.raises(ValueError, match="already registered"):
        sampling.register_predictor(Dense, name="dense")
    with pytest.raises(ValueError, match=r"'euler'.*'nothing'"):
        sampling.get_predictor("nothing")
    with pytest.raises(ValueError, match="evaluation mode"):
        mutils.get_score_fn(nn.Identity(), train=True, sampling=True)


def test_sample_categorical():
    torch.manual_seed(0)
    weights = torch.tensor([0.0, 3.0, -5.0, 1.0, 0.0]).expand(40_000, 5)
    counts = catsample.sample_categorical(weights).bincount(minlength=5)
    assert counts[[0, 2, 4]].tolist() == [0, 0, 0]
    assert stats.chisquare(counts[[1, 3]].numpy(), [30_000, 10_000]).pvalue > 1e-3
    with pytest.raises(ValueError, match="no distribution"):
        catsample.sample_categorical(torch.zeros(2, 3))


# --- data ---------------------------------------------------------------------------------------


class Letters:
    """A tokenizer: a letter is a token, end-of-text is 99."""

    eot = 99

    def encode_corpus(self, texts):
        return [[ord(c) - ord("a") for c in text] for text in texts]


def test_get_dataset_packs_documents(tmp_path, monkeypatch):
    (tmp_path / "train.txt").write_text("abc\nde\nfghijk\n")
    monkeypatch.setattr(data, "load_tokenizer", lambda name: Letters())
    made = data.get_dataset(str(tmp_path), "train", tmp_path / "cache", block_size=4, num_proc=1)
    assert made.column_names == ["input_ids"]
    rows = torch.stack(list(made["input_ids"]))
    assert rows.tolist() == [[0, 1, 2, 99], [3, 4, 99, 5], [6, 7, 8, 9]]  # 10, 99 are left over


def test_cycle_loader_and_detokenizers():
    loader = torch.utils.data.DataLoader(range(3), batch_size=2)
    assert [b.tolist() for b in islice(data.cycle_loader(loader), 3)] == [[0, 1], [2], [0, 1]]
    assert data.wt_detokenizer("it 's 1 @,@ 000 ( or so ) .\n") == "it's 1,000 (or so) .\n"
    assert data.ptb_detokenizer("N N N do n't") == "N 1 1 don't"
    assert data.lm1b_detokenizer("he 's at home , is he ?") == "he's at home, is he?"
    assert data.lambada_detokenizer(" “a” ") == '\n"a"'
