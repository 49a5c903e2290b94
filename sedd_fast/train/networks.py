"""The network that the settings of a run name, and its objective."""

from __future__ import annotations

from sedd_fast.losses import (
    ConcreteScoreMatching,
    D3PMLoss,
    MaskedCrossEntropy,
    NextTokenLoss,
    Objective,
    ScoreEntropyLoss,
)
from sedd_fast.models.autoregressive import Autoregressive
from sedd_fast.models.networks import AnyNetwork
from sedd_fast.models.posterior_sedd import PosteriorSEDD
from sedd_fast.models.sedd import SEDD
from sedd_fast.process.graphs import Graph
from sedd_fast.process.noise import Noise
from sedd_fast.train.settings import ObjectiveSection, TrainConfig


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


AnyObjective = Objective | NextTokenLoss
