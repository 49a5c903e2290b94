"""`sedd-fast sample` and `sedd-fast infill`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Annotated, Any

import torch
import typer

from sedd_fast.cli.network import Network, Precision, load_network
from sedd_fast.cli.output import heading, show_text, write_json
from sedd_fast.cli.progress import counted
from sedd_fast.sampling import infill as fill
from sedd_fast.sampling import sample as draw
from sedd_fast.texts import Drawn, Piece, lay_out, read_texts


class Method(str, Enum):
    """How a step goes from a noise level to the next."""

    analytic = "analytic"
    euler = "euler"


@dataclass(frozen=True)
class Settings:
    """Of one call; they stand in every JSON record."""

    model: str
    batch: int
    length: int
    steps: int
    method: str
    denoise: bool
    seed: int
    device: str
    dtype: str

    @classmethod
    def of(
        cls,
        network: Network,
        batch: int,
        length: int | None,
        steps: int,
        method: str,
        denoise: bool,
        seed: int | None,
    ) -> Settings:
        """With the model's own length and a new seed where none is asked for."""
        length = length or network.model.config.length
        seed = torch.Generator().seed() % 2**31 if seed is None else seed
        place = (str(network.device), network.precision.value)
        return cls(network.source, batch, length, steps, method, denoise, seed, *place)


Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="A run directory of train, a directory of weights, or a hub name.",
    ),
]
Batch = Annotated[int, typer.Option("--batch", "-n", metavar="N", min=1, help="Texts to draw.")]
Length = Annotated[
    int | None,
    typer.Option(
        "--length", "-l", metavar="N", min=1, help="Tokens of a text.", show_default="as trained"
    ),
]
Steps = Annotated[
    int,
    typer.Option(
        "--steps", "-s", metavar="N", min=1, help="Network calls; more is better, up to --length."
    ),
]
Way = Annotated[Method, typer.Option(help="analytic is the better one at few steps.")]
Seed = Annotated[
    int | None,
    typer.Option(metavar="N", min=0, help="Same seed, same texts.", show_default="a new one"),
]
DeviceName = Annotated[
    str,
    typer.Option(
        "--device", metavar="NAME", help="auto, cpu, cuda or cuda:N; auto: a GPU if there is one."
    ),
]
Dtype = Annotated[
    Precision,
    typer.Option(
        "--dtype",
        metavar="NAME",
        help="float32, bfloat16 or float16: of matrix products; scores are always float32.",
    ),
]
TokenizerName = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        metavar="NAME",
        help="bytes, a file, a directory or a hub name.",
        show_default="the one beside the weights",
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


def sample(
    model: Model,
    batch: Batch = 1,
    length: Length = None,
    steps: Steps = 128,
    method: Way = Method.analytic,
    prompt: Annotated[
        str,
        typer.Option(
            "--prompt", "-p", metavar="TEXT", help="The text starts with this.", show_default=False
        ),
    ] = "",
    seed: Seed = None,
    device: DeviceName = "auto",
    dtype: Dtype = Precision.float32,
    tokenizer: TokenizerName = None,
    no_denoise: NoDenoise = False,
    keep_after_eot: KeepAll = False,
    as_json: Json = False,
) -> None:
    """Draw texts from a trained model.

    Starts at pure noise and takes it away in --steps steps. Every text is
    drawn on its own and ends at its first end-of-text, which is left out.
    Texts go to stdout, progress to stderr.

    [bold]Examples[/]
      sedd-fast sample --model runs/demo --batch 3 --seed 1
      sedd-fast sample --model louaaron/sedd-small --steps 1024
      sedd-fast sample --model runs/demo --prompt "The " --json > texts.jsonl

    [bold]Exit codes[/]
      0    done
      2    a wrong option, value or path
      130  stopped with Ctrl-C
    """
    network = load_network(model, tokenizer, device, dtype)
    settings = Settings.of(network, batch, length, steps, method.value, not no_denoise, seed)
    pieces = [Piece(prompt, 0, "--prompt")] if prompt else []
    _draw(network, settings, pieces, keep_after_eot, as_json)


def infill(
    model: Model,
    prefix: Annotated[
        str,
        typer.Option(
            "--prefix", metavar="TEXT", help="The text starts with this.", show_default=False
        ),
    ] = "",
    middle: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT@POS",
            help="TEXT stands from token POS on, counted from 0 (with characters as tokens: from "
            "that character). May be given several times.",
            show_default=False,
        ),
    ] = None,
    suffix: Annotated[
        str,
        typer.Option(
            "--suffix", metavar="TEXT", help="The text ends with this.", show_default=False
        ),
    ] = "",
    batch: Batch = 1,
    length: Length = None,
    steps: Steps = 128,
    method: Way = Method.analytic,
    seed: Seed = None,
    device: DeviceName = "auto",
    dtype: Dtype = Precision.float32,
    tokenizer: TokenizerName = None,
    no_denoise: NoDenoise = False,
    keep_after_eot: KeepAll = False,
    as_json: Json = False,
) -> None:
    """Fill the gaps around given text, wherever it stands.

    What is given is exact in the result, and bold on a terminal; the rest is
    drawn. A text is cut at the first end-of-text after everything given.

    [bold]Examples[/]
      sedd-fast infill -m runs/demo --prefix "The " --suffix " is raised."
      sedd-fast infill -m runs/demo --middle "exception@40" -l 96 -n 4
      sedd-fast infill -m runs/demo --prefix "If " --middle ", then @50" --json

    [bold]Exit codes[/]
      0    done
      2    a wrong option, value or path; texts that overlap or do not fit
      130  stopped with Ctrl-C
    """
    network = load_network(model, tokenizer, device, dtype)
    settings = Settings.of(network, batch, length, steps, method.value, not no_denoise, seed)
    pieces = [Piece(prefix, 0, "--prefix")] if prefix else []
    pieces += [_middle(text) for text in middle or []]
    pieces += [Piece(suffix, None, "--suffix")] if suffix else []
    if not pieces:
        raise ValueError("infill: nothing is given; use --prefix, --middle or --suffix, or sample")
    _draw(network, settings, pieces, keep_after_eot, as_json)


def _middle(text: str) -> Piece:
    words, at, position = text.rpartition("@")
    if not at or not position.isdecimal() or not words:
        raise ValueError(
            f"--middle: expected TEXT@POS, POS the number of a token from 0, got {text!r}; "
            "as in --middle 'then @50'"
        )
    return Piece(words, int(position), f"--middle {text!r}")


def _draw(
    network: Network, settings: Settings, pieces: list[Piece], keep_after_eot: bool, as_json: bool
) -> None:
    tokens, known = lay_out(pieces, network.tokenizer, settings.length)
    drawn = read_texts(
        _tokens(network, settings, tokens, known),
        known,
        network.tokenizer,
        network.model.graph.mask_index,
        keep_after_eot,
    )
    for number, text in enumerate(drawn, start=1):
        if as_json:
            write_json({**_record(text), "settings": asdict(settings)})
            continue
        if settings.batch > 1:
            heading(f"{number} of {settings.batch}")
        show_text(text.text, text.marks)


def _tokens(
    network: Network, settings: Settings, tokens: torch.Tensor, known: torch.Tensor
) -> torch.Tensor:
    """(B, L) on the CPU."""
    model, shape = network.model, (settings.batch, settings.length)
    process = (model, model.graph, model.noise)
    generator = torch.Generator().manual_seed(settings.seed)  # the CPU's: the same on any device
    with network.autocast(), counted("sampling", "steps") as report:
        options: dict[str, Any] = {
            "steps": settings.steps,
            "method": settings.method,
            "denoise": settings.denoise,
            "generator": generator,
            "callback": lambda step: report(step.index + 1, step.steps),
        }
        if not bool(known.any()):
            return draw(*process, shape, **options).cpu()
        tokens, known = (x.expand(shape).to(network.device) for x in (tokens, known))
        return fill(*process, tokens, known, **options).cpu()


def _record(text: Drawn) -> dict[str, object]:
    return {"text": text.text, "tokens": text.tokens, "given": text.given}
