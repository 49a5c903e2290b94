"""The noise schedules: golden values, their derivative, and their values at t = 0 and 1."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sedd_fast as sf
from sedd_fast.process.noise import make_noise

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "process.safetensors")
NOISES = {
    "loglinear": sf.LogLinearNoise(1e-3),
    "geometric": sf.GeometricNoise(1e-4, 20.0),
    "geometric_default": sf.GeometricNoise(),
}
by_name = pytest.mark.parametrize("name", NOISES)


@by_name
def test_golden(name):
    sigma, rate = NOISES[name](GOLDEN["noise.t"])
    torch.testing.assert_close(sigma, GOLDEN[f"noise.{name}.sigma"], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(rate, GOLDEN[f"noise.{name}.rate"], rtol=1e-12, atol=1e-15)


@by_name
def test_the_rate_is_the_derivative(name):
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64, requires_grad=True)
    (derivative,) = torch.autograd.grad(NOISES[name].sigma(t).sum(), t)
    torch.testing.assert_close(NOISES[name].rate(t).detach(), derivative)


@by_name
def test_noise_grows(name):
    sigma = NOISES[name].sigma(torch.linspace(0, 1, 1000, dtype=torch.float64))
    assert bool((sigma.diff() > 0).all())


@by_name
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (5,), (5, 1)])
def test_shapes_and_dtypes(name, dtype, shape):
    for value in NOISES[name](torch.full(shape, 0.5, dtype=dtype)):
        assert value.shape == shape
        assert value.dtype == dtype


def test_ends():
    noise, ends = sf.LogLinearNoise(1e-3), torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(torch.exp(-noise.sigma(ends)), torch.tensor([1, 1e-3]).double())
    geometric = sf.GeometricNoise(1e-4, 20.0).sigma(ends)
    torch.testing.assert_close(geometric, torch.tensor([1e-4, 20.0]).double())


def test_small_times_keep_their_digits_in_float32():
    t = torch.tensor([1e-7, 1e-5, 1e-3])
    sigma = sf.LogLinearNoise(1e-3).sigma(t).double()
    truth = sf.LogLinearNoise(1e-3).sigma(t.double())
    torch.testing.assert_close(sigma, truth, rtol=1e-6, atol=0)


def test_schedules_compare_by_value():
    assert sf.LogLinearNoise() == sf.LogLinearNoise(1e-3)
    assert sf.GeometricNoise() != sf.GeometricNoise(1e-4, 20.0)


@pytest.mark.parametrize("eps", [0.0, 1.0, -1e-3, float("nan")])
def test_bad_eps(eps):
    with pytest.raises(ValueError, match=r"eps must lie in \(0, 1\).*1e-3"):
        sf.LogLinearNoise(eps)


@pytest.mark.parametrize(
    "ends", [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (1.0, 1.0), (1e-3, float("inf"))]
)
def test_bad_sigmas(ends):
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        sf.GeometricNoise(*ends)


@by_name
@pytest.mark.parametrize("t", [0.5, torch.tensor(1), [0.5]])
def test_times_must_be_floating_tensors(name, t):
    with pytest.raises(TypeError, match="t must be a floating-point tensor"):
        NOISES[name](t)


def test_make_noise():
    assert make_noise("loglinear", eps=0.1) == sf.LogLinearNoise(0.1)
    assert make_noise("geometric") == sf.GeometricNoise(1e-4, 20.0)
    with pytest.raises(ValueError, match="'loglinear', 'geometric', got 'cosine'"):
        make_noise("cosine")
