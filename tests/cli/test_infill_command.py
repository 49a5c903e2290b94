"""`sedd-fast infill`: options, templates, files of requests."""

import io
import json

import pytest

from sedd_fast.cli.requests import from_file
from sedd_fast.data.tokenizers import ByteTokenizer
from sedd_fast.sampling.api import infill as fill
from sedd_fast.text import drawing


def test_infill_keeps_what_was_given(run_dir, call):
    result = call(
        "infill", "--model", run_dir, "--prefix", "the ", "--middle", "sat@12", "--middle",
        "@ on@20", "--suffix", "mat.", "--length", 40, "--steps", 4, "--num-samples", 3, "--json",
    )  # fmt: skip
    assert result.code == 2  # the text has no "@"
    assert "'@' (U+0040)" in result.err
    result = call(
        "infill", "--model", run_dir, "--prefix", "the ", "--middle", "sat@12", "--middle",
        " on@20", "--suffix", "mat.", "--length", 40, "--steps", 4, "--num-samples", 3, "--json",
        "--keep-after-eot",
    )  # fmt: skip
    assert result.code == 0
    for record in result.records:
        assert record["given"] == [[0, 4], [12, 15], [20, 23], [36, 40]]
        assert len(record["tokens"]) == 40
        assert record["text"].startswith("the ")
        assert record["text"].endswith("mat.")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "nothing is given"),
        (["--middle", "sat"], "expected TEXT@POS"),
        (["--middle", "sat@-3"], "expected TEXT@POS"),
        (["--middle", "sat@30"], "do not fit into a length of 32"),
        (["--prefix", "the cat", "--middle", "sat@3"], "overlap what --prefix gave"),
        (["--prefix", "é"], "--prefix: text: the vocabulary"),
    ],
)
def test_infill_refuses_what_does_not_fit(args, message, run_dir, call):
    result = call("infill", "--model", run_dir, "--steps", 2, *args)
    assert result.code == 2
    assert len(result.err.splitlines()) == 1
    assert message in result.err


def test_infill_by_template(run_dir, call):
    args = ["--steps", 3, "--json", "--keep-after-eot", "--method", "hit"]
    template = "the [5] sat [10]mat."
    result = call("infill", "-m", run_dir, "--template", template, *args)
    assert result.code == 0
    (record,) = result.records
    assert record["given"] == [[0, 4], [9, 14], [24, 28]]
    assert len(record["tokens"]) == record["settings"]["length"] == 28
    assert record["text"].startswith("the ")
    assert record["text"].endswith("mat.")


@pytest.fixture
def jsonl(tmp_path):
    def write(*records):
        path = tmp_path / "requests.jsonl"
        lines = (r if isinstance(r, str) else json.dumps(r) for r in records)
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


def test_infill_of_a_file(run_dir, call, jsonl):
    path = jsonl(
        {"template": "the [6]", "id": "a"}, "", {"prefix": "the ", "suffix": "mat."},
        {"prefix": "cat ", "middle": [["sat", 6]], "length": 12}, {"template": "[10]"},
    )  # fmt: skip
    args = ["infill", "-m", run_dir, "--from", path, "--steps", 2, "--seed", 5, "--json",
            "--keep-after-eot", "--num-samples", 2]  # fmt: skip
    result, again = call(*args), call(*args)
    assert result.code == 0
    assert result.out == again.out
    assert [record["line"] for record in result.records] == [1, 1, 3, 3, 4, 4, 5, 5]
    assert [len(r["tokens"]) for r in result.records] == [10, 10, 32, 32, 12, 12, 10, 10]
    assert [r["settings"]["length"] for r in result.records[::2]] == [10, 32, 12, 10]
    assert result.records[1]["id"] == "a"
    assert "id" not in result.records[2]
    assert result.records[4]["given"] == [[0, 4], [6, 9]]
    assert result.records[0]["tokens"] != result.records[1]["tokens"]
    plain = call(*(arg for arg in args if arg != "--json"))
    assert "8 of 8" in plain.out


def test_samples_of_one_batch_have_their_own_prompts(run_dir, call, jsonl, monkeypatch):
    sizes = []

    def watched(*args, **options):
        sizes.append(len(args[3]))
        return fill(*args, **options)

    monkeypatch.setattr(drawing, "fill", watched)
    path = jsonl(*({"prefix": word, "length": 8} for word in ("the ", "cat ", "sat ")))
    args = ["infill", "-m", run_dir, "--from", path, "--steps", 2, "--json", "--keep-after-eot"]
    for size, expected in ((1, [1, 1, 1]), (2, [2, 1]), (16, [3])):
        texts = [record["text"] for record in call(*args, "--batch-size", size).records]
        assert [text[:4] for text in texts] == ["the ", "cat ", "sat "]
        assert sizes == expected
        sizes.clear()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--template", "the cat"], "--template: there is no gap [n]"),
        (["--template", "the [x] cat"], "the '[' at character 4 is part of no gap"),
        (["--template", "the [0] cat"], "the gap [0] at character 4 is empty"),
        (["--template", "the [3]", "--suffix", "x"], "leave out --suffix"),
        (["--template", "the [3]", "--length", 9], "leave out --length"),
        (["--template", "é [3]"], "--template 'é ': text: the vocabulary"),
        (["--from", "./none.jsonl"], "none.jsonl: No such file"),
        (["--from", "x", "--prefix", "the"], "so not with --prefix"),
    ],
)
def test_infill_refuses_templates_and_files(args, message, run_dir, call):
    result = call("infill", "--model", run_dir, "--steps", 2, *args)
    assert (result.code, result.out, len(result.err.splitlines())) == (2, "", 1)
    assert message in result.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("the cat", "line 2: not JSON"),
        ("[1]", "line 2: expected an object"),
        ('{"prefx": "the"}', "line 2: unknown key 'prefx'; known are template, prefix"),
        ('{"prefix": 3}', "line 2: prefix: expected a text, got 3"),
        ('{"template": "the"}', "line 2: template: there is no gap"),
        ('{"template": "[3]", "length": 4}', "line 2: template: it gives all the text and"),
        ('{"middle": ["sat"]}', "line 2: middle: expected pairs [TEXT, POS]"),
        ('{"middle": "sat"}', "line 2: middle: expected a list of pairs"),
        ('{"prefix": "the", "length": 0}', "line 2: length: expected a number of tokens"),
        ('{"prefix": "the", "length": 2}', "line 2: prefix: 3 tokens from token 0 do not fit"),
        ("[" * 200_000, "line 2: lists or objects nested more than 100 deep"),
        ('{"id": ' + "[" * 150 + "]" * 150 + "}", "line 2: lists or objects nested more than"),
        ('{"prefix": "the", "length": 1' + "0" * 30 + "}", "line 2: length: expected a number"),
        ('{"prefix": "the", "length": 1' + "0" * 5000 + "}", "line 2: not JSON"),
        ('{"prefix": "the", "length": -1}', "line 2: length: expected a number"),
        ('{"prefix": "the", "length": true}', "line 2: length: expected a number"),
        ('{"prefix": "the", "length": 8.0}', "line 2: length: expected a number"),
        ('{"prefix": "the", "length": 1e400}', "got Infinity"),
        ('{"middle": [["the", 1' + "0" * 30 + "]]}", "line 2: middle 'the': 3 tokens from token"),
        ('{"template": "[1000000][1]"}', "line 2: length: more than 1,000,000 tokens"),
        ('{"template": "[' + "9" * 5000 + ']"}', "has more than 1,000,000 tokens"),
        ('{"prefix": "the", "id": NaN}', "line 2: id: JSON cannot hold NaN"),
        ('{"prefix": "the", "id": [{"a": -1e999}]}', 'line 2: id: JSON cannot hold [{"a": -Inf'),
        ('{"prefix": "the", "id": "\\ud800"}', 'line 2: id: JSON cannot hold "\\ud800"'),
        ('{"prefix": "the\\udcff"}', r"line 2: prefix: text: the vocabulary"),
    ],
)
def test_infill_names_the_wrong_line(line, message, run_dir, call, jsonl, monkeypatch):
    monkeypatch.setattr(drawing, "fill", None)  # nothing is drawn before all lines are read
    path = jsonl({"prefix": "the"}, line)
    result = call("infill", "--model", run_dir, "--steps", 2, "--from", path)
    assert (result.code, result.out, len(result.err.splitlines())) == (2, "", 1)
    assert message in result.err
    assert "no requests" in call("infill", "-m", run_dir, "--from", jsonl("")).err


def test_infill_reads_the_standard_input_as_a_file(run_dir, call, monkeypatch):
    first, second = '{"prefix": "the ", "id": "a\u2028"}', '{"prefix":\r "cat", "id": "a"}'
    lines = f"\ufeff{first}\r\n{second}\r\n".encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="ascii"))
    result = call("infill", "-m", run_dir, "--from", "-", "--steps", 2, "--json")
    assert [json.loads(line)["id"] for line in result.out.split("\n")[:-1]] == ["a\u2028", "a"]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert "-: no requests" in call("infill", "-m", run_dir, "--from", "-").err


def test_requests_are_read_in_linear_time(jsonl, monkeypatch):
    encoded, encode = [], ByteTokenizer.encode

    def counted(self, text):
        encoded.append(text)
        return encode(self, text)

    monkeypatch.setattr(ByteTokenizer, "encode", counted)
    totals = []
    for count in (100, 400):
        encoded.clear()
        path = jsonl(*({"template": "the [3] cat [2].", "id": i} for i in range(count)))
        found = from_file(str(path), ByteTokenizer(), 8)
        totals.append(sum(map(len, encoded)))
        assert (len(found), found[-1].label) == (count, {"line": count, "id": count - 1})
        assert found[-1].placed == [(0, list(b"the ")), (7, list(b" cat ")), (14, list(b"."))]
    assert totals[1] == 4 * totals[0]
