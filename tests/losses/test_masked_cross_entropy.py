"""MaskedCrossEntropy and the "normalised" bound do not depend on a constant added to a row."""

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from sedd_fast.losses.masked_cross_entropy import posterior_cross_entropy

V, B, L = 7, 3, 5
GRAPH, NOISE = sf.Absorbing(V), sf.LogLinearNoise()
#: Shifts at which exp of a score overflows or vanishes in float64, or (-740) loses digits.
FAR = (-5000.0, -740.0, 0.0, 700.0, 800.0)
by_backend = pytest.mark.parametrize("backend", ["reference", "cpp"])


@pytest.fixture(autouse=True)
def chosen(request: pytest.FixtureRequest):
    backend = request.getfixturevalue("backend")
    if reason := sf.backends.registry.unavailable(backend):
        pytest.skip(reason)
    with sf.use_backend(backend):
        yield


def scores(dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(B, L, V + 1, generator=generator, dtype=dtype)


def rows() -> tuple[Tensor, Tensor]:
    """x_t with three of five positions masked, and x_0."""
    x_0 = torch.randint(V, (B, L), generator=torch.Generator().manual_seed(1))
    return torch.where(torch.arange(L) % 2 == 0, V, x_0), x_0


@by_backend
@pytest.mark.parametrize("shift", FAR)
def test_a_shifted_row_has_the_same_loss_and_gradient(shift: float, backend: str):
    x_t, x_0 = rows()
    weight = torch.rand(B, L, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    moved = (scores() + shift).requires_grad_()
    loss = posterior_cross_entropy(moved, x_t, x_0, GRAPH, weight)
    loss.sum().backward()
    plain = scores()[..., :V].requires_grad_()
    nats = -plain.log_softmax(-1).gather(-1, x_0[..., None]).squeeze(-1)
    expected = weight * nats * (x_t == V)
    expected.sum().backward()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moved.grad[..., :V], plain.grad, rtol=1e-9, atol=1e-12)
    assert not moved.grad[..., V].any()


@by_backend
def test_only_rows_with_a_large_shift_are_summed_again(backend: str):
    """One row has a large shift, in a low precision; one position has no weight."""
    x_t, x_0 = rows()
    log_score = scores(torch.float32)
    far = log_score.clone()
    far[0, 2] -= 2000
    far[1, 4] += 2000
    weight = torch.ones(B, L, dtype=torch.float64)
    weight[2, 0] = 0
    far[2, 0] = torch.nan  # not read
    losses = [posterior_cross_entropy(s, x_t, x_0, GRAPH, weight) for s in (log_score, far)]
    torch.testing.assert_close(*losses, rtol=0, atol=1e-3)
    assert losses[1][2, 0] == 0


@by_backend
@pytest.mark.parametrize("shift", FAR)
def test_the_normalised_bound_of_a_network_whose_scale_drifted(shift: float, backend: str):
    x_0 = rows()[1]

    def nats(by: float) -> Tensor:
        table = scores()[0] + by
        return sf.likelihood_bound(
            lambda x, sigma: table.expand(len(x), L, V + 1), x_0, GRAPH, NOISE, 8, "normalised",
            torch.Generator().manual_seed(3),
        ).nats  # fmt: skip

    torch.testing.assert_close(nats(shift), nats(0.0), rtol=1e-9, atol=1e-9)
