"""Help as a manual, the version, the report of the machine."""

import re

import pytest

import sedd_fast as sf

COMMANDS = ("demo", "train", "sample", "infill", "eval", "genppl", "mauve", "tradeoff", "info")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_a_manual(command, call):
    result = call(command, "--help")
    assert result.code == 0
    assert result.err == ""
    for word in (f"Usage: sedd-fast {command}", "Examples", f"sedd-fast {command}"):
        assert word in result.out
    assert "Exit codes" in result.out
    if command != "info":
        assert "[default:" in result.out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_not_broken_at_80_columns(command, call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = call(command, "--help").out.split("╭")[0]
    for broken in re.findall(r"\n \S+ *(?=\n)", text):  # a single word left over on a line
        assert broken.strip() in ("Examples", "Environment"), broken


def test_help_lists_the_commands_in_order(call):
    result = call("--help")
    places = [result.out.index(f"│ {command} ") for command in COMMANDS]
    assert places == sorted(places)
    assert call().out.rstrip() == result.out.rstrip()


def test_version(call):
    assert call("--version").out.strip() == f"sedd-fast {sf.__version__}"


def test_info_json(call):
    result = call("info", "--json")
    assert result.records[0]["versions"]["sedd_fast"] == sf.__version__
    assert "backend" in call("info").out
