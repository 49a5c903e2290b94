"""`sedd-fast infill`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sedd_fast.cli import requests
from sedd_fast.cli import sampler_options as options
from sedd_fast.cli.network import Network, load_network
from sedd_fast.data.prompts import Piece


@options.sharing
def infill(
    model: options.Model,
    template: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="The text with gaps: [8] is one of 8 tokens. A bracket that is meant is written "
            r"with a backslash.",
            show_default=False,
        ),
    ] = "",
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
    source: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="FILE",
            help="One text a line, as JSON; - is the standard input.",
            show_default=False,
        ),
    ] = "",
    *,
    chosen: options.Chosen,
) -> None:
    """Fill the gaps around given text, wherever it stands.

    What is given is exact in the result, and bold on a terminal; the rest is
    drawn. A text is cut at the first end-of-text after everything given.

    [bold]Examples[/]
      sedd-fast infill -m runs/demo --prefix "The " --suffix " is raised."
      sedd-fast infill -m runs/demo --middle "exception@40" -l 96 -n 4
      sedd-fast infill -m runs/demo --template "The [8] fox [12] dog."
      sedd-fast infill -m runs/demo --from gaps.jsonl --json > filled.jsonl

    A line of the --from file is an object with "template", or with any of
    "prefix", "middle" (pairs of a text and its first token's number),
    "suffix" and "length"; "id" is copied to the output.

    [bold]Exit codes[/]
      0    done
      2    a wrong option, value or path; texts that overlap or do not fit
      130  stopped with Ctrl-C
    """
    network = load_network(model, chosen.tokenizer, chosen.device, chosen.dtype)
    settings = options.Settings.of(network, chosen)
    given = {
        "template": template, "prefix": prefix, "middle": middle, "suffix": suffix,
        "length": chosen.length, "from": source,
    }  # fmt: skip
    wanted = _requests({name: value for name, value in given.items() if value}, network, settings)
    requests.draw(wanted, network, settings, chosen.keep_after_eot, chosen.as_json)


def _requests(
    given: dict[str, Any], network: Network, settings: options.Settings
) -> list[requests.Request]:
    texts = given.keys() - {"length"}
    if not texts:
        raise ValueError(
            "infill: nothing is given; use --template, --prefix, --middle, --suffix or --from, "
            "or sample"
        )
    if "from" in given:
        if others := sorted(texts - {"from"}):
            raise ValueError(f"--from: every line says what is given, so not with --{others[0]}")
        return requests.from_file(given["from"], network.tokenizer, settings.length)
    if "template" in given:
        others = sorted(f"--{name}" for name in given.keys() - {"template"})
        return [requests.from_template(given["template"], others, network.tokenizer, "--template")]
    middle = [_middle(text) for text in given.get("middle", [])]
    ends = given.get("prefix", ""), given.get("suffix", "")
    return [requests.from_pieces(*ends, middle, network.tokenizer, settings.length, "--")]


def _middle(text: str) -> Piece:
    words, at, position = text.rpartition("@")
    if not at or not position.isdecimal() or not words:
        raise ValueError(
            f"--middle: expected TEXT@POS, POS the number of a token from 0, got {text!r}; "
            "as in --middle 'then @50'"
        )
    return Piece(words, int(position), f"--middle {text!r}")
