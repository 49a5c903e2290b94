"""Small networks with every weight drawn, noised batches for them, and their gradients."""

from typing import Any

import torch
from torch import Tensor

import sedd_fast as sf
from sedd_fast.models.config import SEDDConfig
from sedd_fast.models.sedd import SEDD

TINY = {"hidden_size": 16, "cond_dim": 8, "length": 12, "n_blocks": 2, "n_heads": 2, "dropout": 0.0}
KINDS = [("absorbing", True), ("absorbing", False), ("uniform", False)]


def tiny(graph: str = "absorbing", scaled: bool | None = None, **settings: Any) -> SEDD:
    """A small network with random weights: at initialisation its scores would all be 0."""
    torch.manual_seed(0)
    scaled = graph == "absorbing" if scaled is None else scaled
    settings = {"vocab_size": 11, **TINY, "scale_by_sigma": scaled, **settings}
    model = SEDD(SEDDConfig(graph=graph, **settings))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model


def batch(model: SEDD, size: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_t, sigma, x_0 and a weight for every position."""
    generator = torch.Generator().manual_seed(seed)
    x_0 = torch.randint(model.config.vocab_size, (size, 12), generator=generator)
    t = torch.rand(size, generator=generator) * 0.9 + 0.05
    sigma, rate = model.noise(t)
    x_t = sf.sample_transition(x_0, sigma, model.graph, generator)
    weight = rate[:, None] * torch.rand(x_0.shape, generator=generator)
    return x_t, sigma, x_0, weight


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    assert all(g is not None for g in found.values()), [n for n, g in found.items() if g is None]
    return found


def assert_same_gradients(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, value in got.items():
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(
            value,
            expected[name],
            rtol=1e-4,
            atol=1e-5 * scale,
            msg=lambda text, name=name: f"{name}: {text}",
        )
