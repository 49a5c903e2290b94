"""The heads of posterior models at the edge of their inputs: what 0 times infinity would spoil."""

import pytest
import torch

import sedd_fast as sf
from helpers.head_cases import on_heads
from helpers.op_cases import Backend

pytestmark = on_heads

EXCLUDED = 7


def excluded_and_spoilt(backend: Backend) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states (2, 4) and a weight (300, 4), of which the row of EXCLUDED is NaN."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 4, generator=generator) for n in (2, 300))
    weight[EXCLUDED] = torch.nan
    return hidden.to(backend.device), weight.to(backend.device)


@pytest.mark.interpreted_head
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_the_weight_of_an_excluded_state_may_be_nan(backend: Backend, softcap):
    hidden, weight = excluded_and_spoilt(backend)
    f = (hidden.double() @ weight.double().T).cpu()
    f = f if softcap is None else softcap * torch.tanh(f / softcap)
    f[:, EXCLUDED] = -torch.inf
    log_p = f.log_softmax(-1)
    target = torch.tensor([1, 2])
    loss = sf.linear_cross_entropy(
        hidden, weight, None, target.to(backend.device), excluded=EXCLUDED, softcap=softcap
    )
    expected = -log_p.gather(1, target[:, None])[:, 0].float()
    torch.testing.assert_close(loss.cpu(), expected, rtol=1e-5, atol=1e-5)
    u = torch.full((2, 2), 0.5, dtype=torch.float64, device=backend.device)
    want = ("token", "argmax", "entropy")
    out = sf.linear_denoise(
        hidden, weight, None, u=u, excluded=EXCLUDED, softcap=softcap, want=want
    )
    p = log_p.exp()
    assert out.token.tolist() == (p.cumsum(1) <= 0.5).sum(1).tolist()
    assert out.argmax.tolist() == p.argmax(1).tolist()
    entropy = -(p * log_p).nan_to_num(0.0).sum(1).float()
    torch.testing.assert_close(out.entropy.cpu(), entropy, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("u", [1e-40, 1e-300, 2.0**-53, 0.5])
def test_a_first_state_that_is_rarer_than_u(backend: Backend, u):
    """Of probability e^-605, below all of these."""
    if backend.device != "cpu":
        pytest.skip("groups are added up in float32 there")
    bias = torch.zeros(240, dtype=torch.float64)
    bias[0], bias[1:] = -600, torch.arange(239) * -1e-3
    hidden, weight = (torch.zeros(n, 2, dtype=torch.float64) for n in (1, 240))
    given = torch.tensor([[0.0, u]], dtype=torch.float64)
    if u < 1e-250:  # then it is the rare state's
        bias[0] = -80
    out = sf.linear_denoise(hidden, weight, bias, u=given, want=("token", "log_prob"))
    log_p = bias.log_softmax(0)
    expected = int((log_p.exp().cumsum(0) <= u).sum())
    assert out.token.tolist() == [expected]
    torch.testing.assert_close(out.log_prob, log_p[expected][None])


@pytest.mark.parametrize("row_weight", [1e-12, 1e-15, 1e-20])
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_gradients_of_small_weights(backend: Backend, reduction, row_weight):
    """The first states, by which exponentials are scaled, lie far below the others."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 16, generator=generator) for n in (5, 300))
    bias, target = torch.zeros(300), torch.randint(120, 300, (5,), generator=generator)
    bias[:120] -= 60
    made = []
    for dtype, device in ((torch.float64, "cpu"), (torch.float32, backend.device)):
        leaves = [x.to(device, dtype).requires_grad_() for x in (hidden, weight, bias)]
        weights = torch.full((5,), row_weight, dtype=dtype, device=device)
        with sf.use_backend(
            "reference" if device == "cpu" and dtype.itemsize == 8 else backend.name
        ):
            loss = sf.linear_cross_entropy(*leaves, target.to(device), weights, reduction=reduction)
            made.append(torch.autograd.grad(loss.sum(), leaves))
    for exact, got in zip(*made, strict=True):
        error = (got.cpu().double() - exact).abs().max() / exact.abs().max()
        assert error < 3e-6


def test_no_log_probability_is_above_zero(backend: Backend):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 64, generator=generator) for n in (40, backend.some(500, 30)))
    out = sf.linear_denoise(
        hidden.to(backend.device), weight.to(backend.device), None,
        generator=torch.Generator(backend.device).manual_seed(0),
        want=("token", "log_prob", "max_log_prob"),
    )  # fmt: skip
    assert float(out.log_prob.max()) <= 0
    assert float(out.max_log_prob.max()) <= 1e-6


@pytest.mark.parametrize("states", [3, 300])
def test_hidden_states_of_width_zero(backend: Backend, states):
    """f is the bias alone."""
    if backend.device != "cpu":
        pytest.skip("a tile of the kernels has at least one number of a hidden state")
    bias, target = torch.linspace(-1, 1, states), torch.tensor([0, 1, states - 1])
    hidden, weight = torch.zeros(3, 0), torch.zeros(states, 0)
    loss = sf.linear_cross_entropy(hidden, weight, bias, target)
    torch.testing.assert_close(loss, -bias.log_softmax(0)[target])
    out = sf.linear_denoise(hidden, weight, bias, want=("argmax", "log_sum_exp"))
    assert out.argmax.tolist() == [states - 1] * 3
    torch.testing.assert_close(out.log_sum_exp, bias.logsumexp(0).expand(3))
