"""Networks of p(x_0 | x_t) that expose their hidden states, as those of Hugging Face do."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import sedd_fast as sf

V, B, L, H = 101, 4, 12, 16
GRAPH, NOISE = sf.Absorbing(V), sf.LogLinearNoise()
T = torch.tensor([0.15, 0.4, 0.7, 1.0])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X_0 = torch.randint(V, (B, L), generator=seeded())
X_T = sf.sample_transition(X_0, NOISE.sigma(T), GRAPH, seeded(1))
MASKED = torch.eq(X_T, GRAPH.mask_index)


class BodyOutput(NamedTuple):
    last_hidden_state: Tensor


class Output(NamedTuple):
    logits: Tensor


class Body(nn.Module):
    """An embedding, a mean over the sequence, one layer: each position knows the others."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(GRAPH.dim, H)
        self.mix = nn.Linear(H, H)

    def forward(self, x: Tensor) -> BodyOutput:
        each = self.embed(x)
        return BodyOutput(torch.tanh(self.mix(each + each.mean(1)[:, None])))


class Network(nn.Module):
    """A network with ``.logits``.

    Args:
        states: rows of the head.
        tied: the head's weight is the embedding's.
        softcap: of the logits.
    """

    def __init__(self, states: int = GRAPH.dim, tied: bool = False, softcap: float | None = None):
        super().__init__()
        self.model = Body()
        self.lm_head = nn.Linear(H, states, bias=not tied)
        if tied:
            self.lm_head.weight = self.model.embed.weight
        self.softcap = softcap
        for p in self.parameters():
            nn.init.normal_(p, std=0.4, generator=seeded(p.numel()))

    def forward(self, x: Tensor) -> Output:
        logits = self.lm_head(self.hidden(x))
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return Output(logits)

    def hidden(self, x: Tensor) -> Tensor:
        return self.model(x).last_hidden_state


#: The networks that the head's options are for, and options of the model around it.
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "tied and capped": ({"tied": True, "softcap": 2.0}, {"softcap": 2.0}),
    "padded": ({"states": GRAPH.dim + 3}, {}),
    "without the mask": ({"states": V}, {}),
    "with the mask's logit": ({}, {"zero_masking": False}),
}


def models(kind: str = "plain") -> tuple[sf.PosteriorModel, sf.PosteriorModel]:
    """A model that knows hidden states, and one of the same network that knows logits alone."""
    of_network, of_model = OPTIONS[kind]
    network = Network(**of_network)
    exposed = sf.PosteriorModel(
        network, GRAPH, takes_sigma=False, hidden=Network.hidden, head=network.lm_head, **of_model
    )
    by_logits = {name: value for name, value in of_model.items() if name != "softcap"}
    logits = sf.PosteriorModel(
        lambda x: network(x).logits[..., : GRAPH.dim], GRAPH, takes_sigma=False, **by_logits
    )
    return exposed, logits
