"""Checkpoints: both published forms, run directories, round trips, strictness, the Hub."""

import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from sedd_fast.files import hub
from sedd_fast.models.checkpoint import config_from_original, config_to_original
from sedd_fast.models.config import SEDDConfig
from sedd_fast.models.sedd import SEDD

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = {"hidden_size": 16, "cond_dim": 8, "length": 12, "n_blocks": 1, "n_heads": 2}
CONFIGS = [
    SEDDConfig(11, **TINY),
    SEDDConfig(11, noise_eps=1e-4, mlp_ratio=3, dropout=0.0, **TINY),
    SEDDConfig(11, "uniform", "geometric", sigma_max=9.0, scale_by_sigma=False, **TINY),
]


def same_weights(a: SEDD, b: SEDD) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def rewrite_weights(directory: Path, change) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors")


def test_settings_of_a_published_checkpoint():
    config = SEDD.from_pretrained(GOLDEN / "absorb-hf").config
    assert config == SEDDConfig(37, hidden_size=32, cond_dim=16, length=24, n_blocks=2, n_heads=4)


def test_settings_may_be_flat(published):
    nested = json.loads((published / "config.json").read_text())
    expected = SEDD.from_pretrained(published)
    (published / "config.json").write_text(json.dumps(nested["config"]))
    flat = SEDD.from_pretrained(published)
    assert flat.config == expected.config
    assert same_weights(flat, expected)


def test_weights_may_be_a_pickle_file(published):
    expected = SEDD.from_pretrained(published)
    weights = load_file(published / "model.safetensors")
    (published / "model.safetensors").unlink()
    torch.save(weights, published / "pytorch_model.bin")
    assert same_weights(SEDD.from_pretrained(published), expected)
    torch.save(weights, published / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert same_weights(SEDD.from_pretrained(str(published)), expected)


def test_run_directory_gives_the_ema_weights():
    model = SEDD.from_pretrained(GOLDEN / "local-run")
    saved = torch.load(GOLDEN / "local-run/checkpoints-meta/checkpoint.pth", weights_only=True)
    assert all(map(torch.equal, model.parameters(), saved["ema"]["shadow_params"]))
    assert not torch.equal(model.vocab_embed.embedding, saved["model"]["vocab_embed.embedding"])
    assert not model.training


@pytest.mark.parametrize("config", CONFIGS)
def test_round_trip_is_exact(tmp_path, config):
    model = SEDD(config)
    for p in model.parameters():
        torch.nn.init.normal_(p)
    model.save_pretrained(tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / "tokenizer.json").write_text("{}")
    again = SEDD.from_pretrained(tmp_path / "a" / "b")
    assert again.config == config
    assert same_weights(again, model)
    written = {file.name for file in (tmp_path / "a" / "b").iterdir()}
    assert written == {"config.json", "model.safetensors", "model.sha256", "tokenizer.json"}


def test_saving_again_replaces(tmp_path):
    model = SEDD(CONFIGS[0])
    model.save_pretrained(tmp_path)
    torch.nn.init.normal_(model.output_layer.linear.weight)
    model.save_pretrained(tmp_path)
    assert same_weights(SEDD.from_pretrained(tmp_path), model)


def test_written_settings_are_readable_by_the_original():
    settings = config_to_original(CONFIGS[2])
    assert settings["tokens"] == 11
    assert settings["graph"]["type"] == "uniform"
    assert config_to_original(CONFIGS[0])["graph"]["type"] == "absorb"
    assert settings["noise"].items() >= {"type": "geometric", "sigma_max": 9.0}.items()
    assert settings["model"].keys() >= {*TINY, "scale_by_sigma", "dropout", "name", "type"}


@pytest.mark.parametrize("config", CONFIGS)
def test_settings_survive_translation(config):
    assert SEDDConfig(**config_from_original(config_to_original(config))) == config


def test_missing_settings_are_listed():
    with pytest.raises(ValueError, match=r"lack tokens, noise\.type, model\.hidden_size"):
        config_from_original({"graph": {"type": "absorb"}})


def test_unknown_settings_of_the_network_are_warned_about():
    settings = config_to_original(CONFIGS[0])
    settings["model"]["causal"] = True
    with pytest.warns(UserWarning, match=r"model\.causal"):
        config_from_original(settings)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("graph", "type", "roulette", "graph must be one of .*'uniform', got 'roulette'"),
        ("noise", "type", "cosine", "noise must be one of .*'geometric', got 'cosine'"),
        ("model", "type", "unet", r"model\.type must be one of ddit, posterior, ar, got 'unet'"),
    ],
)
def test_settings_of_another_kind_of_network_are_refused(section, key, value, message):
    settings = config_to_original(CONFIGS[0])
    settings[section][key] = value
    with pytest.raises(ValueError, match=message):
        SEDDConfig(**config_from_original(settings))


def test_missing_weights_are_listed(published):
    rewrite_weights(published, lambda w: [w.pop(k) for k in ("rotary_emb.inv_freq",)])
    with pytest.raises(ValueError, match=r'trained with: Missing key.* "rotary_emb\.inv_freq"'):
        SEDD.from_pretrained(published)


def test_unknown_and_misshapen_weights_are_listed(published):
    def change(weights):
        weights["module.extra"] = torch.zeros(1)
        weights["sigma_map.mlp.0.bias"] = torch.zeros(5)

    rewrite_weights(published, change)
    with pytest.raises(ValueError, match=r'Unexpected .* "module\.extra".* size mismatch .*\[5\]'):
        SEDD.from_pretrained(published)


def test_run_whose_warm_up_left_a_numpy_learning_rate(run):
    path = run / "checkpoints-meta/checkpoint.pth"
    state = torch.load(path, weights_only=True)
    state["optimizer"]["param_groups"][0]["lr"] = np.float64(3e-4)  # as the original writes it
    torch.save(state, path)
    loaded, golden = SEDD.from_pretrained(run), SEDD.from_pretrained(GOLDEN / "local-run")
    for ours, theirs in zip(loaded.parameters(), golden.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "checkpoints-meta/checkpoint.pth"])
def test_pickle_that_would_run_code_is_refused(published, run, tmp_path, file):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    directory = published if file == "pytorch_model.bin" else run
    (directory / "model.safetensors").unlink(missing_ok=True)
    torch.save({"model": {}, "attack": Attack()}, directory / file)
    with pytest.raises(ValueError, match=r"refused: .* ask its author for a safetensors file"):
        SEDD.from_pretrained(directory)
    (directory / file).write_bytes(pickle.dumps(Attack(), protocol=2))
    with pytest.raises(ValueError, match="refused"):
        SEDD.from_pretrained(directory)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("size", [0, 5, 1000])
def test_cut_files_are_damaged(published, run, size):
    weights, state = published / "model.safetensors", run / "checkpoints-meta/checkpoint.pth"
    for file in (weights, state):
        file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        SEDD.from_pretrained(published)
    with pytest.raises(ValueError, match=r"checkpoint\.pth (is|was refused: it is) damaged"):
        SEDD.from_pretrained(run)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_settings_that_are_not_a_json_object(published, text):
    (published / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json (is not|must hold a) JSON"):
        SEDD.from_pretrained(published)


def test_ema_of_another_network_is_refused(run):
    file = run / "checkpoints-meta/checkpoint.pth"
    state = torch.load(file, weights_only=True)
    shadow = state["ema"]["shadow_params"]
    state["ema"]["shadow_params"] = shadow[:-1]
    torch.save(state, file)
    with pytest.raises(ValueError, match="has 29 tensors, but there are 30"):
        SEDD.from_pretrained(run)
    state["ema"]["shadow_params"] = [shadow[1], shadow[0], *shadow[2:]]
    torch.save(state, file)
    with pytest.raises(ValueError, match=r"tensor 0 of the EMA .* the order differs"):
        SEDD.from_pretrained(run)


def test_incomplete_directories_name_what_is_missing(published, run, tmp_path):
    (published / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor pytorch_model"):
        SEDD.from_pretrained(published)
    (run / ".hydra/config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"it lacks \.hydra/config\.yaml$"):
        SEDD.from_pretrained(run)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty holds no config\.json"):
        SEDD.from_pretrained(tmp_path / "empty")
    with pytest.raises(ValueError, match="is a file; give the directory"):
        SEDD.from_pretrained(GOLDEN / "model.safetensors")
    with pytest.raises(ValueError, match="is a file; give a directory"):
        SEDD(CONFIGS[0]).save_pretrained(GOLDEN / "model.safetensors")


@pytest.mark.parametrize(
    "name", ["./nothing", "/no/such/place", "~/nothing-here", "a/b/c", "runs/x"]
)
def test_a_missing_local_directory_does_not_contact_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    with pytest.raises(FileNotFoundError, match=r"no directory .*; give one that holds"):
        SEDD.from_pretrained(name)


def hub_of(directory: Path, asked: list[tuple[str, str, dict]], missing=EntryNotFoundError):
    def download(repo_id, filename, **options):
        asked.append((repo_id, filename, options))
        if not (directory / filename).is_file():
            raise missing(filename)
        return str(directory / filename)

    return download


def test_hub_repository_is_downloaded(published, monkeypatch):
    asked = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub_of(published, asked))
    model = SEDD.from_pretrained("someone/sedd", revision="v1")
    assert same_weights(model, SEDD.from_pretrained(published))
    files = ("config.json", "model.safetensors", "model.sha256")
    assert asked == [("someone/sedd", file, {"revision": "v1"}) for file in files]


def test_a_damaged_file_of_a_hub_repository_is_refused(tmp_path, monkeypatch):
    SEDD(CONFIGS[0]).save_pretrained(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub_of(tmp_path, []))
    SEDD.from_pretrained("someone/sedd")
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        SEDD.from_pretrained("someone/sedd")


@pytest.mark.parametrize("missing", [EntryNotFoundError, LocalEntryNotFoundError])
def test_hub_repository_with_a_pickle_file(missing, published, monkeypatch):
    """Offline, a file that the cache lacks is a LocalEntryNotFoundError."""
    expected = SEDD.from_pretrained(published)
    torch.save(load_file(published / "model.safetensors"), published / "pytorch_model.bin")
    (published / "model.safetensors").unlink()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub_of(published, [], missing))
    assert same_weights(SEDD.from_pretrained("someone/sedd"), expected)


def test_an_unreachable_hub_gives_an_error_of_one_line(monkeypatch):
    def download(*args, **options):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "unreachable", lambda endpoint: None)
    with pytest.raises(FileNotFoundError, match=r"'someone/sedd' here, .* no connection"):
        SEDD.from_pretrained("someone/sedd")


def test_push_uploads_what_is_saved(monkeypatch):
    uploaded = {}

    class Api:
        def __init__(self, token):
            uploaded["token"] = token

        def create_repo(self, repo_id, private, exist_ok):
            uploaded["repo"] = (repo_id, private, exist_ok)

        def upload_folder(self, repo_id, folder_path, **options):
            uploaded["model"] = SEDD.from_pretrained(folder_path)
            return SimpleNamespace(commit_url="https://hub/commit/1", pr_url=None)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(hub, "unreachable", lambda: None)
    model = SEDD(CONFIGS[0])
    assert model.push_to_hub("me/sedd", private=True, token="t") == "https://hub/commit/1"
    assert uploaded["repo"] == ("me/sedd", True, True)
    assert same_weights(uploaded["model"], model)
