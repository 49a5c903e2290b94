"""utils: run directories, logging, and the trainer's checkpoint file."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from sedd_fast.data.libraries import explained
from sedd_fast.files.pickles import load_pickle, save_pickle
from sedd_fast.models.checkpoint import RUN_CONFIG
from sedd_fast.training import saved_state


def load_hydra_config_from_run(load_dir: str | Path) -> Any:
    """The settings of a run directory, as OmegaConf."""
    return OmegaConf.load(Path(load_dir) / RUN_CONFIG)


def makedirs(dirname: str | Path) -> None:
    """Make a directory and its parents; it may exist."""
    os.makedirs(dirname, exist_ok=True)


def get_logger(
    logpath: str | Path,
    package_files: Iterable[str | Path] = (),
    displaying: bool = True,
    saving: bool = True,
    debug: bool = False,
) -> logging.Logger:
    """The root logger, set to write to ``logpath`` (``saving``) and to stderr (``displaying``).

    Handlers that it had are removed. The contents of ``package_files`` are logged first.
    """
    handlers: list[logging.Handler] = [logging.FileHandler(logpath, mode="a")] if saving else []
    handlers += [logging.StreamHandler()] if displaying else []
    level, line = logging.DEBUG if debug else logging.INFO, "%(asctime)s - %(message)s"
    logging.basicConfig(format=line, level=level, handlers=handlers, force=True)
    logger = logging.getLogger()
    for file in package_files:
        logger.info(file)
        logger.info(Path(file).read_text(encoding="utf-8"))
    return logger


def restore_checkpoint(
    ckpt_dir: str | Path, state: dict[str, Any], device: torch.device | str
) -> dict[str, Any]:
    """Load optimizer, model, ema and step from the file ``ckpt_dir`` into ``state``, if it exists.

    If it does not, its directory is made, a warning is logged, and ``state`` is returned unchanged.
    Raises RuntimeError, with the keys, for weights that do not fit the model, and ValueError for a
    file that is damaged, lacks one of them, or has a state that does not fit the optimizer or ema.
    """
    path = Path(ckpt_dir)
    if not path.exists():
        makedirs(path.parent)
        logging.getLogger(__name__).warning("no checkpoint at %s: starting anew", path)
        return state
    saved, parts = load_pickle(path), _parts(state)
    remedy = "give a file that save_checkpoint wrote for the same model and optimizer"
    with explained(f"{path} does not hold a state of this run", remedy, ValueError):
        step = saved_state.count(saved, "step")
        states = {name: saved_state.mapping(saved, name) for name in parts}
        if isinstance(parts["optimizer"], (torch.optim.Adam, torch.optim.AdamW)):
            states["optimizer"] = saved_state.adam(saved, parts["optimizer"])
        for name, part in parts.items():
            part.load_state_dict(states[name])
    state["step"] = step
    return state


def save_checkpoint(ckpt_dir: str | Path, state: dict[str, Any]) -> None:
    """Write optimizer, model, ema and step to the file ``ckpt_dir``: whole, or not at all."""
    saved = {name: part.state_dict() for name, part in _parts(state).items()}
    saved["step"] = state["step"]
    save_pickle(saved, Path(ckpt_dir))


def _parts(state: dict[str, Any]) -> dict[str, Any]:
    """What has a state of its own: optimizer, model (inside DistributedDataParallel), and ema."""
    model = getattr(state["model"], "module", state["model"])
    return {"optimizer": state["optimizer"], "model": model, "ema": state["ema"]}
