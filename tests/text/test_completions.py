"""Completing prompts and bounding completions: `infill --from`, `eval` and `TextModel.complete`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sedd_fast as sf
from helpers.examples import rows, settings, write_rows
from sedd_fast.cli import main
from sedd_fast.data.completions import FILE
from sedd_fast.evaluate import likelihood_bound
from sedd_fast.text import drawing
from sedd_fast.training import train

Call = Callable[..., tuple[list[dict[str, Any]], str]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "letters.jsonl", rows())


@pytest.fixture(scope="module")
def run_dir(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that gets some completions right, and not all."""
    more = ["training.n_iters=150", "training.batch_size=32", "training.eval_freq=0"]
    more += ["training.snapshot_freq=0", "training.ema=0.5", "log.samples=0", "optim.type=muon"]
    return train(settings(data, tmp_path_factory.mktemp("run"), *more), progress=False).run_dir


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """The JSON lines that a command prints, and its last words on stderr; it must succeed."""

    def run(*words: object) -> tuple[list[dict[str, Any]], str]:
        capsys.readouterr()
        assert main([*map(str, words), "--json"]) == 0
        written = capsys.readouterr()
        found = [json.loads(line) for line in written.out.splitlines()]
        return found, written.err.strip().split("\n")[-1]

    return run


def test_prompts_of_different_lengths_are_completed_as_one_by_one(
    run_dir: Path, data: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    padded = []

    def watched(*args: Any, **options: Any) -> torch.Tensor:
        padded.append(options["attention_mask"] is not None)
        return sf.infill(*args, **options)

    monkeypatch.setattr(drawing, "fill", watched)
    words = ["infill", "-m", run_dir, "--from", data, "--steps", 8, "--seed", 3]
    together, said = call(*words)
    assert any(padded)
    alone, _ = call(*words, "--batch-size", 1)
    for a, b in zip(together, alone, strict=True):
        del a["settings"]["batch_size"], b["settings"]["batch_size"]
    assert together == alone
    right = 0
    for record, row in zip(together, rows(), strict=True):
        assert record["text"] == row["prompt"] + record["completion"]
        assert record["reference"] == row["completion"]
        assert record["match"] == (record["completion"] == row["completion"])
        assert record["settings"]["length"] == len(row["prompt"]) + 5
        right += record["match"]
    assert 0 < right < len(together)
    assert said.startswith(f"{right} of {len(together)} completions equal their reference")


def test_prompts_without_reference_and_other_lines_of_a_file(
    run_dir: Path, call: Call, tmp_path: Path
) -> None:
    lines = [
        {"prompt": "ab>", "source": "of another key"},
        {"prompt": "ab>", "length": 12, "id": 7},
        {"prompt": ""},
        {"prefix": "ab", "length": 9},
    ]
    path = write_rows(tmp_path / "prompts.jsonl", lines)
    found, said = call("infill", "-m", run_dir, "--from", path, "--steps", 2, "--keep-after-eot")
    assert [len(record["tokens"]) for record in found] == [8, 12, 5, 9]
    assert ["completion" in record for record in found] == [True, True, True, False]
    assert not any("match" in record for record in found)
    assert found[1]["id"] == 7
    assert "reference" not in said
    words = ["infill", "-m", run_dir, "--from", path, "--steps", 2, "--keep-after-eot", "-l", 10]
    assert [len(record["tokens"]) for record in call(*words)[0]] == [10, 12, 10, 9]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "a" * 16}, "prompt: its 16 tokens leave no room for a completion in a length"),
        ({"prompt": "abc", "length": 3}, "its 3 tokens leave no room for a completion in a length"),
        ({"prompt": 4}, "prompt: expected text, got 4"),
        ({"messages": [{"role": "user", "content": "a"}]}, "chat template"),
        ({"messages": []}, "no message before the assistant's"),
        ({"question": "a"}, "unknown key 'question'; known are .* and prompt or messages"),
    ],
)
def test_wrong_prompts_are_named(
    line: dict[str, Any], message: str, run_dir: Path, tmp_path: Path, capsys: Any
) -> None:
    path = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "a"}, line])
    assert main(["infill", "-m", str(run_dir), "--from", str(path)]) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert "prompts.jsonl, line 2: " in said
    assert message.split(" .* ")[0] in said


def test_eval_bounds_the_completions(run_dir: Path, call: Call, tmp_path: Path) -> None:
    chosen = rows()[::4]
    path = write_rows(tmp_path / "some.jsonl", chosen)
    count, characters = len(chosen), sum(len(row["completion"]) for row in chosen)
    ([found], _) = call("eval", "-m", run_dir, path, "--samples", 32)
    assert found["format"] == "prompt_completion"
    assert found["blocks"] == count
    assert found["tokens"] == count * 5  # with the end-of-text that ends and extends them
    model = sf.load(run_dir)
    total, variance = 0.0, 0.0
    for row in chosen:
        prompt, completion = (model.tokenizer.encode(row[k]) for k in ("prompt", "completion"))
        eot = model.tokenizer.eot
        assert eot is not None
        tokens = torch.tensor([prompt + completion + [eot] * (5 - len(completion))])
        mask = (torch.arange(tokens.shape[1]) >= len(prompt))[None]
        network: Any = model.model
        bound = likelihood_bound(network, tokens, network.graph, network.noise, 32, loss_mask=mask)
        total, variance = total + bound.total_nats, variance + bound.total_stderr**2
    error = (variance + (count * found["nats_per_completion_stderr"]) ** 2) ** 0.5
    assert found["nats"] == pytest.approx(total, abs=4 * error)
    assert found["nats_per_completion"] == pytest.approx(found["nats"] / count)
    assert found["bits_per_char"] == pytest.approx(found["bits_per_token"] * count * 5 / characters)
    ([again], _) = call("eval", "-m", run_dir, path, "--samples", 32, "--batch-size", 3)
    assert again["nats"] == pytest.approx(found["nats"], rel=1e-5)


def test_eval_of_what_the_run_held_out_and_of_texts(
    run_dir: Path, data: Path, call: Call, capsys: Any
) -> None:
    ([held_out], _) = call("eval", "-m", run_dir, "--samples", 4)
    assert held_out["blocks"] == 7
    assert "7 of the 72 rows" in held_out["text"]
    ([few], _) = call("eval", "-m", run_dir, data, "--samples", 4, "--max-blocks", 5)
    assert (few["blocks"], few["blocks_in_text"]) == (5, 72)
    ([text], _) = call("eval", "-m", run_dir, data, "--samples", 4, "--format", "text")
    assert (text["format"], text["block_length"]) == ("text", 16)
    assert main(["eval", "-m", str(run_dir), str(data), "--samples", "4"]) == 0
    shown = capsys.readouterr().out
    assert "360 in 72 completions, with the end-of-text that ends and extends them" in shown
    assert "nats/completion" in shown
    assert "wrapping" not in shown


def test_an_untrained_network_may_be_evaluated_on_completions(
    data: Path, call: Call, tmp_path: Path, capsys: Any
) -> None:
    torch.manual_seed(0)
    config = sf.SEDDConfig(257, hidden_size=16, cond_dim=8, n_blocks=1, n_heads=2, length=16)
    sf.SEDD(config).save_pretrained(tmp_path)
    words = ["eval", "-m", tmp_path, data, "--tokenizer", "bytes", "--samples", 4]
    ([found], _) = call(*words, "--format", "prompt_completion")
    assert found["tokens"] == 8 * 3 + 64 * 5  # not extended
    ([text], _) = call(*words)
    assert text["format"] == "text"
    capsys.readouterr()
    for option in (["--wrap", "separate"], ["--split", "test"]):
        assert main([*map(str, words), "--format", "prompt_completion", *option]) == 2
        assert "only valid with --format text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a>", "completion": ""}, "line 2: empty completion"),
        ({"prompt": "a" * 14, "completion": "bbb"}, "line 2: prompt of 14 tokens and completion"),
    ],
)
def test_eval_names_the_wrong_row(
    row: dict[str, str], message: str, run_dir: Path, tmp_path: Path, capsys: Any
) -> None:
    path = write_rows(tmp_path / "wrong.jsonl", [rows()[0], row])
    assert main(["eval", "-m", str(run_dir), str(path)]) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert message in said


def test_only_rows_with_a_reference_are_compared(
    run_dir: Path, call: Call, tmp_path: Path, capsys: Any
) -> None:
    rows_ = [{"prompt": "ab>"}, {"prompt": "ab>", "completion": "zz"}, {"prompt": "c>"}]
    path = write_rows(tmp_path / "some.jsonl", rows_)
    words = ["infill", "-m", run_dir, "--from", path, "--steps", 4, "--seed", 1]
    found, said = call(*words, "--keep-after-eot")
    assert said == "0 of 1 completions equal their reference (0.0%)"
    rows_[1]["completion"] = found[1]["completion"].split("<|endoftext|>")[0]
    write_rows(path, rows_)
    for option in ([], ["--keep-after-eot"]):
        found, said = call(*words, *option)
        assert said == "1 of 1 completions equal their reference (100.0%)"
    rows_[1]["completion"] = "zz"
    write_rows(path, rows_)
    capsys.readouterr()
    assert main([*map(str, words)]) == 0
    assert "=== 2 of 3, expected 'zz' ===" in capsys.readouterr().out


def test_a_text_for_a_run_on_prompts_is_refused_with_the_remedy(
    run_dir: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "text.txt").write_text("abc\n" * 20)
    for name in (str(tmp_path / "text.txt"), "wikitext2"):
        assert main(["eval", "-m", str(run_dir), name]) == 2
        (said,) = capsys.readouterr().err.strip().splitlines()
        assert "the run was trained on prompts and completions" in said
        assert "add --format text" in said


def test_complete(run_dir: Path) -> None:
    model = sf.load(run_dir)
    found = model.complete(["ab>", "c>"], seed=3, steps=4)
    assert len(found) == 2
    assert all(">" not in text for text in found)
    assert model.complete(["ab>", "c>"], seed=3, steps=4, batch_size=1) == found
    long = model.complete(["ab>"], completion_length=9, keep_after_eot=True, steps=2)
    assert len(model.tokenizer.encode(long[0].replace("<|endoftext|>", "."))) == 9
    assert model.complete([]) == []
    with pytest.raises(ValueError, match=r"prompts\[1\]: prompt: its 16 tokens leave no room"):
        model.complete(["a>", "a" * 16])
    with pytest.raises(ValueError, match=r"prompts\[0\]: .*chat template"):
        model.complete([[{"role": "user", "content": "Hi"}]])
    with pytest.raises(TypeError, match=r"for one prompt: complete\(\[prompt\]\)"):
        model.complete("a>")


def test_a_damaged_length_of_completions(run_dir: Path) -> None:
    path = run_dir / "export" / FILE
    before = path.read_text()
    try:
        for content in ("{", '{"extended_to": 0, "longest": 4}', '{"extended_to": 2}'):
            path.write_text(content)
            with pytest.raises(ValueError, match=FILE):
                sf.load(run_dir)
    finally:
        path.write_text(before)
