"""The kinds of network by name, and what each is trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sedd_fast import checkpoint
from sedd_fast.autoregressive import KIND as AUTOREGRESSIVE
from sedd_fast.autoregressive import Autoregressive, NextTokenLoss
from sedd_fast.graphs import Graph
from sedd_fast.losses import Objective, ScoreEntropyLoss
from sedd_fast.model import SEDD, SEDDConfig
from sedd_fast.noise import Noise
from sedd_fast.objectives import ConcreteScoreMatching, D3PMLoss, MaskedCrossEntropy
from sedd_fast.posterior_sedd import PosteriorSEDD

if TYPE_CHECKING:
    from sedd_fast.settings import ObjectiveSection, TrainConfig

AnyNetwork = SEDD | Autoregressive
AnyObjective = Objective | NextTokenLoss


def new_network(config: TrainConfig, vocab_size: int) -> tuple[AnyNetwork, AnyObjective]:
    """The network that the settings name, freshly initialised, and what it is trained on."""
    settings = config.model_config(vocab_size)
    if config.network_kind == "ar":
        return Autoregressive(settings), NextTokenLoss()
    model = PosteriorSEDD(settings) if config.network_kind == "posterior" else SEDD(settings)
    return model, new_objective(config.objective, model.graph, model.noise)


def new_objective(section: ObjectiveSection, graph: Graph, noise: Noise) -> Objective:
    """What `objective.type` names, with its own settings."""
    if section.type == "masked_cross_entropy":
        return MaskedCrossEntropy(graph, noise, over=section.over)
    if section.type == "d3pm":
        return D3PMLoss(graph, noise, steps=section.steps)
    if section.type == "concrete_score":
        return ConcreteScoreMatching(graph, noise)
    return ScoreEntropyLoss(graph, noise)


def load(name_or_dir: str | Path, *, device: torch.device | str = "cpu", **hub: Any) -> AnyNetwork:
    """A trained network of the kind its settings name, in evaluation mode.

    Errors and options as `SEDD.from_pretrained`.
    """
    saved = checkpoint.read(name_or_dir, None, **hub)
    kinds: dict[str, type[AnyNetwork]] = {
        SEDD.kind: SEDD,
        PosteriorSEDD.kind: PosteriorSEDD,
        AUTOREGRESSIVE: Autoregressive,
    }
    model = kinds[saved.kind](SEDDConfig(**saved.config))
    checkpoint.restore(model, saved)
    return model.to(device).eval()
