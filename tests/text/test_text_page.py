"""The code of docs/text.md runs as it stands, with a smaller network."""

import random
import re
from pathlib import Path

import pytest

import sedd_fast as sf
from helpers.small_run import NETWORK

PAGE = Path(__file__).resolve().parents[2] / "docs" / "text.md"
SENTENCES = ["The quick brown fox jumps over the lazy dog. ", "The dog jumps over it.\n"]


@pytest.mark.filterwarnings("error")
def test_the_examples_run(tmp_path, monkeypatch, capsys):
    real = sf.train

    def quick(text, *, minutes=None, overrides=None, **settings):
        small = {"model": NETWORK, "training.n_iters": 5, "training.cpu": True}
        small |= {"log.tensorboard": False, **(overrides or {})}
        return real(text, overrides=small, **settings)

    monkeypatch.setattr(sf, "train", quick)
    monkeypatch.chdir(tmp_path)
    text = "".join(random.Random(0).choices(SENTENCES, k=200))
    Path("book.txt").write_text(text)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    exec("".join(blocks), {})
    out = capsys.readouterr().out
    assert re.search(r"^perplexity \d+\.\d, \d+ tokens at the end left out$", out, re.MULTILINE)
