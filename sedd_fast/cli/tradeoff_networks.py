"""The networks and the text that `sedd-fast tradeoff` compares, from runs or from a preset."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sedd_fast.cli.display import TrainingDisplay
from sedd_fast.cli.network import (
    GPT2_TOKENS,
    Baseline,
    Network,
    Precision,
    choose_device,
    load_any,
    load_network,
)
from sedd_fast.cli.output import progress
from sedd_fast.data.blocks import BlockOrder
from sedd_fast.data.corpus import load_corpus, pack
from sedd_fast.data.sources import read_documents, split_documents
from sedd_fast.evaluate import LikelihoodBound, evaluate_corpus
from sedd_fast.evaluate.judge import Judge
from sedd_fast.evaluate.likelihood import exact_likelihood
from sedd_fast.evaluate.tradeoff import Budget, Quality, spaced_rows
from sedd_fast.models.autoregressive import Autoregressive
from sedd_fast.models.sedd import SEDD
from sedd_fast.train import demo
from sedd_fast.train.api import is_finished, resume, train
from sedd_fast.train.config import load_config
from sedd_fast.train.run_directory import RunDirectory
from sedd_fast.train.settings import ObjectiveSection

#: Where `--demo` has its two networks.
DEMO = (Path("runs/demo"), Path("runs/demo-ar"))
_HELD_OUT = 0.1  # of texts given as files
_LEVELS, _BLOCKS = 16, 64  # noise levels a block and blocks of the bounds in the record


@dataclass(frozen=True)
class Sources:
    """The options that say what is compared, with what, and how much is drawn."""

    baseline: Path | None
    text: list[str]
    judge: str | None
    device: str
    dtype: Precision
    texts: int
    batch: int
    length: int | None
    seed: int

    def budget(self, trained: int) -> Budget:
        """With the model's own length where none is asked for."""
        return Budget(self.texts, min(self.batch, self.texts), self.length or trained, self.seed)


@dataclass(frozen=True)
class Compared:
    """What is compared. `about` stands in the record; `folder` takes it."""

    sedd: SEDD
    baseline: Autoregressive | None
    budget: Budget
    quality: Quality | None
    precision: Precision
    folder: Path
    about: dict[str, Any]

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Run the networks in the precision asked for."""
        dtype = getattr(torch, self.precision.value)
        device = next(self.sedd.parameters()).device.type
        with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
            yield


def of_preset(name: str, sources: Sources) -> Compared:
    """Networks of a preset's size with random weights: time and rows, no quality."""
    device = choose_device(sources.device)
    config = load_config(name).model_config(GPT2_TOKENS)
    torch.manual_seed(sources.seed)
    sedd, baseline = SEDD(config).to(device).eval(), Autoregressive(config).to(device).eval()
    about = {
        "model": f"preset {name}, random weights",
        "baseline": f"autoregressive, preset {name}, random weights",
        "network": _network(sources, device, sedd),
    }
    budget = sources.budget(config.length)
    return Compared(sedd, baseline, budget, None, sources.dtype, Path(), about)


def of_demo(minutes: float, sources: Sources) -> Compared:
    """The demo's network and a baseline of equal size, each trained unless it is there."""
    sedd, baseline = DEMO
    if not demo.is_trained(sedd):
        settings = demo.DemoSettings(minutes, sedd)
        if RunDirectory(sedd).config.is_file() and not demo.is_interrupted(sedd):
            raise ValueError(
                f"--demo: {sedd} holds another run than the demo's; move it away, or compare that "
                f"one: sedd-fast tradeoff --model {sedd} --ar RUN_DIR"
            )
        progress().print(f"training SEDD as sedd-fast demo does, {minutes:g} minutes, in {sedd}")
        with TrainingDisplay(str(sedd)) as display:
            demo.train_demo(settings, sedd, display)
    return of_runs(str(sedd), replace(sources, baseline=baseline))


def of_runs(name: str, sources: Sources) -> Compared:
    """Trained networks, and the text of their run or of files."""
    if sources.baseline is not None:
        _train_baseline(name, sources.baseline)
    network = load_network(name, None, sources.device, sources.dtype)
    budget = sources.budget(network.model.config.length)
    learnt, held_out = _tokens(name, network, sources.text)
    judge = Judge.from_pretrained(sources.judge, network.device) if sources.judge else None
    vocab_size = network.tokenizer.vocab_size
    quality = Quality.of_text(learnt, held_out, vocab_size, network.tokenizer.decode, budget, judge)
    rows = torch.from_numpy(spaced_rows(held_out, network.model.config.length, _BLOCKS))
    model, seeded = network.model, torch.Generator().manual_seed(sources.seed)
    about: dict[str, Any] = {
        "model": network.source,
        "network": _network(sources, network.device, network.model),
        "held_out": f"{len(held_out):,} tokens",
        "judge": sources.judge,
    }
    with network.autocast():
        bound = evaluate_corpus(model, rows, model.graph, model.noise, _LEVELS, generator=seeded)
    about["bound"] = _likelihood(bound)
    baseline = _baseline(network, sources)
    if baseline is not None:
        with network.autocast():
            about["baseline_likelihood"] = _likelihood(exact_likelihood(baseline.model, rows))
        about["baseline"] = baseline.source
    folder = RunDirectory(Path(name).expanduser())
    place = folder.path if folder.config.is_file() else Path()
    return Compared(
        model, baseline.model if baseline else None, budget, quality, sources.dtype, place, about
    )


def _train_baseline(name: str, path: Path) -> None:
    """Train the baseline with the settings of the run `name`, unless it is there.

    A training with just these settings that was interrupted is gone on with; any other network is
    taken as it is.
    """
    run, begun = (RunDirectory(Path(place).expanduser()) for place in (name, path))
    if begun.path.exists() and not (run.config.is_file() and begun.config.is_file()):
        return
    if not run.config.is_file():
        raise ValueError(
            f"--ar: nothing at {path}, and --model {name} is no run whose settings and text a "
            "baseline could be trained with; train one: sedd-fast train model.kind=ar ..."
        )
    config = replace(
        load_config(files=[run.config]), objective=ObjectiveSection(), run_dir=str(begun.path)
    )
    config = replace(config, model=replace(config.model, kind="ar"))
    if not begun.config.is_file():
        progress().print(f"training the autoregressive baseline as {run.path} was, in {path}")
        with TrainingDisplay(str(path)) as display:
            train(config, display)
    elif load_config(files=[begun.config]) == config and not is_finished(begun.path):
        progress().print(f"going on with the autoregressive baseline in {path}")
        with TrainingDisplay(str(path)) as display:
            resume(begun.path, on_step=display)


def _baseline(network: Network, sources: Sources) -> Baseline | None:
    if sources.baseline is None:
        return None
    found = load_any(str(sources.baseline), None, sources.device, sources.dtype)
    if not isinstance(found, Baseline):
        raise ValueError(f"--ar: {sources.baseline} holds SEDD; train one with model.kind=ar")
    if found.tokenizer.fingerprint != network.tokenizer.fingerprint:
        raise ValueError(
            f"--ar: {sources.baseline} has another tokenizer than {network.source}; the two must "
            "be trained on one text with one tokenizer"
        )
    return found


def _tokens(name: str, network: Network, files: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out text as tokens, of files or of the run."""
    if files:
        parts = split_documents(read_documents(files), _HELD_OUT)
        learnt, held_out = (pack(part, network.tokenizer) for part in parts)
        return learnt, held_out
    run = RunDirectory(Path(name).expanduser())
    if not run.config.is_file():
        raise ValueError(f"tradeoff: {name} is no run with a text; name files: TEXT ...")
    config = load_config(files=[run.config])
    corpus = load_corpus(
        config.data, network.model.config.length, config.training.seed, network.tokenizer
    )
    if corpus.held_out is None or not isinstance(corpus.train, BlockOrder):
        raise ValueError(f"tradeoff: the run {name} has no held-out text; name files: TEXT ...")
    return corpus.train.blocks.tokens, corpus.held_out.tokens


def _likelihood(bound: LikelihoodBound) -> dict[str, Any]:
    return {
        "bits_per_token": bound.bits_per_token,
        "stderr": bound.bits_per_token_stderr,
        "estimator": bound.description,
        "blocks": len(bound.nats),
    }


def _network(sources: Sources, device: torch.device, model: SEDD) -> str:
    parameters = sum(p.numel() for p in model.parameters())
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"{parameters:,} parameters, {sources.dtype.value} on {device}{threads}"
