"""MAUVE of samples against real texts, on features that can be saved and used again.

MAUVE (Pillutla et al. 2021, arXiv 2102.01454) quantises the features of both sets together and
takes the area under the curve of divergences between the two histograms: 1 for equal sets, near 0
for very different ones. The value depends on the model that computes the features, on the length
and the number of the texts, and on the number of clusters: report all four. Thousands of texts are
usual; with few the value is small and uncertain.
"""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sedd_fast.data.libraries import explained
from sedd_fast.evaluate.judge import Judge
from sedd_fast.extras import import_library


@dataclass(frozen=True)
class Features:
    """Features of texts.

    Attributes:
        values: (N, hidden) float32, the judge's last hidden state at a text's last token.
        judge: name of the judge that computed them.
        max_tokens: number of tokens that texts were cut to.
    """

    values: np.ndarray
    judge: str
    max_tokens: int

    @classmethod
    def of(
        cls, judge: Judge, texts: Sequence[str], max_tokens: int | None = None, batch_size: int = 4
    ) -> "Features":
        """Compute the features, each text cut to `max_tokens` of the judge (its context if None).

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
        """Write them to an .npz file."""
        about = json.dumps({"judge": self.judge, "max_tokens": self.max_tokens})
        with Path(path).open("wb") as file:
            np.savez(file, values=self.values, about=np.array(about))

    @classmethod
    def load(cls, path: str | Path) -> "Features":
        """Read what `save` wrote; ValueError for any other file."""
        if not Path(path).is_file():
            raise ValueError(f"--reference: no file {str(path)!r}; check the path")
        remedy = "make them from real texts with --reference REAL.jsonl --keep FEATURES.npz"
        wrong = (ValueError, KeyError, TypeError, OSError, RecursionError, zipfile.BadZipFile)
        with (
            explained(f"--reference: {path} holds no features", remedy, *wrong),
            np.load(path, allow_pickle=False) as stored,
        ):
            about = json.loads(str(stored["about"]))
            features = cls(stored["values"], about["judge"], about["max_tokens"])
        return features


@dataclass(frozen=True)
class Mauve:
    """The result of :func:`mauve_score`; `smoothed` is the library's MAUVE*, which is less biased.

    `clusters`, `drawn` and `real` are the numbers of clusters, of samples and of real texts.
    """

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
        drawn: features of the samples.
        real: features of real texts by the same judge, cut to the same length.
        clusters: number of clusters of the quantisation; None: a tenth of the smaller set, the
            library's rule.
        seed: seed of the clustering.

    Raises:
        ValueError: the library is not installed, or the features differ in judge or length.
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
    mauve = import_library("mauve", "eval", "the MAUVE score")
    found = mauve.compute_mauve(
        p_features=drawn.values, q_features=real.values, seed=seed,
        num_buckets="auto" if clusters is None else clusters,
    )  # fmt: skip
    smoothed = getattr(found, "mauve_star", None)
    return Mauve(
        mauve=float(found.mauve),
        smoothed=None if smoothed is None else float(smoothed),
        frontier_integral=float(found.frontier_integral),
        clusters=int(found.num_buckets),
        drawn=len(drawn.values),
        real=len(real.values),
    )
