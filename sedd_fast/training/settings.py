"""All settings of a training run as frozen dataclasses, one per section, validated on creation.

A field declares the values that it accepts, by its type (a Literal: these names) and its metadata;
`TrainConfig` checks them all. `config` reads settings from presets, YAML files and overrides. Keys
follow the configuration of the original SEDD code where it has them (optim.warmup, ...).
"""

import math
import reprlib
import sys
import types
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any, Literal, Union, get_args, get_origin

from sedd_fast.data.config import DataConfig, fraction, limits
from sedd_fast.models.checkpoint import config_from_original
from sedd_fast.models.config import SEDDConfig
from sedd_fast.names import (
    GraphName,
    LearningRate,
    MixedPrecision,
    NetworkKind,
    NoiseKind,
    ObjectiveName,
    OptimizerName,
    Variable,
)

#: Their minimum fixes p(x_0 | x_t) but not the scale of a row of scores, or (D3PM on the uniform
#: graph) they need that scale to be right: they train a network of normalised posteriors.
_POSTERIOR_OBJECTIVES = ("masked_cross_entropy", "d3pm")


def _at_least(lowest: float, default: float | None) -> Any:
    return field(default=default, metadata=limits(lambda v: v >= lowest, f"at least {lowest}"))


_NETWORK = limits(bool, "a run directory, a directory of weights, a hub name, or bundled")


@dataclass(frozen=True)
class ModelSection:
    """The transformer.

    Args:
        kind: "sedd", a network of log scores; "posterior", the same network with normalised
            p(x_0 | x_t) as output; "ar", the autoregressive baseline of equal size. None: sedd or
            posterior, whichever the objective needs.
        scale_by_sigma: scale the scores of kind "sedd" by the noise level; None: for the absorbing
            graph only.
        init: a trained network whose weights the run starts from, with a new optimiser: a run
            directory, a directory of weights, a run directory of the original trainer, a hub name,
            or "bundled". Its settings replace those of graph, noise and this section, except
            `length` and `dropout`; its tokenizer replaces one that would be learned from the text.
            None: random weights.
        vocab_size: tokens of the network, at least those of the tokenizer. None: as many as those.
    """

    kind: NetworkKind | None = None
    hidden_size: int = _at_least(1, 768)
    cond_dim: int = _at_least(1, 128)
    length: int = _at_least(1, 1024)
    n_blocks: int = _at_least(1, 12)
    n_heads: int = _at_least(1, 12)
    mlp_ratio: int = _at_least(1, 4)
    dropout: float = fraction(0.1)
    scale_by_sigma: bool | None = None
    init: str | None = field(default=None, metadata=_NETWORK)
    vocab_size: int | None = _at_least(1, None)


@dataclass(frozen=True)
class GraphSection:
    """The noise process: "absorbing" (also "absorb", the original's name) or "uniform"."""

    type: GraphName = "absorbing"

    def __post_init__(self) -> None:
        if self.type == "absorb":
            object.__setattr__(self, "type", "absorbing")


@dataclass(frozen=True)
class NoiseSection:
    """The schedule: "loglinear" (uses eps) or "geometric" (uses sigma_min, sigma_max)."""

    type: NoiseKind = "loglinear"
    eps: float = 1e-3
    sigma_min: float = 1e-4
    sigma_max: float = 20.0


@dataclass(frozen=True)
class ObjectiveSection:
    """The training objective; docs/losses.md has the formulas. `model.kind=ar` ignores it.

    A setting of another type than the one chosen is refused unless it is the default.

    Args:
        type: "score_entropy", "concrete_score", "d3pm", "masked_cross_entropy" (absorbing); None:
            masked_cross_entropy if graph and network allow it, else score_entropy.
        over: for masked_cross_entropy, the variable of the integral: "t", or "lambda" (RADD's
            lambda-DCE).
        steps: for d3pm, the number T of steps of its chain.
        per_token: divide the loss of every document by the number of its tokens with loss, and take
            the mean over documents (LLaDA's fine-tuning), for data.format=prompt_completion.
    """

    type: ObjectiveName | None = "score_entropy"
    over: Variable = "t"
    steps: int = _at_least(1, 1000)
    per_token: bool = False


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser. A rate is multiplied by min(step / warmup, 1) and the schedule's factor.

    Args:
        type: "adamw", or "muon": :class:`sedd_fast.training.muon.Muon` for the matrices inside the
            blocks of the network, AdamW for the other parameters. On short runs of small networks
            it needs several times fewer steps.
        lr: rate of AdamW.
        muon_lr: rate of Muon.
        grad_clip: largest norm of the gradient; negative: no clipping.
        schedule: "constant" (the original's) or "cosine": down to `lr_min` * lr at the end of
            training, which is n_iters steps or max_minutes, whichever comes first.
    """

    type: OptimizerName = "adamw"
    lr: float = _at_least(0, 3e-4)
    muon_lr: float = _at_least(0, 0.02)
    weight_decay: float = _at_least(0, 0.0)
    beta1: float = fraction(0.9)
    beta2: float = fraction(0.999)
    eps: float = _at_least(0, 1e-8)
    warmup: int = _at_least(0, 2500)
    grad_clip: float = 1.0
    schedule: LearningRate = "constant"
    lr_min: float = fraction(0.0)

    @property
    def rates(self) -> tuple[str, ...]:
        """The settings that are learning rates."""
        return ("optim.lr", "optim.muon_lr") if self.type == "muon" else ("optim.lr",)


@dataclass(frozen=True)
class TrainingSection:
    """Length, batch size, precision and checkpoints of a run.

    Args:
        batch_size: sequences per optimiser step, over all processes and accumulation steps.
        accum: gradient accumulation: number of parts of a process's share of the batch.
        n_iters: optimiser steps.
        max_minutes: stop earlier, after this training time (summed over resumes); None: no limit.
        ema: decay of the moving average of the weights (with the original's warm-up).
        mixed_precision: "no", "bf16", "fp16"; None: as set by `accelerate launch`, else "no".
        log_freq, eval_freq, snapshot_freq: steps between metrics lines, held-out estimates,
            checkpoints; 0 for eval_freq or snapshot_freq: only at the end.
        eval_sequences: held-out sequences per estimate (always the same, with the same noise).
        keep_last: number of checkpoints kept.
        cpu: train on the CPU even where there is a GPU.
    """

    batch_size: int = _at_least(1, 512)
    accum: int = _at_least(1, 1)
    n_iters: int = _at_least(1, 1_300_000)
    max_minutes: float | None = _at_least(0, None)
    ema: float = fraction(0.9999)
    seed: int = field(
        default=0, metadata=limits(lambda v: 0 <= v < 2**63, "less than 2^63 and at least 0")
    )
    mixed_precision: MixedPrecision | None = None
    log_freq: int = _at_least(1, 50)
    eval_freq: int = _at_least(0, 1000)
    eval_sequences: int = _at_least(1, 512)
    snapshot_freq: int = _at_least(0, 10_000)
    keep_last: int = _at_least(1, 3)
    cpu: bool = False

    def is_over(self, step: int, elapsed: float) -> bool:
        """Whether a run has reached its end after `step` steps and `elapsed` seconds."""
        return self.progress(step, elapsed) >= 1

    def progress(self, step: int, elapsed: float) -> float:
        """The fraction of the run that is done, by steps or by time, whichever is larger."""
        seconds = math.inf if self.max_minutes is None else 60 * self.max_minutes
        return max(step / self.n_iters, elapsed / seconds if seconds else 1.0)


@dataclass(frozen=True)
class LogConfig:
    """Metrics beside metrics.jsonl, which is always written.

    Args:
        tensorboard: write TensorBoard's event files.
        samples: held-out prompts whose completions are drawn at every estimate, to samples.jsonl
            and TensorBoard, with data.format=prompt_completion; 0 for none.
        wandb: report to Weights & Biases (an error where it is not installed).
    """

    tensorboard: bool = True
    samples: int = _at_least(0, 4)
    wandb: bool = False
    wandb_project: str = "sedd-fast"


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a training run. `run_dir` None: runs/NAME-DATE-TIME, after the text."""

    run_dir: str | None = None
    model: ModelSection = field(default_factory=ModelSection)
    graph: GraphSection = field(default_factory=GraphSection)
    noise: NoiseSection = field(default_factory=NoiseSection)
    objective: ObjectiveSection = field(default_factory=ObjectiveSection)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    training: TrainingSection = field(default_factory=TrainingSection)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        for whole in fields(self):
            own, section = getattr(self, whole.name), whole.name
            if section == "run_dir":
                _check(section, own, whole)
                continue
            if not isinstance(own, whole.type):  # type: ignore[arg-type]
                raise ValueError(f"{section}: expected settings, got {reprlib.repr(own)}")
            for f in fields(own):
                _check(f"{section}.{f.name}", getattr(own, f.name), f)
        _check_objective(self)

    @property
    def network_kind(self) -> NetworkKind:
        """ "sedd", "posterior" or "ar": `model.kind`, or what the objective needs."""
        if self.model.kind is not None:
            return self.model.kind
        return "posterior" if self.objective_type in _POSTERIOR_OBJECTIVES else "sedd"

    @property
    def objective_type(self) -> ObjectiveName:
        """`objective.type`, or what fits where that is None; "score_entropy" for kind "ar"."""
        if self.objective.type is not None:
            return self.objective.type
        fits = self.graph.type == "absorbing" and self.model.kind in (None, "posterior")
        return "masked_cross_entropy" if fits else "score_entropy"

    def model_config(self, vocab_size: int) -> SEDDConfig:
        """The architecture for a tokenizer of `vocab_size` tokens.

        Raises:
            ValueError: `model.vocab_size` is smaller.
        """
        tokens = vocab_size if self.model.vocab_size is None else self.model.vocab_size
        if tokens < vocab_size:
            raise ValueError(
                f"model.vocab_size: expected at least the {vocab_size} tokens of the tokenizer, "
                f"got {tokens}; leave it out for as many as the tokenizer has"
            )
        settings = {"tokens": tokens, **asdict(self)}
        for name in ("kind", "init", "vocab_size"):  # not part of the architecture
            del settings["model"][name]
        if self.model.scale_by_sigma is None:
            settings["model"]["scale_by_sigma"] = self.graph.type == "absorbing"
        return SEDDConfig(**config_from_original(settings))


def kinds(declared: Field[Any]) -> tuple[Any, ...]:
    """The types of a field's values: (float, NoneType) for `float | None`, (str,) for a Literal."""
    return tuple(str if get_origin(kind) is Literal else kind for kind in _members(declared))


def _members(declared: Field[Any]) -> tuple[Any, ...]:
    is_union = get_origin(declared.type) in (Union, types.UnionType)
    return get_args(declared.type) if is_union else (declared.type,)


def _choices(declared: Field[Any]) -> tuple[str | None, ...]:
    """The names that a field takes, those of its Literal; () where it has none."""
    members = _members(declared)
    names = [name for kind in members if get_origin(kind) is Literal for name in get_args(kind)]
    return (None, *names) if names and types.NoneType in members else tuple(names)


_NAMES = {int: "an int", float: "a finite number", bool: "true or false", str: "text"}


def expected(name: str, declared: Field[Any], value: Any) -> str:
    """The message for a value of a wrong type."""
    named = " or ".join(_NAMES[kind] for kind in kinds(declared) if kind in _NAMES)
    if names := _choices(declared):
        named = f"one of {', '.join(map(str, names))}"
    elif str in kinds(declared):
        named = declared.metadata.get("expected", named)
    return f"{name}: expected {named}, got {reprlib.repr(value)}"


def _check(name: str, value: Any, declared: Field[Any]) -> None:
    """ValueError where a value is not of its field's type, or not within the limits there."""
    names = _choices(declared)
    if not any(_is_a(kind, value) for kind in kinds(declared)) or (names and value not in names):
        raise ValueError(expected(name, declared, value))
    if declared.metadata and value != declared.default and not declared.metadata["accepts"](value):
        wanted = declared.metadata["expected"]
        raise ValueError(f"{name}: expected {wanted}, got {reprlib.repr(value)}")
    largest = {int: 2**63 - 1, float: sys.float_info.max}.get(type(value))
    if largest is not None and not abs(value) <= largest:  # NaN as well
        raise ValueError(expected(name, declared, value))


def _is_a(kind: Any, value: Any) -> bool:
    if kind is float:
        return type(value) in (int, float)
    if kind is int:
        return type(value) is int
    if kind == list[str]:
        return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
    return isinstance(value, kind)


def _check_objective(config: TrainConfig) -> None:
    """ValueError where graph, network or data do not fit the objective."""
    kind, name = config.model.kind, config.objective_type
    of_examples = config.data.format == "prompt_completion"
    if kind == "ar" and of_examples:
        raise ValueError(
            "data.format: model.kind=ar is trained on text, got prompt_completion; take another "
            "kind of network, or data.format=text"
        )
    if config.objective.per_token and not of_examples:
        raise ValueError(
            "objective.per_token: only valid with data.format=prompt_completion, got true with "
            f"data.format={config.data.format} (a constant factor there); leave it out"
        )
    for key, owner in (("over", "masked_cross_entropy"), ("steps", "d3pm")):
        value, usual = (getattr(o, key) for o in (config.objective, ObjectiveSection()))
        if name != owner and value != usual:
            raise ValueError(
                f"objective.{key}: only valid with objective.type={owner}, got {value} with "
                f"objective.type={name}; take objective.type={owner}, or leave "
                f"objective.{key}={usual}"
            )
    if kind == "ar" and name != "score_entropy":
        raise ValueError(
            f"objective.type: model.kind=ar is trained to predict the next token, got {name}; "
            "leave objective.type out"
        )
    if name == "masked_cross_entropy" and config.graph.type == "uniform":
        raise ValueError(
            "objective.type: masked_cross_entropy needs a mask, got graph.type=uniform; take "
            "graph.type=absorbing, or objective.type score_entropy or d3pm"
        )
    if name in _POSTERIOR_OBJECTIVES and kind == "sedd":
        raise ValueError(
            f"model.kind: {name} does not learn the scale of scores, got sedd; take "
            "model.kind=posterior or leave it out"
        )
