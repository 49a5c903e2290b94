"""The operations under torch.func: grad, vjp, jacrev and vmap, nested and compiled."""

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import sedd_fast as sf
from helpers.tiny_models import assert_same_gradients, batch, gradients, tiny

V = 7
GRAPH = sf.Absorbing(V)
X_T = torch.tensor([[V, 2, V]])
X_0 = torch.tensor([[0, 2, 5]])
WEIGHT = torch.linspace(-1, 1, (V + 1) * 4).reshape(V + 1, 4)


def entropy(scores: Tensor) -> Tensor:
    return sf.score_entropy(scores, 0.5, X_T, X_0, GRAPH, reduction="sum")


def sums(scores: Tensor) -> Tensor:
    total, log_x_0 = sf.row_sums(scores, X_T, X_0, GRAPH, "square")
    return (total - 2 * log_x_0).sum()


def probs(scores: Tensor) -> Tensor:
    p = sf.reverse_probs(scores, X_T, 0.5, 0.2, GRAPH, "analytic")
    return (p * torch.arange(V + 1.0)).sum()


def head(reduction: str):
    def loss(hidden: Tensor) -> Tensor:
        return sf.linear_score_entropy(
            hidden, WEIGHT, None, 0.5, X_T, X_0, GRAPH, reduction=reduction
        ).sum()

    return loss


def softmax_head(reduction: str):
    def loss(hidden: Tensor) -> Tensor:
        return sf.linear_cross_entropy(
            hidden, WEIGHT, None, X_0, excluded=V, softcap=3.0, z_loss=0.1, reduction=reduction
        ).sum()

    return loss


OPS = {
    "score_entropy": (entropy, V + 1),
    "row_sums": (sums, V + 1),
    "reverse_probs": (probs, V + 1),
    "linear_score_entropy, none": (head("none"), 4),
    "linear_score_entropy, sum": (head("sum"), 4),
    "linear_cross_entropy, none": (softmax_head("none"), 4),
    "linear_cross_entropy, mean": (softmax_head("mean"), 4),
}


@pytest.fixture(params=OPS)
def op(request):
    """A loss of one operation, inputs, and the gradient there."""
    loss, width = OPS[request.param]
    x = torch.randn(1, 3, width, generator=torch.Generator().manual_seed(0))
    leaf = x.clone().requires_grad_()
    return loss, x, torch.autograd.grad(loss(leaf), leaf)[0]


def by_vjp(f, x):
    value, pull_back = vjp(f, x)
    return pull_back(torch.ones_like(value))[0]


def below_another(f, x):
    """The inner transform differentiates by q alone: f is a constant there."""
    return grad(lambda z: grad(lambda q: q * f(z))(torch.ones(())))(x)


def below_autograd(f, x):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(grad(lambda q: q * f(leaf))(torch.ones(())), leaf)[0]


def batched(f, x):
    return vmap(grad(f))(torch.stack((x, 2 * x)))[0]


TRANSFORMS = {
    "grad": lambda f, x: grad(f)(x),
    "vjp": by_vjp,
    "jacrev": lambda f, x: jacrev(f)(x),
    "vmap": batched,
    "below another": below_another,
    "below autograd": below_autograd,
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_a_transform_gives_the_gradient(op, transform):
    loss, x, expected = op
    torch.testing.assert_close(transform(loss, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("transform", [batched, below_another])
def test_a_compiled_transform_gives_the_gradient(op, transform):
    loss, x, expected = op
    compiled = torch.compile(lambda x: transform(loss, x), backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-6)


REFUSED = {
    "grad of grad": lambda f, x: grad(lambda z: grad(f)(z).sum())(x),
    "hessian": lambda f, x: hessian(f)(x),
    "jvp": lambda f, x: jvp(f, (x,), (torch.ones_like(x),)),
    "jacfwd": lambda f, x: jacfwd(f)(x),
    "jvp of grad": lambda f, x: jvp(grad(f), (x,), (x,)),
    "jacfwd of grad": lambda f, x: jacfwd(grad(f))(x),
}


@pytest.mark.parametrize("transform", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_derivative_that_there_is_not_is_an_error_and_not_zero(transform, compiled):
    call = torch.compile(transform, backend="aot_eager") if compiled else transform
    with pytest.raises(Exception, match=r"score_entropy has no (second|forward-mode) derivative"):
        call(entropy, torch.randn(1, 3, V + 1))


def test_no_gradient_is_recorded_under_no_grad():
    def loss(x: Tensor) -> Tensor:
        with torch.no_grad():
            constant = entropy(x)
        return constant * x.sum()

    x = torch.randn(1, 3, V + 1)
    torch.testing.assert_close(grad(loss)(x), entropy(x).expand(x.shape))


@pytest.mark.parametrize("objective", [sf.ScoreEntropyLoss, sf.D3PMLoss, sf.MaskedCrossEntropy])
@pytest.mark.parametrize("fused", [False, True])
def test_gradients_of_each_sequence(objective, fused):
    """vmap(grad) over a model, from log scores and through its fused head."""
    model = tiny()
    parameters = dict(model.named_parameters())
    loss = objective(model.graph, model.noise, "sum")
    x_t, _, x_0, _ = batch(model, 3)
    t = torch.tensor([0.2, 0.5, 0.9])

    def one(parameters, x_0, t, x_t):
        def network(*args):
            return functional_call(model, parameters, args)

        if fused:
            network.graph, network.head_requests = model.graph, model.head_requests
        return loss(network, x_0[None], t=t[None], x_t=x_t[None])

    found = vmap(grad(one), (None, 0, 0, 0))(parameters, x_0, t, x_t)
    for i in range(3):
        model.zero_grad()
        loss(model, x_0[i : i + 1], t=t[i : i + 1], x_t=x_t[i : i + 1]).backward()
        one_sequence = {name: gradient[i] for name, gradient in found.items()}
        assert_same_gradients(one_sequence, gradients(model))


def test_vmap_decides_on_randomness():
    def noised(x_0: Tensor) -> Tensor:
        return sf.sample_transition(x_0[None], 0.7, GRAPH)[0]

    x_0 = torch.zeros(4, 64, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(noised)(x_0)
    assert len(set(map(tuple, vmap(noised, randomness="different")(x_0).tolist()))) == 4
    assert len(set(map(tuple, vmap(noised, randomness="same")(x_0).tolist()))) == 1
