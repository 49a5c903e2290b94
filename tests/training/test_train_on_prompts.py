"""Runs on prompts and completions: losses, normalisation, samples, resumption, errors."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers import tiny_run
from helpers.examples import rows, settings, write_rows
from sedd_fast.cli import main
from sedd_fast.data.basic_tokenizers import ByteTokenizer
from sedd_fast.data.batches import Batch
from sedd_fast.training import TrainingInterrupted, resume, train
from sedd_fast.training.api import make_accelerator
from sedd_fast.training.config import baseline_config
from sedd_fast.training.loop import Trainer
from sedd_fast.training.metrics import read_metrics, rewind_samples
from sedd_fast.training.step import Learner


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "letters.jsonl", rows())


def samples(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "samples.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("packing", [False, True])
def test_a_run_is_resumed_exactly(data: Path, tmp_path: Path, packing: bool) -> None:
    more = [f"data.packing={packing}", "training.accum=2", "objective.per_token=true"]
    whole = train(settings(data, tmp_path / "whole", *more), progress=False)

    def stop(info: Any) -> None:
        if info.step == 6:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, TrainingInterrupted)):
        train(settings(data, tmp_path / "cut", *more), stop)
    resume(tmp_path / "cut", progress=False)
    assert tiny_run.losses(tmp_path / "cut") == tiny_run.losses(whole.run_dir)
    assert samples(tmp_path / "cut") == samples(whole.run_dir)
    records = read_metrics(whole.run_dir / "metrics.jsonl")
    assert all(record["bits_per_char"] is None for record in records if "loss" in record)
    assert [record["step"] for record in samples(whole.run_dir)] == [4] * 4 + [8] * 4 + [12] * 4
    first = samples(whole.run_dir)[:4]
    assert {(r["prompt"], r["reference"]) for r in first} <= {
        (row["prompt"], row["completion"]) for row in rows()
    }
    length = json.loads((whole.export / "completions.json").read_text())
    assert length == {"extended_to": 5, "longest": 5}


def test_another_packing_is_another_run(data: Path, tmp_path: Path) -> None:
    train(settings(data, tmp_path, "training.n_iters=1"), progress=False)
    for setting in ("data.packing=true", "data.completion_length=9", "data.format=text"):
        name = setting.split("=")[0]
        with pytest.raises(ValueError, match=f"^{name}: the run was trained with .* keeps its"):
            resume(tmp_path, [setting, "training.n_iters=2"], progress=False)


def test_losses_are_in_nats_per_token_with_loss(data: Path, tmp_path: Path) -> None:
    """A new network gives every byte the same probability: ln 257 nats for each of them."""
    for name, more in (("sum", []), ("mean", ["objective.per_token=true"])):
        config = settings(data, tmp_path / name, "optim.lr=0", "training.batch_size=64", *more)
        result = train(config, progress=False)
        held_out = result.held_out
        assert held_out is not None
        assert held_out.nats_per_token == pytest.approx(math.log(257), rel=0.5)
        losses = [r["loss"] for r in read_metrics(result.run_dir / "metrics.jsonl") if "loss" in r]
        assert sum(losses) / len(losses) == pytest.approx(math.log(257), rel=0.1)
        first = read_metrics(result.run_dir / "metrics.jsonl")[0]
        ratio = held_out.bits_per_token / held_out.bits_per_char if not more else None
        if ratio is not None:  # "bbcc" and its end-of-text are 5 tokens of 4 characters
            assert ratio == pytest.approx(0.8, rel=0.06)
            assert first["bits_per_char"] is not None


@pytest.mark.parametrize("accum", [1, 2, 4])
def test_every_document_of_the_global_batch_counts_alike(
    accum: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts with different numbers of documents, under gradient accumulation."""
    more = ["data.packing=true", "objective.per_token=true", f"training.accum={accum}"]
    config = settings(data, tmp_path, *more, "data.completion_length=1")
    trainer = Trainer(config, make_accelerator(config))
    learner = trainer.learner
    parameter = next(learner.plain.parameters())

    def loss(
        self: Learner, objective: Any, model: Any, batch: Batch, step: int, part: int
    ) -> tuple[Tensor, Tensor]:
        """The mean over documents of the number of tokens with loss times a weight."""
        assert batch.loss_mask is not None
        assert batch.attention_mask is not None
        with_loss = batch.attention_mask * batch.loss_mask  # (B, L), the document's number
        sizes = [int((row == n).sum()) for row in with_loss for n in row.unique().tolist() if n]
        assert len(sizes) == batch.documents
        return torch.zeros(()), parameter.sum() * (sum(sizes) / len(sizes))

    monkeypatch.setattr(Learner, "_loss", loss)
    examples = trainer.corpus.train.examples
    batch = examples.batch([[0, 1], [9], [2], [10]])
    counts = [part.documents for part in batch.chunk(accum)]
    assert accum == 1 or len(set(counts)) > 1, counts
    learner.accumulate(batch, 1)
    expected = batch.global_loss_tokens / batch.global_documents
    assert parameter.grad is not None
    assert float(parameter.grad.flatten()[0]) == pytest.approx(expected, rel=1e-6)


def test_the_gap_is_that_of_the_longest_completion(data: Path, tmp_path: Path) -> None:
    more = ["data.completion_length=1", "training.n_iters=1"]
    result = train(settings(data, tmp_path, *more), progress=False)
    lengths = json.loads((result.export / "completions.json").read_text())
    assert lengths == {"extended_to": 1, "longest": 5}
    model = sf.load(result.run_dir)
    (drawn,) = model.complete(["ab>"], keep_after_eot=True, steps=2)
    assert isinstance(model.tokenizer, ByteTokenizer)
    assert len(drawn.replace("<|endoftext|>", ".").encode(errors="replace")) >= 5


def test_prompts_in_samples_are_whole(tmp_path: Path) -> None:
    """Also where they contain end-of-text."""
    end = "<|endoftext|>"
    found = [{"prompt": f"a{end}{c}>", "completion": c} for c in "abcdefghij"]
    path = write_rows(tmp_path / "rows.jsonl", found)
    more = ["data.tokenizer=bpe:300", "training.n_iters=1", "model.length=24", "data.held_out=0.3"]
    train(settings(path, tmp_path / "run", *more), progress=False)
    records = samples(tmp_path / "run")
    prompts = {row["prompt"]: row["completion"] for row in found}
    assert len(records) == 3
    assert all(record["reference"] == prompts[record["prompt"]] for record in records)


def test_samples_go_to_tensorboard(data: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    more = ["log.tensorboard=true", "log.samples=2", "training.n_iters=4"]
    result = train(settings(data, tmp_path, *more), progress=False)
    events = EventAccumulator(str(result.run_dir / "tensorboard"))
    events.Reload()
    (event,) = events.Tensors("held_out/completions/text_summary")
    assert event.step == 4
    assert len(samples(result.run_dir)) == 2
    assert "reference" in event.tensor_proto.string_val[0].decode()


def test_no_samples_on_request(data: Path, tmp_path: Path) -> None:
    train(settings(data, tmp_path, "log.samples=0", "training.n_iters=4"), progress=False)
    assert not (tmp_path / "samples.jsonl").exists()


def test_lines_of_samples_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    assert rewind_samples(path, 4) == -1
    lines = ['{"step": 4, "prompt": "a"}', '{"step": 8, "prompt": "b"}', "{", '{"step": "x"}', "[]"]
    path.write_text("".join(line + "\n" for line in lines) + '{"step": 8, "pro')
    assert rewind_samples(path, 7) == 4
    assert path.read_text() == lines[0] + "\n"
    assert rewind_samples(path, 7) == 4


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["model.kind=ar"], "data.format: model.kind=ar is trained on text, got prompt_completion"),
        (["data.streaming=true"], "data.streaming: data.format=prompt_completion reads whole"),
        (
            ["model.length=6"],
            "line 9: prompt of 3 tokens and completion of 5 exceed model.length=6",
        ),
        (["data.completion_length=0"], "data.completion_length: expected at least 1, got 0"),
        (["log.samples=-1"], "log.samples: expected at least 0, got -1"),
    ],
)
def test_settings_that_do_not_fit(
    more: list[str], message: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train(settings(data, tmp_path, *more), progress=False)


def test_no_baseline_is_trained_on_prompts(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="trained on prompts and completions, and an autoregr"):
        baseline_config(settings(data, tmp_path), tmp_path / "ar")


def test_settings_of_examples_need_examples(tmp_path: Path) -> None:
    text = tiny_run.write_text(tmp_path / "a.txt")
    for setting in ("objective.per_token=true", "data.packing=true", "data.completion_length=4"):
        with pytest.raises(
            ValueError, match=f"{setting.split('=')[0]}: only valid with data.format"
        ):
            tiny_run.settings(text, tmp_path / "run", setting)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a" * 16, "completion": "b"}, "prompt of 16 tokens leaves no room"),
        ({"prompt": "a", "completion": ""}, "empty completion"),
        ({"prompt": "a"}, "no 'completion'"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
         "chat template"),
    ],
)  # fmt: skip
def test_wrong_rows_are_one_line(
    row: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_rows(tmp_path / "wrong.jsonl", [*rows()[:40], row])
    words = ["train", "data.format=prompt_completion", f"data.train={path}", "model.length=16"]
    words += ["data.tokenizer=bytes", "--run-dir", str(tmp_path / "run")]
    assert main(words) != 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "wrong.jsonl" in line]
    assert message in line
    assert "line 41" in line
