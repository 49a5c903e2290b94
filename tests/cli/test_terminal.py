"""What is printed: any character in any encoding, nothing that a terminal would obey."""

import io
import json
import logging
import re
import sys
import warnings

import pytest
import torch
from rich.box import ROUNDED
from rich.panel import Panel
from rich.text import Text
from safetensors.torch import load_file, save_file

from sedd_fast import progress, terminal
from sedd_fast.cli import main, output
from sedd_fast.data.tokenizers import ByteTokenizer
from sedd_fast.models.sedd import SEDD, SEDDConfig
from sedd_fast.terminal import visible
from sedd_fast.text import drawing
from sedd_fast.training.display import TrainingDisplay

ENCODINGS = ["ascii", "latin-1", "cp1252", "utf-8"]
HOSTILE = "\x9b31m\x9d0;t\x9c\x1b]0;t\x07\u202e\u2066\u200f\u061c\x7f\r\x00"
DRAWN = f"a é ± 日 \u2028 [red]b[/] :smile: {HOSTILE} end"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
STYLES = re.compile(r"\x1b\[[0-9;]*m")  # those of `rich`


class Stream(io.TextIOWrapper):
    """A stream of an encoding, a terminal or not."""

    def __init__(self, encoding="utf-8", is_terminal=False):
        super().__init__(io.BytesIO(), encoding=encoding, newline="")
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal

    def text(self):
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)


@pytest.fixture
def streams(monkeypatch):
    """`streams("ascii")`: stdout and stderr of that encoding."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")

    def make(encoding="utf-8", is_terminal=False):
        made = Stream(encoding, is_terminal), Stream(encoding, is_terminal)
        monkeypatch.setattr(sys, "stdout", made[0])
        monkeypatch.setattr(sys, "stderr", made[1])
        return made

    return make


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A network that draws bytes."""
    folder = tmp_path_factory.mktemp("bytes")
    torch.manual_seed(0)
    config = SEDDConfig(vocab_size=257, hidden_size=16, n_blocks=1, n_heads=2, length=8, cond_dim=8)
    SEDD(config).save_pretrained(folder)
    ByteTokenizer().save(folder)
    return str(folder)


@pytest.fixture
def draws(monkeypatch):
    """Samplers that draw DRAWN."""
    ids = torch.tensor(ByteTokenizer().encode(DRAWN))

    def fill(model, graph, noise, tokens, known, **options):
        return torch.where(known, tokens, ids[: tokens.shape[1]])

    monkeypatch.setattr(drawing, "fill", fill)
    return ["--steps", "1", "--seed", "1", "--length", str(len(ids))]


def test_control_characters_are_escapes_and_other_text_is_not():
    assert visible("\x9b1m \u202e \x1b[1m \x7f\r") == r"\x9b1m \u202e \x1b[1m \x7f\x0d"
    assert visible("\ud800 \udcff") == r"\ud800 \udcff"
    kept = "a\n\té 日 \u2028 \ufeff \u200b 😀 \\x1b"
    assert visible(kept) == kept
    assert not OBEYED.search(visible("".join(map(chr, range(0x3000)))))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_samples_in_any_encoding(encoding, streams, model_dir, draws):
    out, err = streams(encoding)
    assert main(["sample", "-m", model_dir, "-n", "3", *draws]) == 0
    shown = DRAWN.encode(encoding, "backslashreplace").decode(encoding)
    expected = "".join(f"=== {i} of 3 ===\n{shown}\n" for i in (1, 2, 3))
    assert (out.text(), err.text()) == (expected, "")
    assert (out.errors, err.errors) == ("strict", "strict")  # as they were


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("is_terminal", [False, True])
def test_json_is_utf_8_and_exact(encoding, is_terminal, streams, model_dir, draws):
    out, _ = streams(encoding, is_terminal)
    given = ["--prefix", "a é", "--json"]
    assert main(["infill", "-m", model_dir, *given, *draws]) == 0
    out.flush()
    line = out.buffer.getvalue().decode("utf-8")
    assert json.loads(line)["text"] == DRAWN
    assert "é ± 日" in line
    assert bool(OBEYED.search(line)) is not is_terminal


def test_a_surrogate_in_a_record_is_json(streams, tmp_path):
    out, _ = streams("ascii")
    record = {"file": "a\udcffé"}
    output.write_json(record)
    output.save_json(record, tmp_path / "a.json")
    assert json.loads(out.buffer.getvalue()) == record
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == record


def test_a_terminal_shows_what_it_would_obey(streams, model_dir, draws):
    out, _ = streams(is_terminal=True)
    assert main(["infill", "-m", model_dir, "--prefix", DRAWN[:4], "-n", "2", *draws]) == 0
    shown = STYLES.sub("", out.text())
    assert not OBEYED.search(shown)
    assert visible(DRAWN) in shown.replace("\n", "")
    output.show_text("\x9ba\x9bb\x9bc", [(2, 4)])
    assert r"\x9ba" + "\x1b[1;36m" + r"\x9bb" + "\x1b[0m" + r"\x9bc" in out.text()
    output.show_text("abc", [(0, 2), (1, 1)])  # marks of a text whose prefixes shrink
    assert STYLES.sub("", out.text()).endswith("abc\n")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_figures_in_any_encoding(encoding, streams, run_dir, text_file):
    out, _ = streams(encoding)
    assert main(["eval", "-m", str(run_dir), str(text_file), "--max-blocks", "2"]) == 0
    assert out.text().count(" +- " if encoding == "ascii" else " ± ") == 3


@pytest.mark.parametrize("is_terminal", [False, True])
def test_boxes_tables_and_training_in_ascii(is_terminal, streams):
    out, err = streams("ascii", is_terminal)
    output.results().print(Panel(Text("≤ █"), box=ROUNDED), output.pairs({"é": "±"}, ("", "")))
    with TrainingDisplay(f"runs/[red]x:smile:{HOSTILE}é"):
        pass
    with progress.counted("drawing") as report:
        report(1, 2)
    assert r"\u2264 \u2588" in out.text()
    assert r"\xe9" in out.text()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", err.text())
    title = f"runs/[red]x:smile:{visible(HOSTILE)}\\xe9"
    assert title[: 60 if is_terminal else None] in shown  # a box cuts it at the terminal's width


def test_error_lines_show_names_of_any_kind(streams, model_dir, tmp_path):
    SEDD.from_pretrained(model_dir).save_pretrained(tmp_path)
    ByteTokenizer().save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights[HOSTILE] = torch.zeros(1)
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "model.sha256").unlink()
    for is_terminal in (False, True):
        for args in (
            ["sample", "-m", str(tmp_path)],
            ["eval", "-m", model_dir, f"./{HOSTILE}[red].txt".replace("\0", "")],
            ["train", f"model.{HOSTILE}=1".replace("\0", "")],
            [HOSTILE],
        ):
            _, err = streams("utf-8", is_terminal)
            assert main(args) == 2
            line = STYLES.sub("", err.text())
            assert line.count("\n") == 1
            assert not OBEYED.search(line)
            assert "9b31m" in line  # \x9b, or \u009b in a JSON string


def test_warnings_and_log_lines_are_shown_so():
    before = warnings.formatwarning
    with terminal.prepared(), warnings.catch_warnings():
        warnings.simplefilter("always")
        shown = warnings.formatwarning(f"hidden {HOSTILE}", UserWarning, "file", 1)
        record = logging.LogRecord("x", logging.WARNING, "f", 1, HOSTILE, None, None)
        logged = logging.lastResort.format(record)
        library = logging.StreamHandler()  # that a library adds when it is imported
        library.setFormatter(logging.Formatter("[library] %(message)s"))
        logged += library.format(record)
    assert "[library] " in logged
    assert not OBEYED.search(shown + logged)
    assert warnings.formatwarning is before
    assert logging.lastResort.format(record) == HOSTILE


class Closed(io.RawIOBase):
    """A pipe whose reader is gone."""

    def writable(self):
        return True

    def write(self, data):
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("args", [["sample"], ["sample", "--json"], ["info"], ["--version"]])
def test_a_reader_that_is_gone_ends_a_command_without_a_word(
    args, streams, model_dir, draws, monkeypatch
):
    _, err = streams()
    pipe = io.TextIOWrapper(io.BufferedWriter(Closed()), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", pipe)
    more = ["-m", model_dir, "-n", "50", "--batch-size", "1", *draws] if args[0] == "sample" else []
    assert main([*args, *more]) == 1
    assert err.text() == ""
    pipe.detach = lambda: None


def test_streams_that_are_closed_or_have_no_encoding(monkeypatch, model_dir, draws):
    for stream in (None, io.StringIO()):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        assert main(["sample", "-m", model_dir, *draws]) == 0
        assert main(["sample", "-m", model_dir, "--json", *draws]) == 0
        assert main(["info"]) == 0
        assert main(["sample", "-m", "/no/such/run"]) == 2
    assert stream.getvalue().startswith(DRAWN + "\n")
