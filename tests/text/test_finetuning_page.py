"""Everything in docs/finetuning.md runs in order as it stands, with tiny networks and few steps."""

import contextlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import sedd_fast as sf
from helpers.examples import write_rows
from sedd_fast.cli import main
from sedd_fast.data.hub_tokenizers import HubTokenizer

transformers = pytest.importorskip("transformers")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "finetuning.md"
QUICK = [
    "training.n_iters=2", "training.cpu=true", "training.eval_sequences=8", "log.tensorboard=false",
    "training.batch_size=8", "log.samples=1",
]  # fmt: skip
CHAT = [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}]


def write_small(folder: Path, tokenizer: HubTokenizer) -> None:
    """A tiny network with random weights in place of the published one."""
    torch.manual_seed(0)
    size = {"hidden_size": 16, "cond_dim": 8, "n_blocks": 1, "n_heads": 2, "length": 1024}
    model = sf.SEDD(sf.SEDDConfig(tokenizer.vocab_size, **size))
    model.save_pretrained(folder)
    tokenizer.save(folder)


def test_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{i}+1=", "completion": f"{i + 1}"} for i in range(40)]
    for name in ("chat", "chat-test", "prompts"):
        write_rows(Path(f"{name}.jsonl"), rows if name == "chat" else rows[:3])
    write_rows(Path("messages.jsonl"), [{"messages": CHAT}] * 40)
    tokenizer = HubTokenizer.from_text(["user: assistant: 2+2= 4\n"] * 9, 280)
    Path("louaaron/sedd-small").mkdir(parents=True)
    write_small(Path("louaaron/sedd-small"), tokenizer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend, eos_token="<|endoftext|>"
    )
    fast.save_pretrained("gpt2")

    blocks = re.findall(r"```(python|sh)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 10
    scope: dict[str, Any] = {}
    said = ""
    for kind, block in blocks:
        if kind == "python":
            with contextlib.redirect_stderr(None):
                exec(block, scope)
            if (test := Path("dates-test.jsonl")).is_file():
                test.write_text("".join(test.read_text().splitlines(keepends=True)[:3]))
            continue
        for line in block.splitlines():
            program, *words = shlex.split(line)
            assert program == "sedd-fast"
            code = main([*words, *QUICK] if words[0] == "train" else words)
            written = "".join(capsys.readouterr())
            assert code == 0, (line, written)
            said += written
    said += "".join(capsys.readouterr())
    assert len(re.findall(r"^\d of 3 completions equal their reference", said, re.MULTILINE)) == 3
    assert re.search(r"^\d+\.\d nats for \d\d tokens given their prompts$", said, re.MULTILINE)
    assert said.count("nats/completion") == 2
    assert Path("runs/dates/samples.jsonl").is_file()
    assert Path("runs/messages/export/completions.json").is_file()


def test_every_setting_that_the_page_names_exists() -> None:
    from sedd_fast.training.config import _SETTINGS

    sections = "model|data|training|optim|objective|log"
    page = PAGE.read_text(encoding="utf-8")
    named = set(re.findall(rf"\b((?:{sections})\.[a-z_]+)=", page))
    named |= set(re.findall(rf"`((?:{sections})\.[a-z_]+)`", page))
    assert len(named) > 8
    assert named <= _SETTINGS.keys()
