"""Help as a manual, the version, the report of the machine."""

import pytest
import typer

import sedd_fast as sf
from sedd_fast.cli.app import app
from sedd_fast.cli.manual import _styled
from sedd_fast.names import METHODS

COMMANDS = (
    "demo",
    "train",
    "sample",
    "infill",
    "eval",
    "genppl",
    "mauve",
    "tradeoff",
    "lm-eval",
    "info",
)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_a_manual_of_one_screen(command, call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("LINES", raising=False)
    result = call(*command.split(), "--help")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 80
    assert "\033" not in result.out
    assert "\u2011" not in result.out
    if command:
        for word in (f"Usage: sedd-fast {command}", "Examples", f"sedd-fast {command}"):
            assert word in result.out
    if command not in ("", "lm-eval", "info"):
        assert "[default: " in result.out
    assert "[default: (" not in result.out
    assert "<=" not in result.out  # ranges of numbers
    monkeypatch.setenv("COLUMNS", "200")
    assert call(*command.split(), "--help").out == result.out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_all_names_every_option(command, call):
    usual, full = call(command, "--help").out, call(command, "--help-all").out
    parameters = typer.main.get_command(app).commands[command].params
    for parameter in parameters:
        if parameter.param_type_name == "option" and not parameter.hidden:
            assert f" {parameter.opts[0]}" in full, parameter.opts
            assert f" {parameter.opts[0]}" in usual, parameter.opts  # described, or only named
            assert parameter.help.split()[0] in full
    assert ("Rarely needed options" in full) == ("--help-all  " in usual)
    assert "Rarely needed options" not in usual


def test_what_is_said_of_an_option_is_the_same_everywhere(call):
    for option in ("--steps", "--num-samples", "--batch-size", "--device"):
        lines = [
            line.split("  ", 2)[-1].strip().split(" [")[0]
            for command in ("sample", "infill", "genppl", "tradeoff", "eval")
            for line in call(command, "--help").out.splitlines()
            if f"{option} " in line and line.startswith("  -")
        ]
        assert len(lines) >= 4
        assert len(set(lines)) == 1, lines


def test_help_names_every_sampler(call):
    for command in ("sample", "infill", "genppl"):
        text = call(command, "--help").out
        assert all(name in text for name in METHODS)


def test_headings_are_bold_on_a_terminal_only(monkeypatch):
    assert _styled(r"[bold]Examples[/] \[a]") == "\033[1mExamples\033[0m [a]"
    monkeypatch.setenv("NO_COLOR", "1")
    assert _styled("[bold]Examples[/]") == "Examples"


def test_help_lists_the_commands_in_order(call):
    result = call("--help")
    places = [result.out.index(f"\n  {command} ") for command in COMMANDS]
    assert places == sorted(places)
    assert "Exit codes: 0 done" in result.out
    assert call().out.rstrip() == result.out.rstrip()


def test_version(call):
    assert call("--version").out.strip() == f"sedd-fast {sf.__version__}"


def test_info_json(call):
    result = call("info", "--json")
    assert result.records[0]["versions"]["sedd_fast"] == sf.__version__
    assert "backend" in call("info").out
