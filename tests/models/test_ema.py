"""The moving average: the trace of the original, its file format, and the errors."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sedd_fast.models.ema import ExponentialMovingAverage

GOLDEN = Path(__file__).parents[1] / "golden"


def parameter(*values: float, dtype: torch.dtype = torch.float32) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(values, dtype=dtype))


def test_trace_of_the_original():
    trace = load_file(GOLDEN / "model.safetensors")["ema.trace"]  # parameters, then averages
    p = parameter(*trace[0, :4].tolist())
    ema = ExponentialMovingAverage([p], decay=0.9999)
    state = {"decay": 0.9999, "num_updates": 1, "shadow_params": [trace[0, 4:]]}
    ema.load_state_dict(state)
    for row in trace[1:]:
        p.data.copy_(row[:4])
        ema.update([p])
        torch.testing.assert_close(ema.shadow_params[0], row[4:], rtol=1e-6, atol=1e-7)


def test_first_update_uses_the_warm_up():
    p = parameter(1.0)
    ema = ExponentialMovingAverage([p], decay=0.9999)
    p.data.fill_(12.0)
    ema.update([p])
    assert ema.shadow_params[0].item() == pytest.approx(1 + 11 * (1 - 2 / 11))


def test_decay_bounds_the_warm_up_and_can_replace_it():
    p = parameter(0.0)
    capped = ExponentialMovingAverage([p], decay=0.1)
    plain = ExponentialMovingAverage([p], decay=0.75, use_num_updates=False)
    p.data.fill_(1.0)
    capped.update([p])
    plain.update([p])
    assert capped.shadow_params[0].item() == pytest.approx(0.9)
    assert plain.shadow_params[0].item() == pytest.approx(0.25)
    assert plain.num_updates is None


def test_store_copy_restore():
    p, frozen = parameter(1.0, 2.0), parameter(7.0)
    frozen.requires_grad_(False)
    ema = ExponentialMovingAverage([p, frozen], decay=0.5)
    assert len(ema.shadow_params) == 1
    p.data.add_(1)
    ema.store([p, frozen])
    ema.copy_to([p, frozen])
    assert p.tolist() == [1.0, 2.0]
    ema.restore([p, frozen])
    assert p.tolist() == [2.0, 3.0]
    assert frozen.tolist() == [7.0]
    with pytest.raises(ValueError, match="call store"):
        ema.restore([p, frozen])


def test_state_has_the_keys_of_the_original_and_survives_a_file(tmp_path):
    p = parameter(1.0, 2.0)
    ema = ExponentialMovingAverage([p], decay=0.99)
    p.data.mul_(3)
    ema.update([p])
    assert list(ema.state_dict()) == ["decay", "num_updates", "shadow_params"]
    torch.save(ema.state_dict(), tmp_path / "ema.pt")

    other = ExponentialMovingAverage([parameter(0.0, 0.0)], decay=0.5)
    other.load_state_dict(torch.load(tmp_path / "ema.pt", weights_only=True))
    assert (other.decay, other.num_updates) == (0.99, 1)
    assert torch.equal(other.shadow_params[0], ema.shadow_params[0])
    p.data.mul_(2)
    ema.update([p])
    other.update([p])
    assert torch.equal(other.shadow_params[0], ema.shadow_params[0])


def test_reads_the_state_of_the_original():
    saved = torch.load(GOLDEN / "local-run/checkpoints-meta/checkpoint.pth", weights_only=True)
    parameters = [torch.nn.Parameter(torch.zeros_like(s)) for s in saved["ema"]["shadow_params"]]
    ema = ExponentialMovingAverage(parameters, decay=0.5)
    ema.load_state_dict(saved["ema"])
    ema.copy_to(parameters)
    assert ema.num_updates == 3
    assert all(map(torch.equal, parameters, saved["ema"]["shadow_params"]))


def test_average_of_bf16_parameters_moves():
    p = parameter(1.0, dtype=torch.bfloat16)
    ema = ExponentialMovingAverage([p], decay=0.9999, use_num_updates=False)
    p.data.fill_(2.0)
    ema.update([p])
    assert ema.shadow_params[0].item() == pytest.approx(1.0001)
    ema.copy_to([p])
    assert p.dtype == torch.bfloat16


def test_update_keeps_no_graph():
    p = parameter(1.0)
    ema = ExponentialMovingAverage([p], decay=0.9)
    ema.update([p])
    assert not ema.shadow_params[0].requires_grad


def test_wrong_arguments_are_named():
    p = parameter(1.0, 2.0)
    ema = ExponentialMovingAverage([p], decay=0.9)
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\], got 1.5"):
        ExponentialMovingAverage([p], decay=1.5)
    with pytest.raises(ValueError, match="1 tensors, but there are 2 trainable"):
        ema.update([p, p])
    with pytest.raises(ValueError, match=r"shape \(2,\), but parameter 0 has \(1,\)"):
        ema.copy_to([parameter(1.0)])
    with pytest.raises(ValueError, match=r"lacks \['num_updates', 'shadow_params'\]"):
        ema.load_state_dict({"decay": 0.9})
