"""The options of the samplers: those that `sample` and `infill` share are SamplingOptions."""

from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sedd_fast.cli import options as shared
from sedd_fast.cli.manual import RARE
from sedd_fast.names import DECODING_METHODS, Method

if TYPE_CHECKING:
    from sedd_fast.sampling.config import SamplerConfig
    from sedd_fast.sampling.remask import Remask
    from sedd_fast.text.network import Network


#: What every option --steps says.
STEPS = "Denoising steps; more is better, slower."


def text_option(*names: str, help: str, metavar: str = "TEXT", **more: Any) -> Any:
    """A text that may be given, with no default to show."""
    return typer.Option(*names, metavar=metavar, help=help, show_default=False, **more)


Steps = Annotated[int, typer.Option("--steps", "-s", **shared.COUNT, help=STEPS)]
SamplerMethod = Annotated[
    Method,
    typer.Option(
        metavar="NAME",
        help="analytic (best at few steps), euler, tau_leaping, theta_trapezoidal (two calls a "
        "step), hit (absorbing graph); or, what the network is sure of first: confidence, margin, "
        "entropy, threshold, entropy_bound.",
    ),
]
TopP = Annotated[
    float,
    typer.Option(metavar="P", help="Keep the likeliest, of probability P."),
]


@dataclass(frozen=True)
class SamplingOptions:
    """The options that `sample` and `infill` share, one a field.

    A field with the name of one of :class:`SamplerConfig` sets it.
    """

    num_samples: Annotated[shared.NumSamples, shared.Renamed(("--batch",))] = 1
    batch_size: Annotated[shared.BatchSize, shared.Renamed(("--at-once",))] = 16
    length: shared.Length = None
    steps: Steps = 128
    method: SamplerMethod = "analytic"
    one_by_one: Annotated[
        bool,
        typer.Option(
            "--one-by-one",
            help="In place of --steps, with --method hit, confidence, margin or entropy: one "
            "position at a time; with threshold or entropy_bound: as many as their rule accepts.",
            **RARE,
        ),
    ] = False
    theta: Annotated[
        float,
        typer.Option(
            metavar="X",
            help="With --method theta_trapezoidal: where in a step the second network call is "
            "made, between 0 and 1.",
            **RARE,
        ),
    ] = 0.5
    remask: Annotated[
        str | None,
        text_option(
            metavar="HOW",
            help="With --method analytic and the absorbing graph: mask some tokens again and draw "
            "them anew; cap:ETA or rescale:ETA.",
            **RARE,
        ),
    ] = None
    threshold: Annotated[
        float,
        typer.Option(
            metavar="P",
            help="With --method threshold: the probability from which on tokens are accepted.",
            **RARE,
        ),
    ] = 0.9
    entropy_bound: Annotated[
        float,
        typer.Option(
            metavar="NATS",
            help="With --method entropy_bound: the sum of the entropies of what a step accepts, "
            "without the largest.",
            **RARE,
        ),
    ] = 0.1
    block_length: Annotated[
        int | None,
        typer.Option(
            **shared.COUNT,
            help="With --method confidence and those after it: unmask blocks of N tokens, one "
            "after the other.",
            show_default="one block",
            **RARE,
        ),
    ] = None
    guidance: Annotated[
        float,
        typer.Option(
            metavar="W",
            help="With --method confidence and those after it: weight of classifier-free guidance "
            "towards the given text.",
            **RARE,
        ),
    ] = 0.0
    temperature: Annotated[
        float,
        typer.Option(metavar="T", help="Below 1, likely tokens gain."),
    ] = 1.0
    top_p: TopP = 1.0
    legacy_fp32_gumbel: Annotated[
        bool,
        typer.Option(
            "--legacy-fp32-gumbel",
            help="Draw as the original code does, to reproduce published samples.",
            **RARE,
        ),
    ] = False
    seed: Annotated[
        int | None,
        typer.Option(
            **shared.SEED,
            help="The same seed gives the same samples.",
            show_default="new",
        ),
    ] = None
    device: shared.DeviceName = "auto"
    dtype: shared.Dtype = "float32"
    tokenizer: shared.TokenizerName = None
    adapter: shared.AdapterOption = None
    trust_remote_code: shared.TrustRemoteCode = False
    no_denoise: Annotated[
        bool,
        typer.Option(
            "--no-denoise", help="Leave out the last step, which removes all noise.", **RARE
        ),
    ] = False
    keep_after_eot: Annotated[
        bool,
        typer.Option("--keep-after-eot", help="Do not cut samples at end-of-text.", **RARE),
    ] = False
    as_json: Annotated[
        bool,
        typer.Option("--json", help="One JSON object a line: text, tokens, given, settings."),
    ] = False

    @cached_property
    def sampler(self) -> "SamplerConfig":
        """The sampler that the options describe.

        Raises:
            ValueError: an option with a method that does not use it, --one-by-one with --steps,
                or a value out of range.
        """
        from sedd_fast.sampling.config import SamplerConfig

        can = self.method == "hit" or self.method in DECODING_METHODS
        if self.one_by_one and not (can and self.steps == SamplingOptions.steps):
            raise ValueError(
                "--one-by-one: only valid with --method hit, confidence and those after it, and in "
                f"place of --steps; got --method {self.method} --steps {self.steps}"
            )
        names = {field.name for field in fields(SamplerConfig)} & vars(self).keys()
        settings = {name: getattr(self, name) for name in names} | {
            "steps": None if self.one_by_one else self.steps,
            "denoise": not self.no_denoise,
            "remask": None if self.remask is None else read_remask(self.remask),
        }
        return SamplerConfig(**settings)

    def record(self, network: "Network", seed: int) -> dict[str, Any]:
        """All settings, for JSON."""
        from sedd_fast.text.drawing import settings_of

        return {
            "model": network.source,
            "num_samples": self.num_samples,
            "batch_size": self.batch_size,
            **asdict(settings_of(self.sampler, network, self.keep_after_eot)),
            "remask": self.remask,
            "seed": seed,
            "device": str(network.device),
            "dtype": network.precision,
        }


def read_remask(text: str) -> "Remask":
    """The Remask of --remask: SCHEDULE, SCHEDULE:ETA or SCHEDULE:ETA:T_ON."""
    from sedd_fast.sampling.remask import Remask

    schedule, *numbers = text.split(":")
    try:
        return Remask(schedule, *map(float, numbers))  # type: ignore[arg-type]  # it checks the name
    except (ValueError, TypeError) as error:
        raise ValueError(
            "--remask: expected cap or rescale, with an eta, as in cap:0.02, "
            f"got {text!r} ({error})"
        ) from error
