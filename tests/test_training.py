"""Trainings that are cut off, resumed, refused; pieces longer than what was learnt."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from musemo.drawing import build_generator, generate
from musemo.flow_training import fit_flow
from musemo.gan_training import fit_gan
from musemo.movers import Keeper
from musemo.presets import make_config
from musemo.residual_training import fit_residual
from tests.test_flow import SMALL
from tests.test_gan import artifacts, write_run

FITS = {"gan": fit_gan, "residual": fit_residual, "flow": fit_flow}


def small(**values):
    return make_config("smoke", SMALL | {"gan.epochs": 5, "gan.batch_size": 4} | values)


class Killed(BaseException):
    pass


@pytest.fixture
def killed_after(monkeypatch):
    "Have each state kept, and the training end without a word after some steps."
    keep = Keeper.keep

    def arm(steps):
        def kept(self, rows, *, now=False):
            keep(self, rows, now=True)
            if len(rows) == steps:
                raise Killed

        monkeypatch.setattr(Keeper, "keep", kept)

    yield arm
    monkeypatch.undo()


@pytest.mark.parametrize("name", FITS)
def test_a_training_that_was_cut_off_ends_as_if_it_had_not_been(name, tmp_path, killed_after):
    whole, cut = (write_run(tmp_path / part, 0.0) for part in ("whole", "cut"))
    FITS[name](whole, small())
    killed_after(3)
    with pytest.raises(Killed):
        FITS[name](cut, small())
    assert list(artifacts(cut, name)) == [f"{name}_checkpoint.safetensors"]
    killed_after(-1)
    FITS[name](cut, small())
    assert artifacts(cut, name) == artifacts(whole, name)
    assert json.loads((cut.folder / f"{name}_times.json").read_text())["steps"] == 5


@pytest.mark.parametrize("change", ["settings", "moves", "songs"])
def test_a_state_of_another_training_is_not_used(change, tmp_path, killed_after, capsys):
    run, config = write_run(tmp_path / "cut", 0.0), small()
    killed_after(2)
    with pytest.raises(Killed):
        fit_flow(run, config)
    if change == "settings":
        config = small(**{"flow.learning_rate": 2e-3})
    elif change == "moves":
        config = small(**{"synthesis.jitter": 0.2})
    else:
        songs = run.load("songs.csv")
        songs.loc[0, "valence"] = 0.123
        run.save("songs.csv", songs)
    killed_after(-1)
    fit_flow(run, config)
    assert "of other songs or settings: training starts anew" in capsys.readouterr().out
    assert run.load("flow_times.json")["steps"] == 5


def test_times_are_written(tmp_path):
    run = write_run(tmp_path, 0.0)
    fit_flow(run, small())
    times = run.load("flow_times.json")
    assert times["step"] > 0 and times["drawing"] > 0 and times["units"]["step"] == "s"


@pytest.mark.parametrize(("every", "files"), [(0.0, 0), (1e-9, 1)])
def test_states_are_kept_as_often_as_wanted(every, files, tmp_path, monkeypatch):
    run = write_run(tmp_path, 0.0)
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
    fit_flow(run, small(checkpoint=every))
    assert len(list(run.folder.glob("flow_checkpoint.safetensors"))) == files


@pytest.mark.parametrize("name", FITS)
def test_longer_pieces_have_no_seam(name):
    "Steps from frame to frame are no larger where windows meet than elsewhere."
    torch.manual_seed(0)
    generator = build_generator(small(), name)
    for weight in generator.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    piece = generate(generator, np.zeros((4, 2)), seeds=[1, 2, 3, 4], frames=256)
    assert piece.shape == (4, 128, 256)
    steps = np.abs(np.diff(piece.astype(np.float32), axis=2)).mean((0, 1))
    meets = np.arange(32, 256, 32) - 1  # windows of 64 start here
    others = np.setdiff1d(np.arange(255), meets)
    assert steps[meets].mean() < 1.25 * steps[others].mean()
