"""`sedd-fast infill`."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from sedd_fast.cli.options import BundledModel, expand_options
from sedd_fast.cli.sampler_options import SamplingOptions, text_option

if TYPE_CHECKING:
    from sedd_fast.text.network import Network
    from sedd_fast.text.requests import Request

_DIGITS = 18  # of a position: more are a mistake of typing


@dataclass(frozen=True)
class GivenText:
    """The options that say which text is given, one a field."""

    template: Annotated[
        str,
        text_option(help="Text; [8] is a gap of 8 tokens, \\[ a bracket."),
    ] = ""
    prefix: Annotated[str, text_option(help="Text at the start.")] = ""
    middle: Annotated[
        list[str] | None,
        text_option(
            metavar="TEXT@POS",
            help="TEXT from token POS on, from 0; repeatable.",
        ),
    ] = None
    suffix: Annotated[str, text_option(help="Text at the end.")] = ""
    source: Annotated[
        str,
        text_option(
            "--from",
            metavar="FILE",
            help="Texts to complete, JSON lines; - is stdin.",
        ),
    ] = ""


@expand_options
def infill(model: BundledModel = None, *, given: GivenText, options: SamplingOptions) -> None:
    """Fill the gaps around given text, wherever it is.

    The given text is exact in the result, and bold on a terminal; the rest is
    drawn. A sample is cut at the first end-of-text after all given text.

    [bold]Examples[/]
      sedd-fast infill --template "The [6] statement [10]."
      sedd-fast infill -m runs/demo --prefix "The " --suffix " is raised."
      sedd-fast infill -m runs/demo --middle "exception@40" -l 96 -n 4
      sedd-fast infill -m runs/demo --from gaps.jsonl --json > filled.jsonl
      sedd-fast infill -m runs/dates --from dates-test.jsonl

    A line of the --from file is an object with "template"; with any of
    "prefix", "middle" (pairs [TEXT, POS]), "suffix" and "length"; or with
    "prompt" or "messages", to be completed (and compared with its answer).
    """
    from sedd_fast.cli import requests
    from sedd_fast.text.network import load_network

    network = load_network(
        model, options.tokenizer, options.device, options.dtype, options.adapter,
        options.trust_remote_code,
    )  # fmt: skip
    texts = {name: value for name, value in asdict(given).items() if value}
    if given.middle:
        texts["middle"] = [_placed(text) for text in given.middle]
    if options.length:
        texts["length"] = options.length
    requests.draw(_requests(texts, network), network, options)


def _requests(given: dict[str, Any], network: "Network") -> list["Request"]:
    from sedd_fast.cli import requests
    from sedd_fast.text.requests import from_record

    texts, length = given.keys() - {"length"}, given.get("length", network.model.config.length)
    if not texts:
        raise ValueError(
            "infill: nothing is given; use --template, --prefix, --middle, --suffix or --from, "
            "or the command sample"
        )
    if "source" in given:
        if others := sorted(texts - {"source"}):
            raise ValueError(f"--from: every line says what is given, so not with --{others[0]}")
        gap = None if "length" in given else network.gap
        return requests.from_file(given["source"], network.tokenizer, length, gap)
    return [from_record(given, network.tokenizer, length, "--")]


def _placed(text: str) -> list[str | int]:
    """The [TEXT, POS] of TEXT@POS."""
    piece, at, position = text.rpartition("@")
    if not at or not position.isdecimal() or len(position) > _DIGITS or not piece:
        raise ValueError(
            f"--middle: expected TEXT@POS, POS a token number from 0, got {text!r}; "
            "as in --middle 'then @50'"
        )
    return [piece, int(position)]
