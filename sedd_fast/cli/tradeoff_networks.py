"""The networks and the text that `sedd-fast tradeoff` compares, from runs or from a preset."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sedd_fast.cli.output import progress
from sedd_fast.cli.tradeoff_options import DEMO, MINUTES, TradeoffOptions
from sedd_fast.data.blocks import BlockOrder, Blocks
from sedd_fast.data.config import DataConfig
from sedd_fast.data.corpus import hold_out, pack
from sedd_fast.data.prompts import decode
from sedd_fast.data.sources import read_documents
from sedd_fast.data.tokenizers import GPT2_TOKENS
from sedd_fast.evaluate import LikelihoodBound, evaluate_corpus
from sedd_fast.evaluate.judge import Judge
from sedd_fast.evaluate.likelihood import exact_likelihood
from sedd_fast.evaluate.tradeoff import Budget, Quality, spaced_rows
from sedd_fast.models.autoregressive import Autoregressive
from sedd_fast.models.interface import device_of
from sedd_fast.models.sedd import SEDD
from sedd_fast.names import Precision, Preset
from sedd_fast.text import demo
from sedd_fast.text.network import (
    Baseline,
    Network,
    autocast,
    choose_device,
    corpus_of_run,
    load_any,
    load_network,
)
from sedd_fast.training.api import is_finished, resume, train
from sedd_fast.training.config import baseline_config, load_config, load_run_config
from sedd_fast.training.display import TrainingDisplay
from sedd_fast.training.run_directory import RunDirectory

_HELD_OUT = 0.1  # share of the texts given as files
_LEVELS, _BLOCKS = 16, 64  # noise levels a block and blocks of the bounds in the record


@dataclass(frozen=True)
class Compared:
    """What is compared.

    Attributes:
        sedd, baseline: the networks; None where there is no baseline.
        budget: how much is drawn.
        quality: what samples are measured by; None for random weights.
        autocast: makes a context in which the networks run in the precision of --dtype.
        folder: where the record goes unless --out is given.
        about: entries of the record that describe the networks and the text.
    """

    sedd: SEDD
    baseline: Autoregressive | None
    budget: Budget
    quality: Quality | None
    autocast: Callable[[], torch.autocast]
    folder: Path
    about: dict[str, Any]


def find_networks(options: TradeoffOptions) -> Compared:
    """What one of --model, --preset and --demo names; networks that do not exist are trained."""
    if options.preset is not None:
        return _of_preset(options.preset, options)
    if options.demo:
        _train_demo(MINUTES if options.minutes is None else options.minutes)
        options = replace(options, model=str(DEMO[0]), baseline=DEMO[1], demo=False, minutes=None)
    return _of_runs(str(options.model), options)


def _of_preset(name: Preset, options: TradeoffOptions) -> Compared:
    """Networks of a preset's size with random weights: time and rows, no quality."""
    device = choose_device(options.device)
    config = load_config(name).model_config(GPT2_TOKENS)
    torch.manual_seed(options.seed)
    sedd, baseline = SEDD(config).to(device).eval(), Autoregressive(config).to(device).eval()
    about = {
        "model": f"preset {name}, random weights",
        "baseline": f"autoregressive, preset {name}, random weights",
        "network": _describe(sedd, options.dtype),
    }
    budget = options.budget(config.length)
    context = partial(autocast, device, options.dtype)
    return Compared(sedd, baseline, budget, None, context, Path(), about)


def _train_demo(minutes: float) -> None:
    """Train the demo's network unless it exists."""
    path = DEMO[0]
    if demo.is_trained(path):
        return
    settings = demo.DemoSettings(path, minutes)
    if not demo.is_usable(path):
        raise ValueError(
            f"--demo: {path} holds another run than the demo's; move it away, or compare that "
            f"one: sedd-fast tradeoff --model {path} --ar RUN_DIR"
        )
    progress().print(f"training SEDD as sedd-fast demo does, {minutes:g} minutes, in {path}")
    with TrainingDisplay(str(path)) as display:
        demo.train_demo(settings, display)


def _of_runs(name: str, options: TradeoffOptions) -> Compared:
    """Trained networks, and the text of their run or of files."""
    if options.baseline is not None:
        _train_baseline(name, options.baseline)
    network = load_network(name, None, options.device, options.dtype)
    model, tokenizer = network.model, network.tokenizer
    if not isinstance(model, SEDD):
        raise ValueError(f"--model: {name} holds a model of Hugging Face; this command needs SEDD")
    budget = options.budget(model.config.length)
    train_tokens, held_out, source = _tokens(name, network, options.text or [])
    judge = Judge.from_pretrained(options.judge, network.device) if options.judge else None
    quality = Quality.of_text(
        train_tokens, held_out, model.config.vocab_size, partial(decode, tokenizer=tokenizer),
        budget, judge,
    )  # fmt: skip
    rows = spaced_rows(held_out, model.config.length, _BLOCKS)
    generator = torch.Generator().manual_seed(options.seed)
    about: dict[str, Any] = {
        "model": network.source,
        "network": _describe(model, options.dtype),
        "held_out": f"{len(held_out):,} tokens, {source}",
        "judge": options.judge,
    }
    baseline = _baseline(network, options)
    with network.autocast():
        bound = evaluate_corpus(model, rows, model.graph, model.noise, _LEVELS, generator=generator)
        about["bound"] = _likelihood(bound)
        if baseline is not None:
            about["baseline_likelihood"] = _likelihood(exact_likelihood(baseline.model, rows))
            about["baseline"] = baseline.source
    run = RunDirectory(name)
    folder = run.path if run.config.is_file() else Path()
    ar = baseline.model if baseline else None
    return Compared(model, ar, budget, quality, network.autocast, folder, about)


def _train_baseline(name: str, path: Path) -> None:
    """Train the baseline with the settings of the run `name`, unless it exists.

    An interrupted training with exactly these settings is resumed; any other network is used as it
    is.
    """
    run, baseline = (RunDirectory(place) for place in (name, path))
    if baseline.path.exists() and not (run.config.is_file() and baseline.config.is_file()):
        return
    if not run.config.is_file():
        raise ValueError(
            f"--ar: nothing at {path}, and --model {name} is no run whose settings and text a "
            "baseline could be trained with; train one: sedd-fast train model.kind=ar ..."
        )
    config = baseline_config(load_run_config(run.config), baseline.path)
    if not baseline.config.is_file():
        progress().print(f"training the autoregressive baseline as {run.path} was, in {path}")
        with TrainingDisplay(str(path)) as display:
            train(config, display)
    elif load_run_config(baseline.config) == config and not is_finished(baseline.path):
        progress().print(f"resuming the autoregressive baseline in {path}")
        with TrainingDisplay(str(path)) as display:
            resume(baseline.path, on_step=display)


def _baseline(network: Network, options: TradeoffOptions) -> Baseline | None:
    if options.baseline is None:
        return None
    found = load_any(str(options.baseline), None, options.device, options.dtype)
    if not isinstance(found, Baseline):
        raise ValueError(f"--ar: {options.baseline} holds SEDD; train one with model.kind=ar")
    if found.tokenizer.fingerprint != network.tokenizer.fingerprint:
        raise ValueError(
            f"--ar: {options.baseline} has another tokenizer than {network.source}; the two must "
            "be trained on one text with one tokenizer"
        )
    return found


def _tokens(name: str, network: Network, files: list[str]) -> tuple[np.ndarray, np.ndarray, str]:
    """Tokens of the training text (N,) and of the held-out text (M,), and where that is from."""
    if files:
        split = DataConfig(held_out=_HELD_OUT)
        *parts, source = hold_out(read_documents(files), split, network.model.config.length)
        train_tokens, held_out = (pack(part, network.tokenizer) for part in parts)
        return train_tokens, held_out, source
    _, corpus = corpus_of_run(name, network, network.model.config.length) or ("", None)
    train, apart = (None, None) if corpus is None else (corpus.train, corpus.held_out)
    if corpus is None or not isinstance(train, BlockOrder) or not isinstance(apart, Blocks):
        raise ValueError(f"tradeoff: {name} is no run with a held-out text; name files: TEXT ...")
    return train.blocks.tokens, apart.tokens, corpus.held_out_source


def _likelihood(bound: LikelihoodBound) -> dict[str, Any]:
    return {
        "bits_per_token": bound.bits_per_token,
        "stderr": bound.bits_per_token_stderr,
        "estimator": bound.description,
        "blocks": len(bound.nats),
    }


def _describe(model: SEDD, precision: Precision) -> str:
    parameters, device = sum(p.numel() for p in model.parameters()), device_of(model)
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"{parameters:,} parameters, {precision} on {device}{threads}"
