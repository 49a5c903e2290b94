"""The home directory in paths: `~` and `~USER`, one error where there is none."""

import re
from pathlib import Path

import pytest

import sedd_fast as sf
from sedd_fast.cli.output import creatable, writable
from sedd_fast.data.basic_tokenizers import ByteTokenizer
from sedd_fast.data.copies import named_rows
from sedd_fast.data.sources import is_hub_name, read_documents
from sedd_fast.data.tokenizers import load_tokenizer
from sedd_fast.evaluate.judge import Judge
from sedd_fast.files.hub import check_model, near
from sedd_fast.files.paths import expanded
from sedd_fast.models import networks
from sedd_fast.text.demo import demo_directory
from sedd_fast.training import resume
from sedd_fast.training.run_directory import RunDirectory

NOBODY = "~no-such-user/x"


def test_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/x") == RunDirectory("~/x").path == tmp_path / "x"
    assert expanded("a/~") == expanded(expanded("a/~"))
    assert demo_directory(Path("~/x")) == tmp_path / "x"
    ByteTokenizer().save(tmp_path / "x")
    assert load_tokenizer("~/x").vocab_size == 257


@pytest.mark.parametrize(
    "use",
    [
        expanded,
        near,
        check_model,
        writable,
        creatable,
        sf.load,
        lambda path: sf.train(path, run_dir="run", overrides=["training.n_iters=1"]),
        lambda path: sf.train("pydoc", run_dir=path, progress=False),
        resume,
        demo_directory,
        networks.load,
        load_tokenizer,
        Judge.from_pretrained,
        is_hub_name,
        read_documents,
        lambda path: named_rows("wikitext2", copy=path),
        lambda path: sf.SEDD(
            sf.SEDDConfig(8, hidden_size=8, cond_dim=8, n_blocks=1, n_heads=1, length=8)
        ).save_pretrained(path),
    ],
)
def test_an_unknown_user_is_one_line(use, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = re.escape(f"{NOBODY}: no home directory is known for ~no-such-user; give")
    with pytest.raises(ValueError, match=message):
        use(Path(NOBODY) if use in (writable, creatable, demo_directory) else NOBODY)
    assert not list(tmp_path.glob("~*"))
