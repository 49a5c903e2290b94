"""Wrong options, files and paths of a fresh user: one line that says what to do, nothing lost."""

import json
import shutil

import pytest
import torch

from sedd_fast.models import networks

MODEL = "RUN"  # stands for the run of the fixture

GOOD = '{"text": "the cat sat on a mat."}\n'
FILES = {
    "good.jsonl": GOOD.encode() * 3,
    "list.jsonl": b"[1]\n",
    "words.jsonl": b'{"text": "the cat", "tokens": "the cat"}\n',
    "latin.jsonl": b'{"text": "caf\xe9"}\n',
    "latin.txt": b"caf\xe9",
    "words.txt": b"the cat sat on a mat. dogs ran\n" * 40,
    "empty.txt": b"",
    "old.json": b'{"kept": true}',
}
SAMPLE = ("sample", "-m", MODEL, "--steps", "2")
INFILL = ("infill", "-m", MODEL, "--steps", "2")
EVAL = ("eval", "-m", MODEL, "words.txt", "--samples", "2")
GENPPL = ("genppl", "--judge", "./no-judge")
MAUVE = ("mauve", "good.jsonl", "--judge", "./no-judge")
TRADEOFF = ("tradeoff", "-m", MODEL, "--steps", "2", "--methods", "hit", "-n", "4")
TRAIN = ("train", "data.train=words.txt", "training.cpu=true", "training.n_iters=2")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """FILES and a folder, as the working directory."""
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((*SAMPLE, "--top-p", "0"), "top_p must lie in (0, 1], got 0.0"),
        ((*SAMPLE, "--top-p", "nan"), "top_p must lie in (0, 1], got nan"),
        ((*SAMPLE, "--temperature", "nan"), "temperature must be positive, got nan"),
        ((*SAMPLE, "--temperature", "-1"), "temperature must be positive, got -1.0"),
        (
            (*SAMPLE, "--theta", "0.3"),
            "theta=0.3 has an effect with method 'theta_",
        ),
        ((*SAMPLE, "--steps", "-1"), "--steps"),
        ((*SAMPLE, "--steps", "9" * 23), "--steps"),
        ((*SAMPLE, "--batch", "100000000000"), "--batch"),
        ((*SAMPLE, "--length", "100000000000"), "--length"),
        ((*SAMPLE, "--seed", "9" * 23), "--seed"),
        ((*SAMPLE, "--device", "cpu:7"), "device: expected auto, cpu, cuda"),
        ((*SAMPLE, "--tokenizer", "words.txt"), "tokenizer: words.txt is not valid JSON"),
        ((*SAMPLE, "--tokenizer", "bytes"), "tokenizer: it has"),
        ((*SAMPLE, "--prompt", "the " * 40), "--prompt: 160 tokens from token 0 do not fit"),
        (("sample", "-m", "words.txt"), "words.txt is a file; give the directory"),
        (("sample", "-m", "folder"), "folder holds no config.json"),
        (("sample", "-m", "./folder/x"), "no directory 'folder/x'; give one that holds"),
        (("eval", "-m", "./foldr"), "no directory 'foldr' (did you mean folder?); give one"),
        (("genppl", "-m", "foldr/"), "no directory 'foldr' (did you mean folder?); give one"),
        (("tradeoff", "-m", "a/b/c"), "no directory 'a/b/c'; give one"),
        (("eval", "-m", MODEL, "wrds.txt"), "no file 'wrds.txt' (did you mean words.txt?)"),
        ((*TRAIN[:1], "data.train=wrds.txt"), "no file 'wrds.txt' (did you mean words.txt?)"),
        (("train", "--resume", "foldr"), "foldr (did you mean folder?) holds no run"),
        ((*INFILL, "--template", "the cat"), "--template: there is no gap"),
        ((*INFILL, "--template", "the [3000000]"), "has more than 1,000,000 tokens"),
        ((*INFILL, "--template", "[" + "9" * 23 + "]"), "has more than 1,000,000 tokens"),
        ((*INFILL, "--from", "folder"), "--from: cannot read folder: Is a directory"),
        ((*INFILL, "--from", "latin.txt"), "--from: latin.txt is not UTF-8"),
        ((*INFILL, "--from", "empty.txt"), "empty.txt: no requests"),
        ((*EVAL[:3], "empty.txt"), "empty.txt: it holds no text"),
        ((*EVAL, "--save", "nowhere/a.json"), "there is no folder nowhere; make it first"),
        ((*EVAL, "--save", "folder"), "folder: is a folder; name a file in it"),
        ((*EVAL, "--seed", "9" * 23), "--seed"),
        ((*EVAL[:3], "ptb", "--data", "words.txt", "--split", "test"), "leave out --split"),
        ((*EVAL[:3], "ptb", "--data", "none"), "none"),
        ((*GENPPL, "none.jsonl"), "SAMPLES: cannot read none.jsonl: No such file"),
        ((*GENPPL, "latin.jsonl"), "SAMPLES: latin.jsonl is not UTF-8"),
        ((*GENPPL, "list.jsonl"), "list.jsonl, line 1: expected an object"),
        ((*GENPPL, "words.jsonl"), 'line 1: "tokens" is no list of whole numbers'),
        ((*GENPPL, "good.jsonl", "--save", "nowhere/a.json"), "there is no folder nowhere"),
        ((*GENPPL, "-m", MODEL, "--method", "foo"), "--method"),
        ((*GENPPL, "good.jsonl", "-s", "8"), "--steps: the samples are those of good.jsonl"),
        ((*GENPPL, "good.jsonl", "--keep-after-eot"), "nothing is drawn; leave it out"),
        ((*MAUVE, "--reference", "none.jsonl"), "--reference: cannot read none.jsonl"),
        ((*MAUVE, "--reference", "good.jsonl", "--keep", "nowhere/a.npz"), "no folder nowhere"),
        ((*MAUVE, "--reference", "good.jsonl", "--seed", "5000000000"), "--seed"),
        ((*TRADEOFF, "--out", "words.txt"), "words.txt is a file; name a folder"),
        ((*TRADEOFF, "--out", "words.txt/deeper"), "words.txt is a file; name a folder"),
        ((*TRADEOFF, "empty.txt"), "empty.txt: it holds no text"),
        (("train", "data.train=empty.txt", *TRAIN[2:]), "empty.txt: it holds no text"),
        ((*TRADEOFF, "-n", "100000"), "draw fewer"),
        ((*TRAIN, "training.seed=" + "9" * 23), "training.seed: expected less than 2^63"),
        (("train", *TRAIN[2:], "--run-dir", "words.txt"), "run_dir: words.txt is not a directory"),
    ],
)
def test_one_line_says_what_to_do(args, message, run_dir, call, folder):
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    result = call(*(run_dir if arg == MODEL else arg for arg in args))
    lines = [line for line in result.err.splitlines() if not line.startswith("training ")]
    assert result.code == 2
    assert [line.startswith("sedd-fast: ") for line in lines] == [True], lines
    assert message in lines[0]
    assert result.out == ""
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_what_is_there_is_kept_until_there_is_something_new(run_dir, call, folder):
    kept = FILES["old.json"].decode()
    args = (*EVAL, "--save", "old.json", "--max-blocks", "2")
    arguments = [run_dir if arg == MODEL else arg for arg in args]
    assert call(*arguments, "--length", "0").code == 2
    assert (folder / "old.json").read_text() == kept
    assert call(*arguments).code == 0
    assert json.loads((folder / "old.json").read_text())["blocks"] == 2


def test_an_export_that_is_replaced_meanwhile_is_read_again(run_dir, call, monkeypatch, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(run_dir, run)
    read, calls = networks.load, []

    def replaced(source, **options):
        calls.append(source)
        if len(calls) > 1:
            return read(source, **options)
        shutil.copytree(run / "export", run / "new")
        shutil.rmtree(run / "export")
        (run / "new").rename(run / "export")
        raise FileNotFoundError(f"{source} holds no config.json")

    monkeypatch.setattr(networks, "load", replaced)
    assert call("sample", "--model", str(run), "--steps", "2").code == 0
    assert len(calls) == 2


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")])
def test_no_memory_is_one_line_and_1(error, run_dir, call, monkeypatch):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr("sedd_fast.text.drawing.fill", fails)
    result = call("sample", "-m", run_dir, "--steps", 2)
    assert result.code == 1
    assert result.err == "sedd-fast: out of memory; make batch, length or model smaller\n"


def test_a_fault_of_ours_keeps_its_traceback(run_dir, call, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("expected scalar type Float")

    monkeypatch.setattr("sedd_fast.text.drawing.fill", fails)
    with pytest.raises(RuntimeError, match="expected scalar type Float"):
        call("sample", "-m", run_dir, "--steps", 2)


def test_a_damaged_checkpoint_is_named(run_dir, call, tmp_path):
    broken = shutil.copytree(run_dir, tmp_path / "run")
    (state,) = broken.glob("checkpoints/*/state.pt")
    for content in (b"junk", b""):
        state.write_bytes(content)
        result = call("train", "--resume", broken, "training.n_iters=30")
        assert result.code == 2
        assert f"cannot read {state}" in result.err
        assert "remove" in result.err
