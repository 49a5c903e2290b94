"""What the tests of the samplers by certainty share: a tiny transformer of p(x_0 | x_t)."""

from typing import Any

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.tiny_models import tiny
from sedd_fast.names import DECODING_METHODS
from sedd_fast.sampling import Step

each_method = pytest.mark.parametrize("method", DECODING_METHODS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def calls_of(seen: list[Step]) -> Tensor:
    """The network calls of every sequence, from what a callback has seen."""
    return seen[-1].network_calls


def posterior_network(*, fused: bool, softcap: float | None = None, **settings: Any) -> Any:
    """A tiny transformer of p(x_0 | x_t), which owns its head or returns logits."""
    body = tiny(**settings)

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = body, torch.nn.Linear(16, body.graph.dim)
            torch.nn.init.normal_(self.head.weight, std=0.7, generator=seeded(7))

        def hidden(self, x: Tensor) -> Tensor:
            return self.body.features(x, torch.ones(len(x)))

        def forward(self, x: Tensor) -> Tensor:
            f = self.head(self.hidden(x))
            return f if softcap is None else softcap * torch.tanh(f / softcap)

    network = Network()
    exposed: dict[str, Any] = {
        "hidden": lambda network, x: network.hidden(x), "head": network.head, "softcap": softcap,
    }  # fmt: skip
    return sf.PosteriorModel(network, body.graph, False, **(exposed if fused else {})).eval()


class Plain:
    """A network as a function of two tensors: no request reaches it."""

    def __init__(self, model: Any) -> None:
        self.model, self.graph = model, model.graph

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.model(x, sigma)
