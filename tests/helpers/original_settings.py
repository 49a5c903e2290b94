"""Settings of a tiny network, in the form that the original scripts read."""

from pathlib import Path

from omegaconf import OmegaConf

GOLDEN = Path(__file__).parents[1] / "golden"


def settings(graph: str = "absorb", tokens: int = 7, **changes):
    """Settings in the original's form."""
    config = OmegaConf.load(GOLDEN / "local-run" / ".hydra" / "config.yaml")
    shape = {"hidden_size": 16, "cond_dim": 8, "length": 8, "n_blocks": 1, "n_heads": 2}
    own = {
        "tokens": tokens,
        "graph": {"type": graph},
        "noise": {"type": "loglinear" if graph == "absorb" else "geometric"},
        "model": {**shape, "scale_by_sigma": graph == "absorb"},
        "optim": {"lr": 1e-2, "warmup": 3},
        "sampling": {"steps": 6},
    }
    return OmegaConf.merge(config, own, changes)
