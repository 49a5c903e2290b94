"""compat: loops in the original's style, on our modules, on the definition, and on the original.

With SEDD_ORIGINAL=/path/to/a/checkout they also run on the original's own modules.
"""

import importlib
import inspect
import math
import os
import sys
from itertools import chain
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scipy import stats
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from helpers.original_settings import settings
from sedd_fast.compat import (
    graph_lib,
    losses,
    noise_lib,
    sampling,
    utils,
)
from sedd_fast.compat.model import SEDD
from sedd_fast.models.ema import ExponentialMovingAverage

CPU = torch.device("cpu")
GRAPHS = ("absorb", "uniform")


@pytest.fixture
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


# --- the original's training script, in small ---------------------------------------------------


def train_like_the_original(config, work_dir: Path, n_iters: int) -> SimpleNamespace:
    checkpoint = work_dir / "checkpoints-meta" / "checkpoint.pth"
    utils.makedirs(checkpoint.parent)
    graph = graph_lib.get_graph(config, CPU)
    score_model = SEDD(config).to(CPU)
    ddp = {"static_graph": True, "find_unused_parameters": True}
    score_model = DistributedDataParallel(score_model, **ddp)
    ema = ExponentialMovingAverage(score_model.parameters(), decay=config.training.ema)
    noise = DistributedDataParallel(noise_lib.get_noise(config).to(CPU), static_graph=True)
    optimizer = losses.get_optimizer(config, chain(score_model.parameters(), noise.parameters()))
    scaler = torch.amp.GradScaler("cuda", enabled=False)
    state = {"optimizer": optimizer, "scaler": scaler, "model": score_model}
    state |= {"noise": noise, "ema": ema, "step": 0}
    state = utils.restore_checkpoint(checkpoint, state, CPU)
    optimize_fn = losses.optimization_manager(config)
    train_step = losses.get_step_fn(noise, graph, True, optimize_fn, config.training.accum)
    eval_step = losses.get_step_fn(noise, graph, False, optimize_fn, config.training.accum)
    shape = (4, config.model.length)
    sampling_fn = sampling.get_sampling_fn(config, graph, noise, shape, 1e-5, CPU)
    batch = torch.arange(8 * 8).view(8, 8) % 2
    before = sum(eval_step(state, batch).item() for _ in range(30)) / 30
    seen = []
    while state["step"] < n_iters:
        seen.append(train_step(state, batch).item())
    utils.save_checkpoint(checkpoint, state)
    ema.store(score_model.parameters())
    ema.copy_to(score_model.parameters())
    sample = sampling_fn(score_model)
    ema.restore(score_model.parameters())
    after = sum(eval_step(state, batch).item() for _ in range(30)) / 30
    return SimpleNamespace(losses=seen, state=state, sample=sample, before=before, after=after)


@pytest.mark.filterwarnings("ignore:You passed find_unused_parameters")
@pytest.mark.parametrize("graph", GRAPHS)
def test_training_script_learns_saves_and_resumes(graph, tmp_path, process_group):
    torch.manual_seed(0)
    config = settings(graph, training={"ema": 0.9, "accum": 2}, model={"dropout": 0.0})
    first = train_like_the_original(config, tmp_path, n_iters=40)
    assert len(first.losses) == 80  # accum calls a step
    assert first.after < 0.6 * first.before
    assert first.sample.shape == (4, 8)
    assert first.sample.max() < config.tokens
    assert first.state["optimizer"].param_groups[0]["lr"] == config.optim.lr  # warmed up
    resumed = train_like_the_original(config, tmp_path, n_iters=40)
    assert resumed.losses == []
    assert resumed.state["step"] == 40
    after, before = (
        chain(r.state["model"].state_dict().values(), r.state["ema"].shadow_params)
        for r in (resumed, first)
    )
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_first_loss_is_that_of_a_uniform_guess():
    model, (graph, noise) = SEDD(settings()), (graph_lib.Absorbing(7), noise_lib.LogLinearNoise())
    batch = torch.zeros(2000, 8, dtype=torch.int64)
    loss = losses.get_loss_fn(noise, graph, train=False)(model, batch).mean()
    assert loss.item() == pytest.approx(8 * math.log(7), rel=0.1)


# --- the same loop on several sets of modules ---------------------------------------------------

COMPAT = SimpleNamespace(
    graph_lib=graph_lib,
    noise_lib=noise_lib,
    losses=losses,
    sampling=sampling,
    ExponentialMovingAverage=ExponentialMovingAverage,
)


class TinyScore(nn.Module):
    """A score network that needs nothing of either code base."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token, self.noise = nn.Embedding(dim, 16), nn.Linear(1, 16)
        self.mix, self.head = nn.Linear(16, 16), nn.Linear(16, dim)

    def forward(self, indices, sigma):
        x = self.token(indices) + self.noise(sigma.log().clamp(-3, 3)[:, None])[:, None]
        x = torch.tanh(self.mix(x + x.mean(1, keepdim=True)))
        return self.head(x).scatter(-1, indices[..., None], 0.0)


def draws(config, steps: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(batch, t, perturbed batch) of each step: all the randomness that training has."""
    torch.manual_seed(1)
    graph, noise = graph_lib.get_graph(config, CPU), noise_lib.get_noise(config)
    made = []
    for _ in range(steps):
        batch = torch.randint(0, 3, (16, 8))
        # not too early: at small sigma the original's uniform loss is off (compat's docstring)
        t = torch.rand(16) * 0.5 + 0.5
        made.append((batch, t, graph.sample_transition(batch, noise(t)[0][:, None])))
    return made


def loop_in_the_original_style(lib, config, made):
    """Losses of each step, the averaged weights, and the trained network."""
    torch.manual_seed(2)
    graph = lib.graph_lib.get_graph(config, CPU)
    noise = lib.noise_lib.get_noise(config).to(CPU)
    model = TinyScore(graph.dim)
    ema = lib.ExponentialMovingAverage(model.parameters(), decay=config.training.ema)
    optimizer = lib.losses.get_optimizer(config, chain(model.parameters(), noise.parameters()))
    scaler = torch.amp.GradScaler("cuda", enabled=False)
    optimize_fn = lib.losses.optimization_manager(config)
    loss_fn = lib.losses.get_loss_fn(noise, graph, train=True)
    seen = []
    for step, (batch, t, perturbed) in enumerate(made, start=1):
        loss = loss_fn(model, batch, t=t, perturbed_batch=perturbed).mean()
        scaler.scale(loss).backward()
        optimize_fn(optimizer, scaler, model.parameters(), step=step)
        ema.update(model.parameters())
        optimizer.zero_grad()
        seen.append(loss.item())
    return torch.tensor(seen), ema.shadow_params, model


def plain_loss_fn(noise, graph, train):
    """Score entropy from its definition (equation 5), in float64, with every ratio written out."""

    def loss_fn(model, batch, t, perturbed_batch):
        sigma, rate = noise(t)
        log_score = model(perturbed_batch, sigma).double()
        keep = torch.exp(-sigma.double())[:, None, None]
        limit = torch.full((graph.dim,), 1 / graph.dim).double()
        if graph.absorb:
            limit = nn.functional.one_hot(torch.tensor(graph.dim - 1), graph.dim).double()
        p = keep * nn.functional.one_hot(batch, graph.dim) + (1 - keep) * limit
        ratio = p / p.gather(-1, perturbed_batch[..., None])
        terms = log_score.exp() - ratio * log_score + torch.xlogy(ratio, ratio) - ratio
        rates = 1 / graph.dim
        if graph.absorb:  # only the mask is jumped into
            rates = (perturbed_batch == graph.dim - 1)[..., None].double()
        others = 1 - nn.functional.one_hot(perturbed_batch, graph.dim)
        return (rate[:, None] * (rates * others * terms).sum(-1)).sum(-1)

    return loss_fn


@pytest.mark.parametrize("graph", GRAPHS)
def test_loop_against_the_definition(graph):
    config = settings(graph)
    made = draws(config, steps=25)
    plain_losses = SimpleNamespace(**{**vars(losses), "get_loss_fn": plain_loss_fn})
    plain = SimpleNamespace(**{**vars(COMPAT), "losses": plain_losses})
    ours, shadows, _ = loop_in_the_original_style(COMPAT, config, made)
    theirs, plain_shadows, _ = loop_in_the_original_style(plain, config, made)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(shadows, plain_shadows, rtol=1e-3, atol=1e-4)
    assert ours[-5:].mean() < 0.8 * ours[:5].mean()


@pytest.fixture(scope="module")
def original():
    """The modules of a checkout of the original, without the network, which needs a GPU."""
    path = os.environ.get("SEDD_ORIGINAL")
    if not path:
        pytest.skip("SEDD_ORIGINAL names no checkout of the original")
    names = ("catsample", "graph_lib", "noise_lib", "losses", "sampling", "utils", "model.ema")
    package = ModuleType("model")  # its own __init__ would import the network
    package.__path__ = [str(Path(path) / "model")]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path)
        for name in (*names, "model.utils"):
            patch.delitem(sys.modules, name, raising=False)
        patch.setitem(sys.modules, "model", package)
        modules = {name: importlib.import_module(name) for name in names}
        assert Path(modules["losses"].__file__).parent == Path(path).resolve()
        ema = modules.pop("model.ema").ExponentialMovingAverage
        yield SimpleNamespace(**modules, ExponentialMovingAverage=ema)
        for name in (*names, "model.utils"):
            sys.modules.pop(name, None)


@pytest.mark.filterwarnings("ignore:.*autocast.*")
@pytest.mark.parametrize("graph", GRAPHS)
def test_loop_against_the_original(graph, original):
    config = settings(graph)
    made = draws(config, steps=25)
    ours, shadows, _ = loop_in_the_original_style(COMPAT, config, made)
    theirs, original_shadows, _ = loop_in_the_original_style(original, config, made)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(shadows, original_shadows, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*autocast.*")
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("predictor", ["euler", "analytic"])
def test_samples_are_distributed_as_those_of_the_original(graph, predictor, original):
    config = settings(graph, sampling={"predictor": predictor, "steps": 12})
    model = loop_in_the_original_style(COMPAT, config, draws(config, steps=25))[2]
    counts = []
    for lib in (COMPAT, original):
        torch.manual_seed(3)
        process = lib.graph_lib.get_graph(config, CPU), lib.noise_lib.get_noise(config)
        tokens = lib.sampling.get_sampling_fn(config, *process, (8000, 2), 1e-5, CPU)(model)
        pairs = tokens[:, 0] * config.tokens + tokens[:, 1]
        counts.append(pairs.bincount(minlength=config.tokens**2).numpy())
    table = np.stack(counts)
    table = table[:, table.sum(0) > 0]
    assert stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize(
    "name", ["graph_lib", "noise_lib", "losses", "sampling", "catsample", "utils"]
)
def test_names_and_parameters_of_the_original(name, original):
    theirs, ours = getattr(original, name), importlib.import_module(f"sedd_fast.compat.{name}")
    made_there = (n for n, v in vars(theirs).items() if getattr(v, "__module__", "") == name)
    public = [n for n in made_there if not n.startswith("_")]
    assert public
    for item in public:
        expected, found = parameters(getattr(theirs, item)), parameters(getattr(ours, item))
        assert expected.items() <= found.items(), item


def parameters(item) -> dict[str, tuple[str, ...]]:
    """Names of the parameters of a function, or of a class and each of its public methods."""
    calls = {"": item}
    if inspect.isclass(item):
        methods = inspect.getmembers(item, inspect.isfunction)
        calls |= {n: f for n, f in methods if n[0] != "_" and not hasattr(nn.Module, n)}
    named = {n: tuple(inspect.signature(f).parameters) for n, f in calls.items()}
    return {n: names for n, names in named.items() if names != ("args", "kwargs")}
