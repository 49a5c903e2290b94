"""The network and the objective that the settings of a run select."""

from typing import Any

from sedd_fast import losses
from sedd_fast.models.autoregressive import Autoregressive
from sedd_fast.models.networks import KINDS, OwnNetwork
from sedd_fast.training.settings import TrainConfig

AnyObjective = losses.Objective | losses.NextTokenLoss


def new_network(config: TrainConfig, vocab_size: int) -> tuple[OwnNetwork, AnyObjective]:
    """The network that the settings select, freshly initialised, and its training objective."""
    model = KINDS[config.network_kind](config.model_config(vocab_size))
    if isinstance(model, Autoregressive):
        return model, losses.NextTokenLoss()
    section = config.objective
    shared: dict[str, Any] = {"graph": model.graph, "noise": model.noise}
    shared["per_token"] = section.per_token
    match config.objective_type:
        case "masked_cross_entropy":
            return model, losses.MaskedCrossEntropy(**shared, over=section.over)
        case "d3pm":
            return model, losses.D3PMLoss(**shared, steps=section.steps)
        case "concrete_score":
            return model, losses.ConcreteScoreMatching(**shared)
    return model, losses.ScoreEntropyLoss(**shared)
