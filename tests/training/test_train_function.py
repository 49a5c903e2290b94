"""`sf.train`: settings as arguments, and what it shows."""

from dataclasses import replace

import pytest

import sedd_fast as sf
from helpers.tiny_run import settings, write_text
from sedd_fast.training import api, load_config


class StoppedError(Exception):
    """Raised in place of training."""


@pytest.fixture
def asked_for(monkeypatch):
    """`asked_for(...)`: the settings with which `train` would begin."""

    def stop(config):
        raise StoppedError(config)

    def run(*args, **options):
        with pytest.raises(StoppedError) as stopped:
            sf.train(*args, **options)
        return stopped.value.args[0]

    monkeypatch.setattr(api, "make_accelerator", stop)
    return run


def test_settings_are_arguments(asked_for, tmp_path):
    found = asked_for(
        tmp_path / "book.txt", run_dir=tmp_path / "run", minutes=2,
        overrides={"optim.lr": 1e-3, "model": {"length": 64, "n_blocks": 2}, "optim.warmup": 7},
    )  # fmt: skip
    tiny = load_config("tiny")
    assert found == replace(
        tiny,
        run_dir=str(tmp_path / "run"),
        data=replace(tiny.data, train=str(tmp_path / "book.txt")),
        optim=replace(tiny.optim, lr=1e-3, warmup=7),
        model=replace(tiny.model, length=64, n_blocks=2),
        training=replace(tiny.training, max_minutes=2),
    )
    assert found == asked_for(found, overrides=["optim.lr=1e-3"])
    files = asked_for(["a.txt", tmp_path / "b.txt"], preset="small")
    assert files.data.train == ["a.txt", str(tmp_path / "b.txt")]
    assert files.model == load_config("small").model


def test_all_settings_may_be_given_at_once(asked_for):
    config = load_config("small", overrides=["data.train=[a.txt,b.txt]", "optim.lr=1e-3"])
    assert asked_for(config) == config
    longer = asked_for(config, minutes=3)
    assert longer == replace(config, training=replace(config.training, max_minutes=3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overrides": {"optim": {"rate": 1}}}, "unknown setting 'optim.rate'; "),
        (
            {"overrides": {"model.size": 1}},
            "unknown setting 'model.size'; model has kind, ",
        ),
        ({"overrides": {"lr": 1e-3}}, "unknown setting 'lr'; did you mean optim.lr"),
        ({"overrides": {"optim": 3}}, "optim: expected settings under it"),
        ({"minutes": "long"}, "training.max_minutes: expected"),
        ({"minutes": -1}, "training.max_minutes: expected at least 0"),
        ({"preset": "huge"}, "preset: expected one of tiny, small, medium"),
    ],
)
def test_unknown_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        sf.train("book.txt", **options)


@pytest.mark.parametrize("text", [None, 5, b"book.txt", ["book.txt", None]])
def test_the_text_is_named(text):
    with pytest.raises(TypeError, match="text must be a file's name, a list of them, or settings"):
        sf.train(text)


@pytest.mark.parametrize("text", ["The quick brown fox.\n" * 100, "fox " * 100, "A line\n"])
def test_a_text_itself_is_no_name(text):
    for given in (text, [text]):
        with pytest.raises(ValueError, match="text: a file's name is expected; write the text"):
            sf.train(given)
        with pytest.raises(ValueError, match=r"data.valid: a file's name is expected"):
            sf.train("book.txt", overrides={"data.valid": given})


def test_names_that_are_odd_or_long_are_no_text(asked_for, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = write_text(tmp_path / "two\nlines.txt")
    assert asked_for(odd).data.train == str(odd)
    deep = "/".join(["folder"] * 60) + "/*.txt"
    assert asked_for(deep).data.train == deep
    config = load_config("tiny", overrides=["data.train=" + "b" * 250 + ".txt"])
    assert len(api._default_run_dir(config)) < 120  # of a file's name, 255 are the most


def test_a_preset_beside_all_settings_is_refused():
    with pytest.raises(ValueError, match="leave out preset='tiny'"):
        sf.train(load_config("tiny"), preset="tiny")


def test_the_progress_is_shown_unless_there_is_a_callback(tmp_path, capsys):
    text, steps = write_text(tmp_path / "text.txt"), []
    sf.train(settings(text, tmp_path / "a", "training.n_iters=2"), progress=False)
    sf.train(settings(text, tmp_path / "b", "training.n_iters=2"), steps.append)
    assert capsys.readouterr() == ("", "")
    assert [info.step for info in steps] == [1, 2]
    sf.train(settings(text, tmp_path / "c", "training.n_iters=2"))
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 3)  # at the start, after the first step, and the last
    assert "step 2 of 2: loss" in err


def test_an_empty_run_dir_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="run_dir: got an empty name"):
        sf.train("pydoc", run_dir="", progress=False)
    assert not list(tmp_path.iterdir())
