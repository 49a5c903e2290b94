"""load_model: a trained network with its graph and noise."""

from pathlib import Path

import torch

from sedd_fast.compat import graph_lib, noise_lib, utils
from sedd_fast.compat.model import SEDD
from sedd_fast.models import checkpoint

Loaded = tuple[SEDD, graph_lib.Graph, noise_lib.Noise]


def load_model_hf(dir: str | Path, device: torch.device | str) -> Loaded:
    """``(model, graph, noise)`` of a Hugging Face repository or a directory in its format."""
    return _with_process(SEDD.from_pretrained(dir), device)


def load_model_local(root_dir: str | Path, device: torch.device | str) -> Loaded:
    """``(model, graph, noise)`` of a run directory, the model with its EMA weights."""
    saved = checkpoint.read(Path(root_dir))
    model = checkpoint.build(saved, lambda _: SEDD(utils.load_hydra_config_from_run(root_dir)))
    return _with_process(model.eval(), device)


def load_model(root_dir: str | Path, device: torch.device | str) -> Loaded:
    """``(model, graph, noise)`` of a run directory, a directory of weights, or a Hub name.

    Raises FileNotFoundError where nothing is found, ValueError for files that cannot be read or
    weights that do not fit.
    """
    root = Path(root_dir)
    is_run = (root / checkpoint.RUN_CONFIG).is_file() and not (root / checkpoint.CONFIG).is_file()
    return load_model_local(root, device) if is_run else load_model_hf(root_dir, device)


def _with_process(model: SEDD, device: torch.device | str) -> Loaded:
    graph, noise = graph_lib.get_graph(model.config, device), noise_lib.get_noise(model.config)
    return model.to(device), graph, noise.to(device)
