"""The network and the objective that the settings of a run select."""

from sedd_fast import losses
from sedd_fast.models.autoregressive import Autoregressive
from sedd_fast.models.networks import KINDS, AnyNetwork
from sedd_fast.training.settings import TrainConfig

AnyObjective = losses.Objective | losses.NextTokenLoss


def new_network(config: TrainConfig, vocab_size: int) -> tuple[AnyNetwork, AnyObjective]:
    """The network that the settings select, freshly initialised, and its training objective."""
    model = KINDS[config.network_kind](config.model_config(vocab_size))
    if isinstance(model, Autoregressive):
        return model, losses.NextTokenLoss()
    graph, noise, section = model.graph, model.noise, config.objective
    match config.objective_type:
        case "masked_cross_entropy":
            return model, losses.MaskedCrossEntropy(graph, noise, over=section.over)
        case "d3pm":
            return model, losses.D3PMLoss(graph, noise, steps=section.steps)
        case "concrete_score":
            return model, losses.ConcreteScoreMatching(graph, noise)
    return model, losses.ScoreEntropyLoss(graph, noise)
