"""Lists of SHA-256 sums: of networks and tokenizers, through damage, changes and cut writes."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from sedd_fast.data.basic_tokenizers import ByteTokenizer, CharTokenizer
from sedd_fast.data.tokenizers import load_tokenizer
from sedd_fast.files.checksums import verify, write_sums
from sedd_fast.files.writing import write_files
from sedd_fast.models.config import SEDDConfig
from sedd_fast.models.sedd import SEDD

TINY = SEDDConfig(5, hidden_size=4, cond_dim=2, n_blocks=1, n_heads=1)


@pytest.fixture
def saved(tmp_path) -> Path:
    """A directory with a network and a tokenizer."""
    SEDD(TINY).save_pretrained(tmp_path / "net")
    CharTokenizer("abc").save(tmp_path / "net")
    return tmp_path / "net"


def read(directory: Path) -> tuple[dict[str, torch.Tensor], str]:
    model, tokenizer = SEDD.from_pretrained(directory), load_tokenizer(directory)
    assert model.config == TINY
    return model.state_dict(), tokenizer.fingerprint


NAMES = ["config.json", "model.safetensors", "model.sha256", "sedd_tokenizer.json"]


@pytest.mark.parametrize("name", [*NAMES, "tokenizer.sha256"])
def test_every_flipped_bit_is_refused(saved, name):
    content = (saved / name).read_bytes()
    for bit in range(0, 8 * len(content), max(8 * len(content) // 41, 1)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        (saved / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is (damaged|missing).* remove .*\.sha256"):
            read(saved)
    (saved / name).write_bytes(content)
    read(saved)


def test_the_lists_are_those_of_sha256sum(saved):
    if shutil.which("sha256sum") is None:
        pytest.skip("needs sha256sum")
    for sums, names in (("model", NAMES[:2]), ("tokenizer", NAMES[3:])):
        command = ["sha256sum", *names]
        written = subprocess.run(command, cwd=saved, capture_output=True, check=True)
        assert written.stdout == (saved / f"{sums}.sha256").read_bytes()


def test_a_changed_file_is_read_once_its_list_is_removed(saved):
    text = (saved / "config.json").read_text()
    (saved / "config.json").write_text(text.replace('"dropout": 0.1', '"dropout": 0.0'))
    with pytest.raises(ValueError, match=r"config\.json is damaged: .* changed the files yourself"):
        SEDD.from_pretrained(saved)
    (saved / "model.sha256").unlink()
    assert SEDD.from_pretrained(saved).config.dropout == 0
    load_tokenizer(saved)  # its own list is still there


def test_a_second_tokenizer_replaces_the_first(saved):
    ByteTokenizer().save(saved)
    assert load_tokenizer(saved) == ByteTokenizer()
    SEDD.from_pretrained(saved)
    (saved / "sedd_tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"sedd_tokenizer\.json is missing"):
        load_tokenizer(saved)


ZEROS = "0" * 64


@pytest.mark.parametrize(
    "text",
    ["", f"{ZEROS}  a", f"{ZEROS}  /dev/zero\n", f"{ZEROS}  ../a\n", f"{ZEROS}  a\n" * 2, "\xff\n"],
)
def test_a_wrong_list_is_refused(tmp_path, text):
    (tmp_path / "a").write_text("")
    (tmp_path / "sums").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="sums is damaged: it is not a list"):
        verify(tmp_path, "sums")


def test_what_a_reader_needs_must_be_listed(tmp_path):
    (tmp_path / "a").write_text("")
    write_sums(tmp_path, "sums")
    verify(tmp_path, "sums", "a")
    with pytest.raises(ValueError, match="sums does not list b"):
        verify(tmp_path, "sums", "a", "b")
    verify(tmp_path, "no list of that name", "a")


def fill(folder: Path, text: str) -> None:
    (folder / "a").write_text(text)
    (folder / "below").mkdir()
    (folder / "below/b").write_text(text)


@pytest.mark.parametrize("failing", range(5))
@pytest.mark.parametrize("after", [False, True])
def test_a_write_cut_short_leaves_files_that_are_read(tmp_path, monkeypatch, failing, after):
    """At each removal and renaming: the list is the old one, the new one, or absent."""
    write_files(tmp_path, "sums", lambda folder: fill(folder, "old"))
    calls = []

    def counted(function):
        def call(*args, **options):
            calls.append(function)
            cut = len(calls) == failing + 1
            if cut and not after:
                raise KeyboardInterrupt
            function(*args, **options)
            if cut:
                raise KeyboardInterrupt

        return call

    replace, unlink, rmdir = os.replace, Path.unlink, Path.rmdir
    monkeypatch.setattr(os, "replace", counted(replace))
    monkeypatch.setattr(Path, "unlink", counted(unlink))
    monkeypatch.setattr(Path, "rmdir", counted(rmdir))
    with pytest.raises(KeyboardInterrupt):
        write_files(tmp_path, "sums", lambda folder: fill(folder, "new"))
    found = [(tmp_path / name).read_text() for name in ("a", "below/b")]
    assert set(found) <= {"old", "new"}
    verify(tmp_path, "sums")
    if (tmp_path / "sums").is_file():
        assert len(set(found)) == 1
    names = {file.name for file in tmp_path.rglob("*")}
    assert names <= {"a", "b", "below", "sums"}  # the folder of unfinished files is gone
    write_files(tmp_path, "sums", lambda folder: fill(folder, "new"))
    verify(tmp_path, "sums", "a", "below/b")


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".sums.tmp").mkdir()
    (tmp_path / ".sums.tmp/a").write_text("half")
    write_files(tmp_path, "sums", lambda folder: fill(folder, "new"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "below", "sums"]
    assert (tmp_path / "a").read_text() == "new"


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        Exception("I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1 vs 2"),
    ],
)
def test_a_full_disk_leaves_the_directory_as_it_was(saved, error):
    before = {file.name: file.read_bytes() for file in saved.iterdir()}

    def fail(folder: Path) -> None:
        (folder / "config.json").write_text("half")
        raise error

    with pytest.raises(OSError, match=r"No space left|Input/output error") as caught:
        write_files(saved, "model.sha256", fail)
    assert caught.value.filename == str(saved)
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before
    read(saved)
