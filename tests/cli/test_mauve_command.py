"""`sedd-fast mauve`: features are kept and used again."""

import json

import numpy as np
import pytest

from helpers.tiny_judge import save_tiny_judge

pytest.importorskip("mauve", reason="the mauve-text library is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")


def test_command_keeps_the_reference(tmp_path, call):
    judge_dir = save_tiny_judge(tmp_path / "judge")
    words = ["the", "cat", "sat", "on", "a", "mat.", "dogs", "ran"]
    generator = np.random.default_rng(0)
    for name in ("drawn", "real"):
        rows = [{"text": " ".join(generator.choice(words, 6))} for _ in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    kept = tmp_path / "real.npz"
    args = ["mauve", tmp_path / "drawn.jsonl", "--judge", judge_dir, "--clusters", "5"]
    full = [*args, "--reference", tmp_path / "real.jsonl", "--keep", kept, "--json"]
    (first,) = call(*full, "--max-tokens", 4).records
    assert 0.5 < first["mauve"] <= 1
    (again,) = call(*args, "--reference", kept, "--json").records  # cut as what was kept
    assert (again["mauve"], again["max_tokens"]) == (first["mauve"], 4)
    result = call(*args, "--reference", kept, "--max-tokens", 5)
    assert (result.code, "compute both alike" in result.err) == (2, True)
    result = call(*args, "--reference", kept, "--keep", kept)
    assert (result.code, "nothing new to keep" in result.err) == (2, True)
