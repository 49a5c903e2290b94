"""All settings of a training run as frozen dataclasses, one a section, checked when made.

`config` reads them from presets, YAML files and overrides. Keys follow the original's configuration
where it has them (optim.warmup, training.n_iters, ...).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from sedd_fast.data.config import DataConfig
from sedd_fast.models.config import SEDDConfig

OBJECTIVES = ("score_entropy", "masked_cross_entropy", "d3pm", "concrete_score")
#: Those that do not learn the scale of a row of scores (or, uniform D3PM, need the right one).
_OF_POSTERIORS = ("masked_cross_entropy", "d3pm")


@dataclass(frozen=True)
class ModelSection:
    """The transformer.

    Args:
        kind: "sedd", a network of scores; "posterior", the same of p(x_0 | x_t), normalised; "ar",
            the autoregressive baseline of equal size. None: sedd or posterior, as the objective
            needs.
        scale_by_sigma: of sedd; None means yes for absorbing, no for uniform.
    """

    kind: str | None = None
    hidden_size: int = 768
    cond_dim: int = 128
    length: int = 1024
    n_blocks: int = 12
    n_heads: int = 12
    mlp_ratio: int = 4
    dropout: float = 0.1
    scale_by_sigma: bool | None = None


@dataclass(frozen=True)
class GraphSection:
    """The noise process: "absorbing" (also "absorb", as the original says) or "uniform"."""

    type: str = "absorbing"


@dataclass(frozen=True)
class NoiseSection:
    """The schedule: "loglinear" (uses eps) or "geometric" (uses sigma_min, sigma_max)."""

    type: str = "loglinear"
    eps: float = 1e-3
    sigma_min: float = 1e-4
    sigma_max: float = 20.0


@dataclass(frozen=True)
class ObjectiveSection:
    """What training minimises; docs/losses.md has the formulas. `model.kind=ar` reads none of it.

    A setting of another type than the one chosen is refused unless it is the default.

    Args:
        type: "score_entropy", "concrete_score", "d3pm", or (absorbing) "masked_cross_entropy".
        over: of masked_cross_entropy: "t", or "lambda" (RADD's lambda-DCE).
        steps: of d3pm: T, the steps of its chain.
    """

    type: str = "score_entropy"
    over: str = "t"
    steps: int = 1000


@dataclass(frozen=True)
class OptimConfig:
    """AdamW. The rate is lr * min(step / warmup, 1), times the schedule's factor.

    Args:
        grad_clip: largest norm of the gradient; negative: no clipping.
        schedule: "constant" (the original's) or "cosine": down to `lr_min` * lr at the end of
            training, which is n_iters steps or max_minutes, whichever part is further on.
    """

    lr: float = 3e-4
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    warmup: int = 2500
    grad_clip: float = 1.0
    schedule: str = "constant"
    lr_min: float = 0.0


@dataclass(frozen=True)
class TrainingSection:
    """The run.

    Args:
        batch_size: sequences per optimiser step, over all processes and accumulation steps.
        accum: gradient accumulation: parts that a process's share of the batch is cut into.
        n_iters: optimiser steps.
        max_minutes: stop earlier, after so much training time (over all resumes); None: never.
        ema: decay of the moving average of the weights (with the original's warm-up).
        mixed_precision: "no", "bf16", "fp16"; None: what `accelerate launch` says, else "no".
        log_freq, eval_freq, snapshot_freq: steps between metrics lines, held-out estimates,
            checkpoints; 0 for eval_freq or snapshot_freq: only at the end.
        eval_sequences: held-out sequences per estimate (fixed ones, with fixed noise).
        keep_last: checkpoints kept.
        cpu: train on the CPU even where there is an accelerator.
    """

    batch_size: int = 512
    accum: int = 1
    n_iters: int = 1_300_000
    max_minutes: float | None = None
    ema: float = 0.9999
    seed: int = 0
    mixed_precision: str | None = None
    log_freq: int = 50
    eval_freq: int = 1000
    eval_sequences: int = 512
    snapshot_freq: int = 10_000
    keep_last: int = 3
    cpu: bool = False

    def is_over(self, step: int, elapsed: float) -> bool:
        """Whether a run has come to its end after `step` steps and `elapsed` seconds."""
        out_of_time = self.max_minutes is not None and elapsed >= 60 * self.max_minutes
        return out_of_time or step >= self.n_iters


@dataclass(frozen=True)
class LogConfig:
    """Metrics beside metrics.jsonl, which is always written.

    Args:
        tensorboard: write event files where TensorBoard is installed.
        wandb: report to Weights & Biases (an error where it is not installed).
    """

    tensorboard: bool = True
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
        for name, value in (("data.train", self.data.train), ("data.valid", self.data.valid)):
            if not (name == "data.valid" and value is None):
                _check_source(name, value)
        for name, value, lowest in _lower_limits(self):
            if value is not None and not value >= lowest:
                raise ValueError(f"{name}: expected at least {lowest}, got {value}")
        if self.training.seed >= 2**63:
            raise ValueError(f"training.seed: expected less than 2^63, got {self.training.seed}")
        for name, value in _fractions(self):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: expected a number from 0 to 1, got {value}")
        for name, value, choices in _choices(self):
            if value not in choices:
                listed = ", ".join(str(c) for c in choices)
                raise ValueError(f"{name}: expected one of {listed}, got {value!r}")
        _check_objective(self)

    @property
    def network_kind(self) -> str:
        """ "sedd", "posterior" or "ar": `model.kind`, or what the objective needs."""
        if self.model.kind is not None:
            return self.model.kind
        return "posterior" if self.objective.type in _OF_POSTERIORS else "sedd"

    def model_config(self, vocab_size: int) -> SEDDConfig:
        """The architecture for a tokenizer of `vocab_size` tokens."""
        section = asdict(self.model)
        del section["kind"]  # which network: `networks.new_network` reads it
        absorbing = self.graph.type != "uniform"
        if section["scale_by_sigma"] is None:
            section["scale_by_sigma"] = absorbing
        return SEDDConfig(
            vocab_size=vocab_size,
            graph="absorbing" if absorbing else "uniform",
            noise=self.noise.type,
            noise_eps=self.noise.eps,
            sigma_min=self.noise.sigma_min,
            sigma_max=self.noise.sigma_max,
            **section,
        )


def _check_source(name: str, value: Any) -> None:
    names = list(value) if isinstance(value, (list, tuple)) else [value]
    if not names or not all(isinstance(n, str) and n for n in names):
        raise ValueError(
            f"{name}: expected a name, a path, or a list of paths, got {value!r}; "
            "the built-in text is pydoc"
        )


def _check_objective(config: TrainConfig) -> None:
    """ValueError where graph or network are not for the objective."""
    kind, name = config.model.kind, config.objective.type
    for key, owner in (("over", "masked_cross_entropy"), ("steps", "d3pm")):
        value, usual = (getattr(o, key) for o in (config.objective, ObjectiveSection()))
        if name != owner and value != usual:
            raise ValueError(
                f"objective.{key}: is of {owner}, got {value} with objective.type={name}; take "
                f"objective.type={owner}, or leave objective.{key}={usual}"
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
    if name in _OF_POSTERIORS and kind == "sedd":
        raise ValueError(
            f"model.kind: {name} does not learn the scale of scores, got sedd; take "
            "model.kind=posterior or leave it out"
        )


def _fractions(config: TrainConfig) -> Iterator[tuple[str, float]]:
    yield "training.ema", config.training.ema
    yield "data.held_out", config.data.held_out
    yield "model.dropout", config.model.dropout
    for name in ("beta1", "beta2", "lr_min"):
        yield f"optim.{name}", getattr(config.optim, name)


def _lower_limits(config: TrainConfig) -> Iterator[tuple[str, Any, float]]:
    for name in ("length", "hidden_size", "cond_dim", "n_blocks", "n_heads", "mlp_ratio"):
        yield f"model.{name}", getattr(config.model, name), 1
    for name in ("batch_size", "accum", "n_iters", "log_freq", "eval_sequences", "keep_last"):
        yield f"training.{name}", getattr(config.training, name), 1
    yield "objective.steps", config.objective.steps, 1
    for name in ("max_minutes", "ema", "seed", "eval_freq", "snapshot_freq"):
        yield f"training.{name}", getattr(config.training, name), 0
    for name in ("lr", "weight_decay", "warmup", "eps"):
        yield f"optim.{name}", getattr(config.optim, name), 0


def _choices(config: TrainConfig) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    yield "model.kind", config.model.kind, (None, "sedd", "posterior", "ar")
    yield "graph.type", config.graph.type, ("absorbing", "absorb", "uniform")
    yield "noise.type", config.noise.type, ("loglinear", "geometric")
    yield "objective.type", config.objective.type, OBJECTIVES
    yield "objective.over", config.objective.over, ("t", "lambda")
    yield "optim.schedule", config.optim.schedule, ("constant", "cosine")
    precisions = (None, "no", "bf16", "fp16")
    yield "training.mixed_precision", config.training.mixed_precision, precisions
