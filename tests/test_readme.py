"""The README's example runs as pasted, and its folder guide names what is there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_example_runs_as_pasted(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, {"__name__": "__main__"})
    assert re.search(r"\d+\.\d+ \+- \d+\.\d+ bits per token", capsys.readouterr().out)


def test_folder_guide_names_what_is_there():
    guide = README.split("## What is where")[1].split("##")[0]
    named = re.findall(r"^ {4}(\S+)", guide, re.MULTILINE)
    assert len(named) > 15
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing
