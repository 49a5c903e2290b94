"""A command's options as one dataclass, and the old names of options."""

import json
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from helpers.tiny_judge import save_tiny_judge
from sedd_fast.cli.options import NumSamples, Renamed, expand_options, refuse_given


@dataclass(frozen=True)
class Options:
    """A required argument, an option with an old name, and a flag."""

    name: Annotated[str, typer.Argument()]
    num_samples: Annotated[NumSamples, Renamed(("--texts", "-t"))] = 3
    loud: Annotated[bool, typer.Option("--loud", help="Whether to shout.")] = False


def invoke(*args: str):
    """Call a command with these options and one of its own."""
    app = typer.Typer()

    @app.command()
    @expand_options
    def greet(context: typer.Context, options: Options, end: str = "!") -> None:
        """Greet."""
        if options.name == "nobody":
            refuse_given(context, ("num_samples",), "there is nobody")
        print(f"{options}{end}")

    return CliRunner().invoke(app, args)


def test_the_fields_are_options():
    assert invoke("a").stdout == f"{Options('a')}!\n"
    assert invoke("a", "-n", "5", "--loud", "--end", ".").stdout == f"{Options('a', 5, True)}.\n"
    assert invoke().exit_code == 2


@pytest.mark.parametrize("args", [("--texts", "5"), ("--texts=5",), ("-t", "5"), ("-t5",)])
def test_an_old_name_works_with_a_warning(args):
    result = invoke("a", *args)
    assert result.stdout == f"{Options('a', 5)}!\n"
    assert result.stderr == (
        "sedd-fast: --texts is now called --num-samples; the next release removes the old name\n"
    )
    assert "--texts" not in invoke("--help").stdout
    assert invoke("a", "--texts", "0").exit_code == 2


@pytest.mark.parametrize("option", ["--num-samples", "--texts"])
def test_an_option_that_has_no_effect_is_refused(option):
    assert invoke("nobody").exit_code == 0
    error = invoke("nobody", option, "5").exception
    assert isinstance(error, ValueError)
    assert str(error) == f"{option}: there is nobody; leave it out"


def old_and_new(call, command, old, new):
    """The records of a command under old and under new names; the warnings in between."""
    warned, plain = call(*command, *old, "--json"), call(*command, *new, "--json")
    assert (warned.code, plain.code) == (0, 0)
    for name in (arg for arg in old if str(arg).startswith("-")):
        assert f"sedd-fast: {name} is now called --" in warned.err
    assert "is now called" not in plain.err
    return json.loads(warned.out), json.loads(plain.out)


def test_old_names_of_eval(run_dir, text_file, call):
    command = ["eval", "-m", run_dir, text_file, "--samples", 2, "--max-blocks", 3]
    old, new = old_and_new(call, command, ["--batch", 2], ["--batch-size", 2])
    assert old == new
    assert old["batch_size"] == 2


def test_old_names_of_genppl(run_dir, call, tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    command = ["genppl", "-m", run_dir, "--judge", save_tiny_judge(tmp_path), "-s", 2]
    command.append("--keep-after-eot")
    old = ["--texts", 3, "--batch", 2, "--judge-batch", 1]
    new = ["-n", 3, "--batch-size", 2, "--judge-batch-size", 1]
    old, new = old_and_new(call, command, old, new)
    assert old == new
    assert old["texts"] == 3


def test_old_names_of_tradeoff(run_dir, call, tmp_path):
    command = ["tradeoff", "-m", run_dir, "--methods", "hit", "--steps", 2, "--out", tmp_path]
    new = ["--num-samples", 4, "--batch-size", 2]
    old, new = old_and_new(call, command, ["--texts", 4, "--batch", 2], new)
    assert (old["num_samples"], old["batch_size"]) == (new["num_samples"], new["batch_size"])
    assert (old["num_samples"], old["batch_size"]) == (4, 2)
    assert old["points"][0]["metrics"] == new["points"][0]["metrics"]
