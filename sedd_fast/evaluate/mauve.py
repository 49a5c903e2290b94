"""MAUVE of drawn against real texts, on features that are computed once and kept.

MAUVE (Pillutla et al. 2021, arXiv 2102.01454) quantises the features of both sets together and
takes the area under the curve of divergences between the two histograms: 1 for equal sets, near 0
for unlike ones. The value depends on the model that makes the features, on how long the texts are,
on how many there are, and on the number of clusters: all four stand in a report. Thousands of
texts are usual; few make the value small and uncertain.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sedd_fast.evaluate.judge import Judge


@dataclass(frozen=True)
class Features:
    """Features of texts.

    Attributes:
        values: (N, hidden) float32, the judge's last hidden state at a text's last token.
        judge: that made them.
        max_tokens: at which texts were cut.
    """

    values: np.ndarray
    judge: str
    max_tokens: int

    @classmethod
    def of(
        cls, judge: Judge, texts: Sequence[str], max_tokens: int | None = None, batch_size: int = 4
    ) -> Features:
        """Compute them, each text cut at `max_tokens` of the judge (its context if None).

        Raises:
            ValueError: a text without a token.
        """
        limit = min(max_tokens or judge.context, judge.context)
        encoded = [ids[:limit] for ids in judge.encode(texts)]
        if not encoded or not all(encoded):
            empty = sum(not ids for ids in encoded)
            raise ValueError(
                f"texts: {empty} of {len(encoded)} hold no token of the judge, so they have no "
                "features; leave the empty ones out"
            )
        return cls(judge.features(encoded, batch_size).numpy(), judge.name, limit)

    def save(self, path: str | Path) -> None:
        """Into an .npz file."""
        about = json.dumps({"judge": self.judge, "max_tokens": self.max_tokens})
        with Path(path).open("wb") as file:
            np.savez(file, values=self.values, about=np.array(about))

    @classmethod
    def load(cls, path: str | Path) -> Features:
        """What `save` wrote; ValueError for another file."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                about = json.loads(str(stored["about"]))
                return cls(stored["values"], about["judge"], about["max_tokens"])
        except FileNotFoundError:
            raise ValueError(f"--reference: no file {str(path)!r}; check the path") from None
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"--reference: {path} holds no features ({error}); make them from real texts with "
                "--reference REAL.jsonl --keep FEATURES.npz"
            ) from error


@dataclass(frozen=True)
class Mauve:
    """What :func:`mauve_score` found; `smoothed` is MAUVE* of the library, less biased."""

    mauve: float
    smoothed: float | None
    frontier_integral: float
    clusters: int
    drawn: int
    real: int


def mauve_score(
    drawn: Features, real: Features, clusters: int | None = None, seed: int = 0
) -> Mauve:
    """MAUVE by the `mauve-text` library.

    Args:
        drawn, real: features by the same judge, cut at the same length.
        clusters: of the quantisation; None: a tenth of the smaller set, the library's rule.
        seed: of the clustering.

    Raises:
        ValueError: the library is not installed, or the features do not belong together.
    """
    for name in ("judge", "max_tokens"):
        ours, theirs = getattr(drawn, name), getattr(real, name)
        if ours != theirs:
            raise ValueError(
                f"{name}: the drawn texts have features of {ours}, the real ones of {theirs}; "
                "compute both alike"
            )
    vectors = len(drawn.values) + len(real.values)
    if clusters is not None and clusters > vectors:
        raise ValueError(f"clusters: {clusters} of only {vectors} texts; a tenth of them is usual")
    try:
        import mauve
    except ImportError as error:
        raise ValueError("mauve needs the mauve-text library: pip install mauve-text") from error
    found: Any = mauve.compute_mauve(
        p_features=drawn.values, q_features=real.values, seed=seed,
        num_buckets="auto" if clusters is None else clusters,
    )  # fmt: skip
    smoothed = getattr(found, "mauve_star", None)
    return Mauve(
        float(found.mauve),
        None if smoothed is None else float(smoothed),
        float(found.frontier_integral),
        int(found.num_buckets),
        len(drawn.values),
        len(real.values),
    )
