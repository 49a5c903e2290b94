"""Mistyped names, and the Hub out of reach: one line at once, and the cache keeps working."""

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants

import sedd_fast as sf
from sedd_fast.data.basic_tokenizers import ByteTokenizer
from sedd_fast.data.hub_tokenizers import HubTokenizer
from sedd_fast.data.sources import HubDataset, is_hub_name, read_documents
from sedd_fast.data.tokenizers import load_tokenizer
from sedd_fast.evaluate.judge import Judge
from sedd_fast.files import hub
from sedd_fast.models import networks

CONFIG = sf.SEDDConfig(8, hidden_size=8, cond_dim=8, n_blocks=1, n_heads=2, length=24)
CAUSE = "cannot be reached: Name or service not known"


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Without a connection, in a folder with two runs and a text; the addresses that were asked."""
    asked = []

    def head(address, timeout):
        asked.append(address)
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: SimpleNamespace(head=head))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("runs/demo", "runs/demo-ar", "runs/.hidden"):
        (tmp_path / name / "export").mkdir(parents=True)
    (tmp_path / "book.txt").write_text("a fox")
    monkeypatch.chdir(tmp_path)
    return asked


def test_what_may_be_a_repository(offline):
    assert all(map(hub.may_be_repository, ("gpt2", "owner/name", "o-1/n.x_2")))
    paths = ("runs/x", "./x", "../x", "/x", "~/x", "a/b/c", "a b", "x/", "")
    assert not any(map(hub.may_be_repository, paths))
    assert is_hub_name("runs")  # a directory that `datasets` reads
    assert not is_hub_name("runs/book")


def test_a_folder_of_the_owner_is_no_reason_to_refuse_a_name(offline, tmp_path):
    reason = ", and the Hub is not asked, because the folder {} exists here"
    (tmp_path / "owner" / "notes").mkdir(parents=True)
    assert hub.may_be_repository("owner/name")
    assert hub.not_asked("owner/name") == ""
    with pytest.raises(FileNotFoundError, match=f"'owner/name' here, .*{CAUSE}"):
        sf.SEDD.from_pretrained("owner/name")
    assert offline == [constants.ENDPOINT]
    (tmp_path / "owner" / "nane").touch()  # a name that differs in a letter
    assert not hub.may_be_repository("owner/name")
    assert hub.may_be_repository("owner/else")
    with pytest.raises(FileNotFoundError, match=f"owner/notes.*{reason.format('owner')}"):
        hub.check_model("owner/note")
    (tmp_path / "owner" / "notes" / "config.yaml").touch()  # a run
    assert not hub.may_be_repository("owner/else")
    assert hub.not_asked("owner/else") == reason.format("owner")
    assert hub.not_asked("runs/x") == reason.format("runs")
    assert hub.not_asked("./runs/x") == hub.not_asked("else") == ""


def test_near_names(offline):
    assert hub.near("runs/dmo") == " (did you mean runs/demo?)"
    assert hub.near("rnus/demo-ar") == " (did you mean runs/demo-ar or runs/demo?)"
    assert hub.near("bok.txt") == " (did you mean book.txt?)"
    assert hub.near("bok.txt", folders=True) == hub.near("other") == ""
    assert hub.near("wikitxt2", ["wikitext2"]) == " (did you mean wikitext2?)"


@pytest.mark.parametrize(
    ("load", "name", "message"),
    [
        (
            sf.SEDD.from_pretrained,
            "runs/dmo",
            r"no directory 'runs/dmo' \(did you mean runs/demo\?\), and the Hub is not asked",
        ),
        (networks.load, "runs/dmo", r"did you mean runs/demo\?"),
        (load_tokenizer, "runs/dmo", r"no file or directory 'runs/dmo' \(did you mean runs/demo"),
        (load_tokenizer, "tokenizr.json", "no file or directory"),
        (Judge.from_pretrained, "./judge", "there is no file or directory './judge'"),
        (Judge.from_pretrained, "", "'' could not be loaded .got an empty name"),
        (load_tokenizer, "", "tokenizer: got an empty name; give"),
        (sf.SEDD.from_pretrained, " runs/demo", r"no directory ' runs/demo' \(did you mean runs/d"),
        (
            sf.SEDD.from_pretrained,
            "runs",
            "runs and is none itself; name one: runs/demo, runs/demo-a",
        ),
        (read_documents, "docstring", r"no file 'docstring' \(did you mean docstrings\?\)"),
        (read_documents, "bok.txt", r"no file 'bok.txt' \(did you mean book.txt\?\)"),
        (read_documents, "wikitxt2", r"no file 'wikitxt2' \(did you mean wikitext2 or wikitext103"),
    ],
)
def test_a_mistyped_path_asks_nobody(load, name, message, offline):
    with pytest.raises((ValueError, OSError), match=message):
        load(name)
    assert offline == []


@pytest.mark.parametrize(
    ("load", "name", "message"),
    [
        (sf.SEDD.from_pretrained, "owner/x", f"'owner/x' here, .*{CAUSE}, and the cache has no"),
        (networks.load, "demo", r"'demo' here \(did you mean runs/demo or runs/demo-ar\?\)"),
        (load_tokenizer, "gtp2", rf"'gtp2' \(did you mean gpt2\?\).*{CAUSE}"),
        (load_tokenizer, "transformers:owner/x", CAUSE),
        (Judge.from_pretrained, "gpt2-lrge", rf"'gpt2-lrge' \(did you mean gpt2-large .*{CAUSE}"),
        (lambda name: HubDataset(name).load(), "wikitxt2", f"did you mean wikitext2 .*{CAUSE}"),
        (lambda name: HubDataset(name).load(), "pydocs", rf"did you mean pydoc\?.*{CAUSE}"),
    ],
)
def test_without_the_hub_a_name_is_asked_for_once(load, name, message, offline, capfd, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", pytest.fail)  # between retries
    with pytest.raises((ValueError, OSError), match=message) as found:
        load(name)
    assert offline == [constants.ENDPOINT]
    assert "\n" not in str(found.value)
    assert "Retry" not in capfd.readouterr().err
    assert constants.HF_HUB_OFFLINE is False


def test_a_setting_without_the_hub_is_named(offline, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE is set, and the cache has no"):
        sf.SEDD.from_pretrained("owner/x")
    assert offline == []


def test_two_threads_leave_the_setting_of_the_user(offline):
    """The second enters while the first is inside, and leaves after it."""
    first, second = ExitStack(), ExitStack()
    with ThreadPoolExecutor(1) as a, ThreadPoolExecutor(1) as b:
        a.submit(first.enter_context, hub.access("owner/a")).result()
        assert CAUSE in b.submit(hub.unreachable).result()  # not "HF_HUB_OFFLINE is set"
        b.submit(second.enter_context, hub.access("owner/b")).result()
        a.submit(first.close).result()
        assert constants.HF_HUB_OFFLINE is True  # the second is still inside
        b.submit(second.close).result()
    assert constants.HF_HUB_OFFLINE is False
    assert hub.unreachable().endswith(CAUSE)
    assert offline == [constants.ENDPOINT] * 2  # by the first thread, and now


def test_a_library_imported_meanwhile_has_the_setting_of_the_user(offline, monkeypatch):
    with hub.access("owner/a"):
        late = SimpleNamespace(HF_HUB_OFFLINE=constants.HF_HUB_OFFLINE)
        monkeypatch.setitem(sys.modules, "datasets.config", late)
    assert late.HF_HUB_OFFLINE is False


def test_a_hub_that_fails_is_out_of_reach(monkeypatch):
    answer = SimpleNamespace(head=lambda address, timeout: SimpleNamespace(status_code=503))
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: answer)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert hub.unreachable("https://hub") == "https://hub answers with error 503"


@pytest.mark.parametrize("setting", [False, True])
def test_what_the_cache_has_needs_no_hub(setting, offline, tmp_path, monkeypatch):
    import tokenizers

    cache = tmp_path / "cache"
    folder = cache / "models--owner--x" / "snapshots" / ("0" * 40)
    model = sf.SEDD(CONFIG)
    model.save_pretrained(folder)
    vocabulary = tokenizers.models.WordLevel({"a": 0, "?": 1}, unk_token="?")
    HubTokenizer(tokenizers.Tokenizer(vocabulary)).save(folder)
    (cache / "models--owner--x" / "refs").mkdir()
    (cache / "models--owner--x" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", setting)
    (tmp_path / "owner").mkdir()  # is not taken for the place of a model
    loaded = sf.SEDD.from_pretrained("owner/x", cache_dir=cache)
    assert loaded.config == model.config
    download = huggingface_hub.hf_hub_download
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *args: download(*args, cache_dir=cache)
    )
    assert load_tokenizer("owner/x").vocab_size == 2


def test_push_without_the_hub_uploads_nothing(offline, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", pytest.fail)
    remedy = "nothing was uploaded.*save_pretrained.*hf upload me/sedd DIRECTORY$"
    with pytest.raises(ConnectionError, match=f"^push_to_hub: .*{CAUSE}; {remedy}"):
        sf.SEDD(CONFIG).push_to_hub("me/sedd")


def test_a_local_directory_asks_nobody(offline, tmp_path):
    ByteTokenizer().save(tmp_path / "tokenizer")
    sf.SEDD(CONFIG).save_pretrained("runs/demo")
    assert load_tokenizer("tokenizer").vocab_size == 257
    shutil.copytree("runs/demo", "owner/x")
    sf.SEDD.from_pretrained("owner/x")
    assert offline == []
