"""The options that `sample` and `infill` share (Chosen), and what they add up to (Settings)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Annotated, Any

import torch
import typer

from sedd_fast.cli.network import Network, Precision
from sedd_fast.cli.options import (
    COUNT,
    SEED,
    DeviceName,
    Dtype,
    Length,
    TokenizerName,
    expand_options,
)
from sedd_fast.cli.options import Model as Model
from sedd_fast.sampling.api import METHODS
from sedd_fast.sampling.remask import Remask

#: How a step goes from a noise level to the next.
Method = Enum("Method", [(name, name) for name in METHODS], type=str)  # type: ignore[misc]
DEFAULT = Method("analytic")
sharing = expand_options

Batch = Annotated[int, typer.Option("--batch", "-n", **COUNT, help="Texts to draw.")]
AtOnce = Annotated[
    int,
    typer.Option(
        "--at-once",
        **COUNT,
        help="Texts drawn together: more take more memory.",
    ),
]
Steps = Annotated[
    int,
    typer.Option(
        "--steps",
        "-s",
        **COUNT,
        help="Network calls; more is better, up to --length.",
    ),
]
Way = Annotated[
    Method,
    typer.Option(
        help="analytic is the better one at few steps; theta_trapezoidal makes two network calls "
        "a step and errs less; hit (absorbing) computes only texts in which something changes.",
    ),
]
OneByOne = Annotated[
    bool,
    typer.Option("--one-by-one", help="With --method hit: one position at a time, not --steps."),
]
Theta = Annotated[
    float,
    typer.Option(metavar="X", help="Of theta_trapezoidal: where in a step the second call lies."),
]
Remasking = Annotated[
    str | None,
    typer.Option(
        "--remask",
        metavar="HOW",
        help="With analytic, absorbing: take tokens back and draw them anew; cap:ETA or "
        "rescale:ETA.",
        show_default=False,
    ),
]
Temperature = Annotated[
    float,
    typer.Option(metavar="T", help="Below 1 likely tokens gain. 1 is the model's law."),
]
TopP = Annotated[
    float,
    typer.Option(
        "--top-p", metavar="P", help="Of the likeliest tokens, only those that reach P together."
    ),
]
Legacy = Annotated[
    bool,
    typer.Option(
        "--legacy-fp32-gumbel", help="Draw as the original code does, to reproduce what it sampled."
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        **SEED,
        help="Same seed, same texts.",
        show_default="a new one",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON object a line: text, tokens, given, settings.")
]
NoDenoise = Annotated[
    bool, typer.Option("--no-denoise", help="Leave out the last step, which removes all noise.")
]
KeepAll = Annotated[
    bool, typer.Option("--keep-after-eot", help="Do not cut the text at end-of-text.")
]


@dataclass(frozen=True)
class Chosen:
    """What `sample` and `infill` are both told; every field is an option of either."""

    batch: Batch = 1
    at_once: AtOnce = 16
    length: Length = None
    steps: Steps = 128
    method: Way = DEFAULT
    one_by_one: OneByOne = False
    theta: Theta = 0.5
    remask: Remasking = None
    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    legacy_fp32_gumbel: Legacy = False
    seed: Seed = None
    device: DeviceName = "auto"
    dtype: Dtype = Precision.float32
    tokenizer: TokenizerName = None
    no_denoise: NoDenoise = False
    keep_after_eot: KeepAll = False
    as_json: Json = False


#: The settings that `sedd_fast.infill` takes as they are.
SAMPLER = (
    "steps", "method", "theta", "temperature", "top_p", "legacy_fp32_gumbel", "denoise",
)  # fmt: skip


def read_remask(text: str) -> Remask:
    """The Remask of --remask: SCHEDULE, SCHEDULE:ETA or SCHEDULE:ETA:T_ON."""
    schedule, *numbers = text.split(":")
    try:
        return Remask(schedule, *map(float, numbers))
    except (ValueError, TypeError) as error:
        raise ValueError(
            "--remask: expected cap or rescale, with an eta, as in cap:0.02, "
            f"got {text!r} ({error})"
        ) from error


@dataclass(frozen=True)
class Settings:
    """Of one call; they stand in every JSON record."""

    model: str
    batch: int
    at_once: int
    length: int
    steps: int | None
    method: str
    theta: float
    remask: str | None
    temperature: float
    top_p: float
    legacy_fp32_gumbel: bool
    denoise: bool
    seed: int
    device: str
    dtype: str

    @classmethod
    def of(cls, network: Network, chosen: Chosen) -> Settings:
        """With the model's own length and a new seed where none is asked for.

        Raises:
            ValueError: --theta or --one-by-one with a method that has none, or --one-by-one with
                --steps.
        """
        method = chosen.method.value
        if chosen.theta != Chosen.theta and method != "theta_trapezoidal":
            raise ValueError(
                f"--theta: is of --method theta_trapezoidal, got {chosen.theta:g} with {method}; "
                "leave it out"
            )
        if chosen.one_by_one and (method != "hit" or chosen.steps != Chosen.steps):
            raise ValueError(
                "--one-by-one: goes with --method hit, and in place of --steps; got --method "
                f"{method} --steps {chosen.steps}"
            )
        as_they_are = (
            "batch", "at_once", "theta", "remask", "temperature", "top_p", "legacy_fp32_gumbel",
        )  # fmt: skip
        return cls(
            model=network.source,
            length=chosen.length or network.model.config.length,
            steps=None if chosen.one_by_one else chosen.steps,
            method=method,
            denoise=not chosen.no_denoise,
            seed=torch.Generator().seed() % 2**31 if chosen.seed is None else chosen.seed,
            device=str(network.device),
            dtype=network.precision.value,
            **{name: getattr(chosen, name) for name in as_they_are},
        )

    def sampler(self) -> dict[str, Any]:
        """What `sedd_fast.infill` is given of them."""
        remask = None if self.remask is None else read_remask(self.remask)
        return {name: getattr(self, name) for name in SAMPLER} | {"remask": remask}

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
