"""A saved state that is not whole is refused in one line, and nothing of it is used."""

import copy
import math
import shutil

import numpy as np
import pytest
import torch

from helpers.tiny_run import settings, write_text
from sedd_fast.cli import main
from sedd_fast.training import saved_state
from sedd_fast.training.api import is_finished, make_accelerator, resume, train
from sedd_fast.training.config import load_config
from sedd_fast.training.loop import Trainer

MOMENTS = ("exp_avg", "exp_avg_sq")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two steps."""
    folder = tmp_path_factory.mktemp("run")
    text = write_text(folder / "words.txt")
    more = ["training.n_iters=2", "training.log_freq=3", "training.snapshot_freq=0"]
    return train(settings(text, folder / "run", *more))


@pytest.fixture(scope="module")
def trainer(run):
    config = load_config(files=[run.run_dir / "config.yaml"])
    trainer = Trainer(config, make_accelerator(config))
    trainer.whole = copy.deepcopy(trainer._state())
    return trainer


@pytest.fixture
def saved(run):
    return torch.load(run.checkpoint / "state.pt", weights_only=True)


def restore(trainer, state, run, changed="model"):
    """The outcome of a resume with this state: an error's text, or None for an exact resume.

    `changed` is the entry of the state that is not as it was saved.
    """
    before = trainer.whole
    try:
        if changed == "config":
            trainer._check_settings(state, run.checkpoint)
        if changed in ("model", "text"):
            trainer._check_saved(state, run.checkpoint)
        trainer._restore(state, run.checkpoint)
    except ValueError as error:
        assert same(trainer._state(), before)
        return str(error)
    after = trainer._state()
    if not same(after, before):  # one number for another: it must be used as it is
        after["optimizer"]["param_groups"] = state["optimizer"]["param_groups"]  # other rate
        assert same(after, state)
    return None


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)  # NaN


WRONG = [
    None, True, -1, 0.5, math.nan, 10**400, "text", [], {}, torch.tensor(math.inf),
    torch.zeros(3, 1, 2), torch.zeros(2, 2).to_sparse(), torch.zeros(2, device="meta"),
]  # fmt: skip


def places(value, path=()):
    """The paths of all entries, of equal ones (parameters) the first."""
    if isinstance(value, dict):
        names = [key for key in value if key not in range(1, 10**6)]
    else:
        names = list(range(min(len(value), 2))) if isinstance(value, list) else []
    if path == ("model",):
        names = names[:1]
    if path == ("optimizer", "param_groups", 0):
        names = ["params"]  # the others are not used: see below
    for name in names:
        yield (*path, name)
        if name != "config":
            yield from places(value[name], (*path, name))


def replaced(state, path, value):
    """A copy of the state with another value there; tensors are shared."""
    if not path:
        return value
    changed = copy.copy(state)
    changed[path[0]] = replaced(state[path[0]], path[1:], value)
    return changed


def test_any_entry_of_another_kind_is_refused_or_harmless(trainer, run, saved):
    assert restore(trainer, saved, run) is None
    every, refused = list(places(saved)), set()
    assert len(every) > 30
    for path in every:
        for value in WRONG[:: 4 if path == ("config",) else 1]:
            error = restore(trainer, replaced(saved, path, value), run, path[0])
            if error is not None:
                refused.add(path)
                remedies = f"remove {run.checkpoint}", "text differs", "the run was trained with"
                assert any(remedy in error for remedy in remedies), path
                assert "\n" not in error
            elif not same(trainer._state(), trainer.whole):
                trainer._restore(saved, run.checkpoint)
    assert refused == set(every)


def test_missing_entries_are_refused(trainer, run, saved):
    paths = [p for p in places(saved) if p[0] not in ("config", "optimizer") or len(p) < 3]
    paths += [("optimizer", "state", 0, "step"), ("optimizer", "state", 0, "exp_avg_sq")]
    for path in paths:
        if isinstance(path[-1], int):
            continue
        inner = saved
        for name in path[:-1]:
            inner = inner[name]
        without = {key: value for key, value in inner.items() if key != path[-1]}
        error = restore(trainer, replaced(saved, path[:-1], without), run, path[0])
        assert error is not None, path


def test_tensors_of_the_optimiser_must_fit_their_parameters(trainer, run, saved):
    first = saved["optimizer"]["state"][0]
    whole = first["exp_avg"]

    def outcome(name, value, number=0):
        return restore(trainer, replaced(saved, ("optimizer", "state", number, name), value), run)

    for name in MOMENTS:
        for wrong in (whole[:-1], whole.flatten()[:1], whole.half(), whole.int(), whole[None]):
            assert "optimizer.state.0" in outcome(name, wrong)
    assert "negative" in outcome("exp_avg_sq", -1 - whole.abs())
    for steps in (0.0, 1.5, 3.0, -1.0):
        assert "state.0.step" in outcome("step", torch.tensor(steps))
    assert "state.0.step" in outcome("step", torch.ones(1))
    # In another layout, or in memory that others share, the numbers are used and not the memory.
    shared = torch.cat([whole.T.contiguous().flatten(), torch.zeros(1)])[:-1]
    assert outcome("exp_avg", shared.view(whole.T.shape).T) is None
    names = trainer.learner.optimizers["optimizer"].state_dict()["state"]
    for number, state in names.items():
        p = list(trainer.learner.plain.parameters())[number]
        assert all(state[name].stride() == p.stride() for name in MOMENTS)
    one = {**saved["optimizer"]["state"][0], "exp_avg": torch.zeros(1).expand(whole.shape)}
    changed = replaced(saved, ("optimizer", "state", 0), one)
    like = list(trainer.learner.plain.parameters())
    checked = saved_state.moments(changed, "optimizer", like, 2)
    assert checked[0]["exp_avg"].is_contiguous()
    assert checked[0]["exp_avg"].untyped_storage().nbytes() == whole.nbytes
    for states in ({}, {0: first}, {**saved["optimizer"]["state"], 999: first}):
        error = restore(trainer, replaced(saved, ("optimizer", "state"), states), run)
        assert "optimizer.state: expected the states of" in error


def test_constants_of_the_optimiser_are_those_of_the_settings(trainer, run, saved):
    group = {**saved["optimizer"]["param_groups"][0], "lr": math.nan, "betas": "x", "eps": -1}
    assert restore(trainer, replaced(saved, ("optimizer", "param_groups", 0), group), run) is None
    for params in ([], [0], list(range(999)), "x", None):
        error = restore(
            trainer, replaced(saved, ("optimizer", "param_groups", 0, "params"), params), run
        )
        assert "optimizer.param_groups: expected one group of" in error
    used = trainer.learner.optimizers["optimizer"].param_groups[0]
    assert (used["betas"], used["eps"]) == ((0.9, 0.999), 1e-8)


def test_names_of_compiled_and_distributed_networks_are_understood(trainer, run, saved):
    for rename in (
        "_orig_mod.{}".format,
        "module.{}".format,
        "_orig_mod.module.{}".format,
        lambda name: name.replace("blocks.0.", "blocks.0._orig_mod."),
    ):
        renamed = {rename(name): value for name, value in saved["model"].items()}
        assert restore(trainer, {**saved, "model": renamed}, run) is None


@pytest.mark.parametrize("key", ["hidden_size", "n_blocks"])
def test_a_network_of_another_size_is_refused_before_it_is_built(key, run, tmp_path, monkeypatch):
    folder, built = tmp_path / "run", []
    shutil.copytree(run.run_dir, folder)
    file = folder / "checkpoints/step-00000002/state.pt"
    state = torch.load(file, weights_only=True)
    state["config"]["model"][key] = 2**17
    torch.save(state, file)
    monkeypatch.setattr("sedd_fast.training.loop.Learner", lambda *args: built.append(args))
    with pytest.raises(ValueError, match=r"state.pt does not hold .*model"):
        resume(folder, [f"model.{key}={2**17}"])
    assert not built


def test_loss_scaler():
    own = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=5).state_dict()
    changed = {**own, "scale": 2.0, "_growth_tracker": 3, "growth_interval": -1}
    kept = saved_state.scaler({"scaler": changed}, own)
    assert kept == {**own, "scale": 2.0, "_growth_tracker": 3}
    assert saved_state.scaler({"scaler": None}, own) is None
    for key, value in (
        ("scale", math.nan),
        ("scale", 0.0),
        ("scale", "x"),
        ("_growth_tracker", -1),
    ):
        with pytest.raises(ValueError, match=f"scaler.{key}"):
            saved_state.scaler({"scaler": {**own, key: value}}, own)


def test_random_states(run):
    states = torch.load(run.checkpoint / "rng-0.pt", weights_only=True)
    assert saved_state.random_states(states) is states
    name, keys, place, *rest = states["numpy"]
    wrong = (
        [
            {"numpy": [name, keys, place, *rest[:-1], math.nan]},
            {"numpy": [name, keys, 10**6, *rest]},  # numpy would read there
            {"numpy": [name, keys, -1, *rest]},
            {"numpy": [name, [0] * 624, place, *rest]},
            {"numpy": [name, keys[:-1], place, *rest]},
            {"numpy": ["PCG64", keys, place, *rest]},
            {"python": (3, (0,) * 5, None)},
            {"python": (*states["python"][:2], "x")},
            {"torch": torch.zeros(5, dtype=torch.uint8)},
            {"torch": states["torch"].float()},
            {"torch": torch.zeros_like(states["torch"])},
        ]
        + [{key: value} for key in states for value in (None, 1, "x", [], {}, torch.zeros(2))]
    )
    for change in wrong:
        with pytest.raises(ValueError, match="remove"), saved_state.blamed_on(run.checkpoint / "x"):
            saved_state.random_states({**states, **change})
    assert np.random.get_state()[2] <= 624  # noqa: NPY002


def test_position_in_a_stream():
    good = {"data": {"epoch": 0, "documents": 3, "pending": [0, 4]}}
    assert saved_state.position(good, 5, good["data"]) == good["data"]
    for key, value in (("epoch", -1), ("documents", 0.5), ("pending", [5]), ("pending", [-1])):
        with pytest.raises(ValueError, match=f"data.{key}"):
            saved_state.position({"data": {**good["data"], key: value}}, 5, good["data"])
    for other in ({"position": 3}, {**good["data"], "more": 1}):
        with pytest.raises(ValueError, match="data: expected epoch, documents, pending, got"):
            saved_state.position({"data": other}, 5, good["data"])


def test_an_estimate_with_another_entry_is_refused():
    figures = {"nats_per_token": 1.0, "stderr": 0.1, "bits_per_token": 1.4, "bits_per_char": None}
    good = {"held_out": {"step": 3, **figures}}
    assert saved_state.held_out(good) == good["held_out"]
    assert saved_state.held_out({"held_out": {**good["held_out"], "stderr": None}}) is not None
    with pytest.raises(ValueError, match=r"held_out: unknown entries \['more'\]"):
        saved_state.held_out({"held_out": {**good["held_out"], "more": 1.0}})


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("state.pt", lambda state: {**state, "step": 7}),
        ("state.pt", lambda state: {**state, "elapsed": math.nan}),
        ("state.pt", lambda state: []),
        ("rng-0.pt", lambda state: {**state, "python": None}),
    ],
)
def test_the_command_line_names_the_file_and_the_remedy(file, change, run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run.run_dir, folder)
    path = folder / "checkpoints/step-00000002" / file
    torch.save(change(torch.load(path, weights_only=True)), path)
    assert main(["train", "--resume", str(folder)]) == 2
    [line] = [x for x in capsys.readouterr().err.splitlines() if x.startswith("sedd-fast: ")]
    assert str(path) in line
    assert f"remove {path.parent}" in line
    if file == "state.pt":
        with pytest.raises(ValueError, match="remove"):
            is_finished(folder)
