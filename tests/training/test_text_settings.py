"""Settings that are text: literal on the command line, and back through the run's config.yaml."""

from dataclasses import asdict, replace

import pytest
import yaml

from sedd_fast.training.config import config_from_dict, load_config, save_config
from sedd_fast.training.settings import LogConfig, OptimConfig, TrainConfig, TrainingSection

#: Names that YAML, or a language of settings, reads as something else.
NAMES = [
    "my #1 book.txt", "1984", "no", "Yes", "on", "True", "*.txt", "{a}.txt", "notes: a.txt", "a:",
    "[draft] a.txt", "[draft] a [2]", "@a.txt", "cost${x}.txt", "${", "$x", "%a", "`a`", "&a", "!x",
    "- a", "-", "? b", "|", ">", "=", "a=b", "<<", "1e3", "0x10", "0o7", "12:30:00", "2001-01-01",
    ".inf", ".nan", "1_000", "it's", "'a' and 'b'", "\"", "'", "a, b.txt", "#", "a\\b", "\\${x}",
    " a ", "a\nb", "\n a", "a\n\n", "\ta", "a\r\nb", "\x85", "\u2028", "\ufeffa", "é", "\U0001f600",
    "\udc80", "\x07", "~a", "a" * 500, "a " * 100,
]  # fmt: skip
TEXTS = ("data.train", "data.valid", "data.tokenizer", "data.cache_dir", "log.wandb_project")


def given(name: str, value: str):
    config = load_config("tiny", overrides=[f"{name}={value}"])
    for key in name.split("."):
        config = getattr(config, key)
    return config


@pytest.mark.parametrize("name", ["run_dir", *TEXTS])
def test_text_is_literal_on_the_command_line(name):
    assert [given(name, value) for value in NAMES] == NAMES


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[a.txt,b.txt]", ["a.txt", "b.txt"]),
        ("[my #1.txt, 1984,no ]", ["my #1.txt", "1984", "no"]),
        ("['a, b.txt', \"c\\u00e9\", [1].txt]", None),
        ("['a, b.txt', \"c\\u00e9\",]", ["a, b.txt", "cé"]),
        ("[" + " " * 20_000 + "[]", None),
        ("[" + "a  " * 20_000 + "'" + " " * 20_000 + "[]", None),
        ("[  a  b , 'c'  ]", ["a  b", "c"]),
        ("'my #1.txt'", "my #1.txt"),
        ("'[a.txt]'", "[a.txt]"),
        ("'it''s'", "it's"),
        ("'null'", "null"),
        ('"a\\tb"', "a\tb"),
    ],
)
def test_lists_and_quotes(text, value):
    assert given("data.train", text) == (text if value is None else value)


def test_lists_are_those_of_settings_that_take_one():
    assert given("log.wandb_project", "[a,b]") == "[a,b]"
    for value in ("[a", "[a, b"):
        with pytest.raises(ValueError, match=r"the list is not closed; quote a name"):
            given("data.train", value)


def test_numbers_are_those_of_python(tmp_path):
    for text, value in (("010", 10), ("1_000", 1000), (" 7 # steps", 7)):
        assert load_config(overrides=[f"training.n_iters={text}"]).training.n_iters == value
        (tmp_path / "a.yaml").write_text(f"training:\n  n_iters: {text}\n  max_minutes: {text}\n")
        section = load_config(files=[tmp_path / "a.yaml"]).training
        assert (section.n_iters, section.max_minutes) == (value, value)
    for text in ("1:30", "0x10", "0b1", "010:00", "yes"):
        for name in ("training.n_iters", "training.max_minutes", "optim.lr"):
            with pytest.raises(ValueError, match=f"{name}: expected"):
                load_config(overrides=[f"{name}={text}"])


def test_no_value():
    for name in ("run_dir", "data.valid", "data.cache_dir", "data.config"):
        assert [given(name, value) for value in ("null", "")] == [None, None]
    assert given("data.valid", "~") == "~"
    for name in ("data.train", "log.wandb_project"):
        with pytest.raises(ValueError, match=name):
            given(name, "null")


def test_choices_are_text():
    assert given("training.mixed_precision", "no") == "no"
    with pytest.raises(ValueError, match="expected one of None, no, bf16, fp16, got 'off'"):
        given("training.mixed_precision", "off")


def test_saved_settings_read_back(tmp_path):
    path = tmp_path / "config.yaml"
    base, names = load_config("tiny"), [*NAMES, "null", "~", "a", "b", "c"]
    for i in range(0, len(names) - 4, 5):
        a, b, c, d, e = names[i : i + 5]
        data = replace(base.data, train=names, valid=a, tokenizer=b, cache_dir=c)
        config = replace(base, run_dir=d, data=data, log=LogConfig(wandb_project=e))
        save_config(config, path)
        assert load_config(files=[path]) == config, (a, b, c, d, e)
        assert config_from_dict(asdict(config)) == config
        assert yaml.safe_load(path.read_text(encoding="utf-8")) == asdict(config)


def test_text_in_a_yaml_file(tmp_path):
    path = tmp_path / "mine.yaml"
    text = "data:\n  train: [1984, no, 2001-01-01, a$b]\n  valid: cost${x}.txt\n  cache_dir: ~\n"
    path.write_text(f"{text}  tokenizer: 'null'\nlog: {{wandb_project: on}}\n")
    config = load_config(files=[path])
    data = config.data
    assert data.train == ["1984", "no", "2001-01-01", "a$b"]
    assert (data.valid, data.cache_dir, data.tokenizer) == ("cost${x}.txt", None, "null")
    assert config.log.wandb_project == "on"


@pytest.mark.parametrize(
    "setting",
    [
        "optim.lr=1e999", "optim.grad_clip=nan", "optim.grad_clip=.inf", "optim.lr=true",
        "optim.lr=[1]", "optim.lr={a: 1}", "optim.lr=", "optim.lr=" + "[" * 200_000, "optim.lr.x=1",
        "training.batch_size=true", "training.batch_size=1.0", "training.batch_size=1e3",
        "training.batch_size=" + "9" * 400, "training.batch_size=" + "9" * 9000,
        "training.n_iters=0x" + "f" * 9000, "training.max_minutes=.inf", "training.cpu=2",
        "training.cpu=text", "data.train.x=1", "data=1", "data=[1]", "data={1: 2}", "=1", ".=1",
        "optim..lr=1", "optim.=1", "data.train=[]", "data.train=['']", "noise.eps=!!int x",
        "optim={lr: 1, lr: 2}",
    ],
)  # fmt: skip
def test_wrong_values_get_one_line(setting):
    with pytest.raises(ValueError, match=r"\w") as caught:
        load_config("tiny", overrides=[setting])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "[" * 200_000, "a: *b", "data: 1", "- a", "1: 2", "\xff", "a: !x 1"]
)
def test_wrong_yaml_files_get_one_line(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config: .*mine\.yaml|data: |unknown setting") as caught:
        load_config(files=[path])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"training": TrainingSection(batch_size="4")},
        {"training": TrainingSection(seed=None)},
        {"training": TrainingSection(max_minutes=float("inf"))},
        {"optim": OptimConfig(grad_clip=float("nan"))},
        {"optim": {"lr": 1.0}},
        {"run_dir": 5},
    ],
)
def test_settings_of_a_wrong_type_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainConfig(**wrong)


@pytest.mark.parametrize("layer", [None, 5, [], {1: 2}, {"optim": None}, {"optim": {None: 1}}])
def test_wrong_dictionaries_are_refused(layer):
    with pytest.raises(ValueError, match=r"expected|unknown"):
        config_from_dict(layer)
