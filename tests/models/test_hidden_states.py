"""Networks of p(x_0 | x_t) answered from hidden states: the losses, steps and samples of logits."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sedd_fast as sf
from helpers.exposed import (
    GRAPH,
    MASKED,
    NOISE,
    OPTIONS,
    X_0,
    X_T,
    B,
    L,
    Network,
    T,
    V,
    models,
    seeded,
)
from helpers.op_cases import Inputs, assert_inverse_cdf
from helpers.tiny_models import TINY, assert_same_gradients, gradients
from sedd_fast.models.cross_entropy import CrossEntropyRequest
from sedd_fast.models.interface import ReverseStepRequest, ScoreEntropyRequest, takes_request

OBJECTIVES: dict[str, sf.losses.Objective] = {
    "cross entropy": sf.MaskedCrossEntropy(GRAPH, NOISE, "mean"),
    "each sequence": sf.MaskedCrossEntropy(GRAPH, NOISE, over="lambda"),
    "d3pm": sf.D3PMLoss(GRAPH, NOISE, "sum", steps=8),
    "score entropy": sf.ScoreEntropyLoss(GRAPH, NOISE, "mean"),
}
by_objective = pytest.mark.parametrize("name", OBJECTIVES)
by_option = pytest.mark.parametrize("kind", OPTIONS)
by_method = pytest.mark.parametrize("method", ["analytic", "euler", "denoise"])
SIGMA = NOISE.sigma(T)


def posterior_sedd(**settings: Any) -> sf.PosteriorSEDD:
    torch.manual_seed(0)
    model = sf.PosteriorSEDD(sf.SEDDConfig(vocab_size=V, **TINY, **settings))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()


MODELS: dict[str, Callable[[], Any]] = {
    "PosteriorSEDD": posterior_sedd,
    "PosteriorModel": lambda: models("tied and capped")[0],
}
by_model = pytest.mark.parametrize("model", MODELS)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        out = function(*args, **(kwargs or {}))
        sizes = (x.numel() for x in tree_leaves(out) if isinstance(x, Tensor))
        self.numel = max(self.numel, *sizes, 0)
        return out


def drawn(seed: int = 3) -> Tensor:
    return torch.rand(B, L, 2, dtype=torch.float64, generator=seeded(seed))


# The same values as from logits


@by_option
@by_objective
def test_losses_and_gradients_are_those_of_the_logits(kind: str, name: str):
    exposed, logits = models(kind)
    found = []
    for model in (exposed, logits):
        loss = OBJECTIVES[name](model, X_0, t=T, x_t=X_T)
        loss.sum().backward()
        found.append((loss.detach(), gradients(exposed)))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert_same_gradients(found[0][1], found[1][1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_dtypes(dtype: torch.dtype):
    exposed, logits = models()
    exposed.to(dtype)
    with torch.no_grad():
        losses = [OBJECTIVES["each sequence"](m, X_0, t=T, x_t=X_T) for m in (exposed, logits)]
    exact = dtype == torch.float64
    assert losses[0].dtype == (torch.float64 if exact else torch.float32)
    torch.testing.assert_close(*losses, rtol=1e-12 if exact else 0.02, atol=0)


@pytest.mark.parametrize("model", MODELS)
def test_rows_that_overflow(model: str):
    network = MODELS[model]()
    few, all_rows = (sf.touched_rows(X_T, GRAPH, max_rows=n) for n in (3, B * L))
    with torch.no_grad():
        asked = CrossEntropyRequest(X_0, reduction="sum")
        expected = network(X_T, SIGMA, asked)
        listed = CrossEntropyRequest(X_0, reduction="sum", rows=all_rows)
        torch.testing.assert_close(network(X_T, SIGMA, listed), expected)
        assert network(X_T, SIGMA, CrossEntropyRequest(X_0, rows=few)).isnan().all()


def test_a_mask_among_the_tokens():
    """With states renumbered, and rows of embedding and head with them, nothing else changes."""
    moved = sf.Absorbing(V, mask_index=40)
    state = torch.cat((torch.arange(40), torch.tensor([V]), torch.arange(40, V)))  # in GRAPH
    here = state.argsort()
    model, other = models()[0], Network()
    with torch.no_grad():
        for layer in (other.model.embed, other.lm_head):
            for p in layer.parameters():
                p.copy_(p[state])
    renumbered = sf.PosteriorModel(
        other, moved, takes_sigma=False, hidden=Network.hidden, head=other.lm_head
    )
    objective = sf.MaskedCrossEntropy(moved, NOISE, "mean")
    loss = objective(renumbered, here[X_0], t=T, x_t=here[X_T])
    torch.testing.assert_close(loss, OBJECTIVES["cross entropy"](model, X_0, t=T, x_t=X_T))
    for method in ("analytic", "hit"):
        tokens, expected = (
            sf.sample(m, m.graph, NOISE, (B, L), 5, method, generator=seeded(8))
            for m in (renumbered, model)
        )
        assert torch.equal(tokens, here[expected])


# Steps


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize(
    "token_filter", [{}, {"temperature": 0.7, "top_p": 0.8}], ids=["plain", "filtered"]
)
@by_method
@by_model
def test_same_u_same_tokens(model: str, method: Any, token_filter: dict[str, float], backend: Any):
    network = MODELS[model]()
    removed = SIGMA * 0.6 if method == "analytic" else torch.expm1(SIGMA.double()) * 0.6
    request = ReverseStepRequest(method, removed, drawn(), None, **token_filter)
    rows = sf.touched_rows(X_T, GRAPH, max_rows=B * L)
    with torch.no_grad(), sf.use_backend(backend):
        after = network(X_T, SIGMA, request)
        listed = ReverseStepRequest(method, removed, drawn(), rows, **token_filter)
        assert torch.equal(network(X_T, SIGMA, listed), after)
        scores = copy.deepcopy(network).double()(X_T, SIGMA)
    weight = torch.ones(B, L)
    exact = Inputs(GRAPH, scores, SIGMA.double(), removed.double(), X_T, X_0, weight, drawn())
    assert_inverse_cdf(after, exact, method, **token_filter)
    moved = after != X_T
    assert bool(moved[MASKED].any())
    assert not moved[~MASKED].any()
    assert bool(moved[MASKED].all()) == (method == "denoise")


@by_model
def test_whether_a_mask_moves_is_decided_in_closed_form(model: str):
    """By expm1(d) / E (analytic) and h / E (euler), at most 1; float32 scores do not matter."""
    network, masks = MODELS[model](), torch.full((B, L), V)
    sigma = torch.tensor([1e-4, 0.3, 5.0, 60.0], dtype=torch.float64)
    for method in ("analytic", "euler"):
        for removed in (0.0, 1e-6, 0.5, 1.0, 1.5):
            d = removed * sigma if method == "analytic" else removed * torch.expm1(sigma)
            gain = torch.expm1(d) if method == "analytic" else d
            p = (gain / torch.expm1(sigma)).clamp(max=1)[:, None]
            for factor, expected in ((1 - 1e-9, True), (1 + 1e-9, False)):
                u = drawn()
                u[..., 0] = (p * factor).clamp(max=1 - 2**-53)
                request = ReverseStepRequest(method, d, u)
                moved = network(masks, sigma, request) != V
                certain = (p == 1).expand(B, L) & (removed > 1 or expected)
                assert bool((moved == (expected & (p > 0)))[p.expand(B, L) < 1].all())
                assert bool(moved[certain].all())


@pytest.mark.parametrize(("method", "steps"), [("analytic", 7), ("euler", 7), ("hit", 7)])
@by_model
def test_samples_are_those_of_the_log_scores(model: str, method: Any, steps: int):
    network = MODELS[model]()
    assert takes_request(network, GRAPH, ReverseStepRequest)
    options: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9}
    if method == "analytic":
        options["remask"] = sf.Remask("rescale", eta=0.3)
    samples = [
        sf.sample(each, GRAPH, NOISE, (B, L), steps, method, generator=seeded(5), **options)
        for each in (network, lambda x, sigma: network(x, sigma))
    ]
    assert torch.equal(*samples)
    assert not (samples[0] == V).any()


@by_model
def test_the_head_is_applied_where_a_token_is_drawn_alone(model: str, monkeypatch):
    asked: list[Tensor] = []

    def watched(*args: Any, rows: sf.ops.TouchedRows, **options: Any) -> sf.ops.Denoised:
        asked.append(rows.index)
        return sf.ops.linear_denoise(*args, rows=rows, **options)

    monkeypatch.setattr("sedd_fast.models.linear_head.linear_denoise", watched)
    before, seen = torch.full((B, L), V), []
    sf.sample(MODELS[model](), GRAPH, NOISE, (B, L), 6, callback=seen.append, generator=seeded(6))
    for step, rows in zip(seen, asked, strict=False):  # no call once all are drawn
        assert torch.equal(rows, (step.tokens != before).flatten().nonzero().squeeze(-1))
        before = step.tokens
    assert sum(map(len, asked)) == B * L  # each position once


# Memory


def steps_of_everything(network: Any) -> dict[str, Callable[[], Any]]:
    """Training steps, samples and bounds, by name."""
    process = network, GRAPH, NOISE
    bound = {"samples": 4, "batch_size": B}
    return {
        **{
            name: lambda o=objective: o(network, X_0, t=T, x_t=X_T).sum().backward()
            for name, objective in OBJECTIVES.items()
        },
        **{
            method: lambda m=method: sf.sample(*process, (B, L), 4, m)
            for method in ("analytic", "euler", "hit")
        },
        **{
            mode: lambda m=mode: sf.likelihood_bound(network, X_0, GRAPH, NOISE, mode=m, **bound)
            for mode in ("normalised", "exact")
        },
    }


@by_model
def test_the_logits_never_exist(model: str):
    network = MODELS[model]()
    for name, run in steps_of_everything(network).items():
        with Largest() as largest:
            run()
        assert largest.numel < B * L * V, name
    with Largest() as largest:  # it sees what log scores take
        steps_of_everything(lambda x, sigma: network(x, sigma))["analytic"]()
    assert largest.numel >= B * L * V


# Networks that have been changed


class LoRA(nn.Module):
    """A linear layer and a low-rank change of it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.randn(2, base.in_features, generator=seeded()))
        self.b = nn.Parameter(torch.randn(base.out_features, 2, generator=seeded()))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.a.T @ self.b.T


class Doubling(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def set_forward(network: Network) -> None:
    forward = network.forward
    network.forward = lambda x: forward(x.flip(1))  # type: ignore[method-assign]


CHANGES: dict[str, Callable[[Network], object]] = {
    "lora": lambda n: setattr(n, "lm_head", LoRA(n.lm_head)),
    "a subclass of Linear": lambda n: setattr(n.lm_head, "__class__", Doubling),
    "hook on the head": lambda n: n.lm_head.register_forward_hook(lambda m, i, out: 3 * out),
    "pre-hook on the network": lambda n: n.register_forward_pre_hook(lambda m, i: (i[0].flip(1),)),
    "forward of the network": set_forward,
    "pruning": lambda n: prune.random_unstructured(n.lm_head, "weight", 0.5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_network_gives_logits(change: str):
    model, logits = models()
    unchanged = OBJECTIVES["cross entropy"](model, X_0, t=T, x_t=X_T)
    CHANGES[change](model.network)
    for request in (ReverseStepRequest, ScoreEntropyRequest):
        assert not takes_request(model, GRAPH, request)
    losses = [OBJECTIVES["cross entropy"](m, X_0, t=T, x_t=X_T) for m in (model, logits)]
    torch.testing.assert_close(*losses)
    assert not torch.isclose(losses[0], unchanged, rtol=1e-3)
    samples = [sf.sample(m, GRAPH, NOISE, (B, L), 4, generator=seeded(7)) for m in (model, logits)]
    assert torch.equal(*samples)
    with torch.no_grad():
        step = model(X_T, SIGMA, ReverseStepRequest("denoise", u=drawn()))
        expected = sf.reverse_step(model(X_T, SIGMA), X_T, SIGMA, None, GRAPH, "denoise", u=drawn())
    assert torch.equal(step, expected)


def test_a_copy_runs_its_own_weights():
    model, _ = models()
    average = torch.optim.swa_utils.AveragedModel(model)
    with torch.no_grad():
        for p in average.module.parameters():
            p.mul_(1.5)
    assert takes_request(average, GRAPH, CrossEntropyRequest)
    losses = [
        OBJECTIVES["cross entropy"](m, X_0, t=T, x_t=X_T)
        for m in (average, lambda x, sigma: average(x, sigma), model)
    ]
    torch.testing.assert_close(losses[0], losses[1])
    assert not torch.isclose(losses[0], losses[2], rtol=1e-3)
    assert len(model.state_dict()) == len(model.network.state_dict())


def test_check_head():
    for kind in OPTIONS:
        models(kind)[0].check_head(X_T)
    network = Network(softcap=2.0)

    def model(**options: Any) -> sf.PosteriorModel:
        given = {"hidden": Network.hidden, "head": network.lm_head} | options
        return sf.PosteriorModel(network, GRAPH, takes_sigma=False, **given)

    for options in (
        {},
        {"softcap": 3.0},
        {"softcap": 2.0, "hidden": lambda n, x: n.model.embed(x)},
    ):
        with pytest.raises(ValueError, match=r"logits differ from head's output for hidden by up"):
            model(**options).check_head(X_T)
    with pytest.raises(ValueError, match="no hidden states to compare"):
        models()[1].check_head(X_T)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"head": None}, ValueError, "hidden and head belong together"),
        ({"head": None, "hidden": None, "softcap": 3.0}, ValueError, "belong together"),
        ({"hidden": Network().hidden}, TypeError, "hidden must be a function of the network"),
        ({"hidden": Network().model}, TypeError, "hidden must be a function .* got Body"),
        ({"head": Network()}, TypeError, "head must be an nn.Linear, got Network"),
        ({"head": nn.Linear(16, GRAPH.dim)}, ValueError, "head must be a module of the network"),
        ({"graph": sf.Absorbing(V + 2)}, ValueError, "head has 102 rows, but .* has 104 states"),
        ({"softcap": 0.0}, ValueError, "softcap must be positive"),
        ({"network": lambda x: x}, TypeError, "network must be an nn.Module where head is given"),
        ({"network": torch.compile(Network())}, ValueError, "network must not be wrapped"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], words: str):
    network = Network()
    given = {"network": network, "graph": GRAPH, "head": network.lm_head, "hidden": Network.hidden}
    with pytest.raises(error, match=words):
        sf.PosteriorModel(**given | change)


# Compiled


@by_model
def test_compiled_whole(model: str):
    torch.compiler.reset()
    network = MODELS[model]()

    def run(x_t: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        loss = OBJECTIVES["cross entropy"](network, X_0, t=T, x_t=x_t)
        return loss, network(x_t, SIGMA, ReverseStepRequest("analytic", SIGMA * 0.6, u))

    compiled = torch.compile(run, fullgraph=True, backend="eager")
    (loss, tokens), (expected, same) = compiled(X_T, drawn()), run(X_T, drawn())
    torch.testing.assert_close(loss, expected)
    assert torch.equal(tokens, same)
    found = [torch.autograd.grad(x, list(network.parameters())) for x in (loss, expected)]
    for got, gradient in zip(*found, strict=True):
        torch.testing.assert_close(got, gradient, rtol=1e-4, atol=1e-6)
