"""The tokens that linear_denoise draws: rare states, zero weights, distribution, generators."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from helpers.head_cases import on_heads
from helpers.op_cases import Backend, assert_distribution
from helpers.softmax_cases import LAST_U, TOKEN_FILTERS, filtered, head_on, of_bias, with_u

pytestmark = [*on_heads, pytest.mark.operation("linear_denoise")]


#: (states, rare state): the ends of a row, of a vector, of a chunk and of a block.
RARE = ((12, 0), (12, 11), (40, 31), (600, 300), (600, 511), (600, 599), (1300, 1024))


@pytest.mark.interpreted_head(states=(12, 600))
@pytest.mark.parametrize(("states", "rare"), RARE)
def test_a_rare_token_is_hit_by_its_u(backend: Backend, states, rare):
    """Of probability 1e-12 and less; the others' weights are exactly 1 or 0."""
    if not backend.raises and rare in (31, 300):
        pytest.skip("sums of a group in float32 lose it beside a state that is certain")
    common = [y for y in (2, states // 2 - 1, states - 2) if y != rare]
    bias = [-torch.inf] * states
    for y in common:
        bias[y] = 0.0
    bias[rare] = -27.5
    head = of_bias(backend, bias, 3)
    p = head.to(torch.float64).logits()[0].softmax(-1)
    end = p.cumsum(-1)[rare]
    shares = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64, device=backend.device)
    u = end - p[rare] * (1 - shares)
    assert float(p[rare]) < 1e-12
    out = with_u(head, u).denoise(want=("token", "log_prob"))
    assert out.token.tolist() == [rare] * 3
    torch.testing.assert_close(out.log_prob.double(), p[rare].log().expand(3), rtol=1e-6, atol=0)
    outside = torch.stack([end - 3 * p[rare], (end + 3 * p[rare]).clamp(max=LAST_U), end * 0])
    tokens = with_u(head, outside.clamp(min=0)).denoise(want=("token",)).token.tolist()
    expected = filtered(p.log()).cumsum(-1)
    for token, at in zip(tokens, outside.clamp(min=0).tolist(), strict=True):
        assert token == int((expected <= at).sum().clamp(max=max([*common, rare])))


@pytest.mark.interpreted_head(states=(17,), token_filter=TOKEN_FILTERS[:1])
@pytest.mark.parametrize("token_filter", [*TOKEN_FILTERS, {"temperature": 1e4}], ids=str)
@pytest.mark.parametrize("states", [17, 1023, 4097])
def test_a_state_of_probability_zero_is_never_drawn(backend: Backend, states, token_filter):
    """Also not at the ends of [0, 1), where the first and the last states have none."""
    bias, alive = [-torch.inf] * states, {states // 2, states // 2 + 1}
    for y in alive:
        bias[y] = 0.3
    head = of_bias(backend, bias, 4)
    u = torch.tensor([0.0, LAST_U, 0.5, 1e-300], dtype=torch.float64, device=backend.device)
    tokens = with_u(head, u).denoise(want=("token",), **token_filter).token
    assert tokens.tolist() == [states // 2, states // 2 + 1, states // 2 + 1, states // 2]


#: Filters of a draw, with the dtype of the head and the workspace.
DRAWN = (
    *((dict(token_filter), torch.float32, None) for token_filter in TOKEN_FILTERS),
    *((token_filter, torch.float32, 200_000) for token_filter in TOKEN_FILTERS[::4]),
    ({}, torch.bfloat16, None),
    ({"softcap": 0.5}, torch.float32, None),
)


@pytest.mark.parametrize(("token_filter", "dtype", "workspace"), DRAWN, ids=str)
def test_the_distribution(backend: Backend, token_filter, dtype, workspace):
    """Of many draws at one hidden state."""
    if backend.interpreted:
        pytest.skip("interpreted: too few draws for a chi-square test")
    rest = {"exact": True, "width": 4, "excluded": (4,)}
    token_filter = dict(token_filter)
    one = head_on(backend, 40, dtype, shape=(1,), softcap=token_filter.pop("softcap", None), **rest)
    draws, generator = 20_000, torch.Generator().manual_seed(0)
    u = torch.rand(draws, dtype=torch.float64, generator=generator).to(backend.device)
    many = with_u(replace(one, hidden=one.hidden.expand(draws, -1)), u)
    tokens = many.denoise(want=("token",), workspace=workspace, **token_filter).token
    log_p = one.to(torch.float64).logits()[0].log_softmax(-1)
    assert_distribution(tokens, filtered(log_p, **token_filter))


def test_a_generator_and_no_gradient(backend: Backend):
    head = head_on(backend, shape=(4, backend.some(50, 5))).leaves()

    def drawn(seed: int) -> Tensor:
        out = head.denoise(u=None, generator=torch.Generator().manual_seed(seed))
        assert not any(value.requires_grad for value in out)
        return out.token

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    torch.manual_seed(3)
    default = head.denoise(u=None).token
    torch.manual_seed(3)
    assert torch.equal(head.denoise(u=None).token, default)
