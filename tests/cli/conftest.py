"""The command line called in this process, and one small run that all its tests read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.small_run import train_small, write_words
from sedd_fast.cli import errors, main


class Result:
    """Of one call of the command line in this process."""

    def __init__(self, code: int, captured: Any) -> None:
        self.code, self.out, self.err = code, captured.out, captured.err

    @property
    def records(self) -> list[dict[str, Any]]:
        """The JSON objects on stdout."""
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """`call("sample", "--model", path)`: the exit code and what was written."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv(errors.DEBUG, raising=False)

    def run(*args: object) -> Result:
        capsys.readouterr()
        return Result(main([str(arg) for arg in args]), capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of small words."""
    return write_words(tmp_path_factory.mktemp("text") / "words.txt")


@pytest.fixture(scope="session")
def run_dir(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 25 steps on it; a test that changes it takes a copy."""
    return train_small(tmp_path_factory.mktemp("runs") / "words", text_file)
