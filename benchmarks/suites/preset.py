"""A training step of the preset "tiny" by masked cross entropy, with GPT-2's vocabulary.

The trainer's own step (noise, network, loss, backward, clipping, Muon and AdamW), at the batch and
length of the preset. What differs is what the head does with the hidden states: the eager contender
forms the logits of the masked rows, as a network without a fused cross entropy has to. The floor is
the step without the head: everything but the products of the vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness.cases import Case, Contender, ours
from benchmarks.harness.config import BenchmarkConfig
from sedd_fast.backends.dtypes import at_least_fp32
from sedd_fast.data.batches import Batch
from sedd_fast.models.cross_entropy import CrossEntropyRequest
from sedd_fast.models.posterior_sedd import PosteriorSEDD

if TYPE_CHECKING:
    from sedd_fast.training.step import Learner

#: The dtypes of the suite -> the trainer's names.
PRECISIONS = {"fp32": "no", "bf16": "bf16"}
#: Settings that make the network and the batch tiny.
QUICK = (
    "model.hidden_size=32", "model.n_heads=2", "model.n_blocks=1", "model.length=16",
    "model.cond_dim=8", "training.batch_size=4",
)  # fmt: skip


def missing() -> list[str]:
    """A line for each package without which the suite is left out."""
    return [
        f"the suite preset is left out, {name} is not installed: pip install {name}"
        for name in ("accelerate", "omegaconf")
        if find_spec(name) is None
    ]


class MaskedLogits:
    """A network whose cross entropy is that of the logits of the masked rows, in plain torch."""

    head_requests = (CrossEntropyRequest,)

    def __init__(self, network: PosteriorSEDD, autocast: Any) -> None:
        self.network, self.graph, self.autocast = network, network.graph, autocast

    def __call__(self, x_t: Tensor, sigma: Tensor, request: CrossEntropyRequest) -> Tensor:
        """(B, L), (B,) -> the scalar sum of the weighted cross entropies."""
        assert request.reduction == "sum"
        assert request.row_weight is not None
        linear, mask = self.network.output_layer.linear, self.graph.mask_index
        index = (x_t == mask).flatten().nonzero().squeeze(-1)  # (R,)
        with self.autocast():
            hidden = self.network.features(x_t, sigma).flatten(0, 1)[index]
            logits = F.linear(hidden, linear.weight, linear.bias)  # (R, dim)
            with torch.no_grad():  # the gradient of a softmax at -inf is 0 by itself
                logits[:, mask] = -torch.inf
            nats = F.cross_entropy(
                at_least_fp32(logits), request.x_0.flatten()[index], reduction="none"
            )
        return (request.row_weight.flatten()[index] * nats).sum()


@dataclass(frozen=True)
class Step:
    """One step of the trainer; all contenders train the same weights, on the same noise."""

    learner: "Learner"
    x_0: Tensor  # (B, L)

    def by(self, model: Any) -> None:
        """Loss and backward by this form of the network, then the update."""
        self.learner.model = model
        self.learner.accumulate(Batch(self.x_0), step=1)
        self.update()

    def without_head(self, grad: Tensor) -> None:
        """The network without its head, from a given gradient of the hidden states (B, L, H)."""
        network, batch = self.learner.plain, len(self.x_0)
        sigma = torch.linspace(0.1, 2, batch, device=self.x_0.device)
        with self.learner.accelerator.autocast():
            hidden = network.features(self.x_0, sigma)
        hidden.backward(grad.to(hidden.dtype))
        self.update()

    def update(self) -> None:
        """Clip the gradients and apply them."""
        self.learner.clip_gradients()
        self.learner.apply(1e-3)


def preset_cases(config: BenchmarkConfig) -> Iterator[Case]:
    """A step in each dtype."""
    if missing():
        return
    for dtype in config.dtypes:
        if dtype in PRECISIONS:
            yield preset_case(config, dtype)


def preset_case(config: BenchmarkConfig, dtype: str) -> Case:
    """The case of one dtype."""
    step = make_step(config, dtype)
    learner, (batch, length) = step.learner, step.x_0.shape
    fused, logits = learner.model, MaskedLogits(learner.plain, learner.accelerator.autocast)
    shape = (batch, length, learner.config.model.hidden_size)
    grad = torch.full(shape, 1e-9, device=step.x_0.device)
    return Case(
        "preset",
        "masked cross-entropy step, preset tiny",
        f"{batch} x {length} tokens, {config.vocab_size:,} words",
        dtype,
        (
            Contender("eager, masked rows", "eager", lambda: step.by(logits)),
            *ours(config, ", fused head", lambda: step.by(fused), op="linear_cross_entropy"),
        ),
        floor_runs={"network": lambda: step.without_head(grad)},
    )


def make_step(config: BenchmarkConfig, dtype: str) -> Step:
    """The trainer's network and optimisers, and random tokens."""
    from sedd_fast.training.api import make_accelerator
    from sedd_fast.training.config import load_config
    from sedd_fast.training.step import Learner

    settings = (
        "objective.type=masked_cross_entropy",
        f"training.mixed_precision={PRECISIONS[dtype]}",
        f"training.cpu={str(config.device == 'cpu').lower()}",
        *(QUICK if config.quick else ()),
    )
    chosen = load_config("tiny", overrides=settings)
    learner = Learner(chosen, config.vocab_size, make_accelerator(chosen))
    learner.plain.train()
    on = {"device": config.device, "generator": torch.Generator(config.device).manual_seed(0)}
    shape = (chosen.training.batch_size, chosen.model.length)
    return Step(learner, torch.randint(config.vocab_size, shape, **on))
