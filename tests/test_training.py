"""Trainings that are cut off, resumed, refused; pieces longer than what was learnt."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from musemo.core import MusemoError, Run
from musemo.drawing import build_generator, generate
from musemo.fitted import FITTED, draw_samples
from musemo.flow_training import FlowLearner, fit_flow
from musemo.gan import look_closely
from musemo.gan_training import GanLearner, fit_gan
from musemo.generator_training import Learner, Songs, train
from musemo.movers import Keeper
from musemo.presets import make_config
from musemo.residual_training import ResidualLearner, fit_residual
from musemo.sections import SECTIONS
from tests.test_flow import SMALL
from tests.test_gan import artifacts, music, write_run

KINDS = {"gan": GanLearner, "residual": ResidualLearner, "flow": FlowLearner}
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


@pytest.mark.parametrize("name", ["gan", "residual"])
def test_a_window_of_one_column_is_learnt_from(name, tmp_path):
    "Where all columns are alike their spread has no slope, and the penalties are slopes of slopes."
    run = write_run(tmp_path, 0.0)
    _, _, windows = FITS[name](run, small(**{"gan.frames": 16}))
    assert windows.shape[-1] == 16 and np.isfinite(windows).all()


def section_5(run, config):
    for stage in SECTIONS[4].stages(config):
        stage.make(run, config)


@pytest.fixture
def count_steps(monkeypatch):
    "Count the training steps of each generator."
    steps, learn = dict.fromkeys(KINDS, 0), {}
    for name, kind in KINDS.items():
        learn[name] = kind.learn

        def counted(self, *arguments, name=name):
            steps[name] += type(self) is KINDS[name]
            return learn[name](self, *arguments)

        monkeypatch.setattr(kind, "learn", counted)
    return steps


def test_a_cut_between_two_generators_trains_none_again(tmp_path, killed_after, count_steps):
    whole, cut = (write_run(tmp_path / part, 0.0) for part in ("whole", "cut"))
    config = small(generators=["gan", "flow"], **{"flow.steps": 7})
    section_5(whole, config)
    assert count_steps == {"gan": 5, "residual": 0, "flow": 7}
    killed_after(6)  # the GAN has five steps: the flow is cut off
    with pytest.raises(Killed):
        section_5(cut, config)
    killed_after(-1)
    assert count_steps == {"gan": 10, "residual": 0, "flow": 13}
    section_5(cut, config)
    assert count_steps == {"gan": 10, "residual": 0, "flow": 14}
    for name in ("gan", "flow"):
        assert artifacts(cut, name) == artifacts(whole, name)


def test_one_more_generator_leaves_the_others_alone(tmp_path, count_steps):
    run = write_run(tmp_path, 0.0)
    history, asked, windows = fit_flow(run, small(generators=["flow"]))
    before = artifacts(run, "flow")
    section_5(run, small(generators=["gan", "flow"]))
    assert count_steps == {"gan": 5, "residual": 0, "flow": 5}
    assert artifacts(run, "flow") == before
    again = fit_flow(run, small(generators=["gan", "flow"], **{"gan.epochs": 9}))
    assert (
        again[0] == history and np.allclose(again[1], asked) and np.array_equal(again[2], windows)
    )
    run.path("flow_samples.csv").unlink()  # not all is there any more
    fit_flow(run, small())
    assert count_steps["flow"] == 10 and artifacts(run, "flow") == before


@pytest.mark.parametrize(
    "values",
    [
        {"synthesis.jitter": 0.2},
        {"gan.frames": 48},
        {"flow.learning_rate": 2e-3},
        {"audio.f_max": 7000.0},
        {"seed": 4},
    ],
    ids=str,
)
def test_what_changes_the_weights_trains_them_anew(values, tmp_path, count_steps):
    run = write_run(tmp_path, 0.0)
    fit_flow(run, small())
    before = artifacts(run, "flow")
    fit_flow(run, small(**values))
    assert count_steps["flow"] == 10
    assert artifacts(run, "flow")["flow_history.json"] != before["flow_history.json"]


@pytest.mark.parametrize(
    "values",
    [
        {"gan.samples": 9},
        {"flow.draw_steps": 2},
        {"flow.guidance": 1.5},
        {"flow.guidance_until": 0.3},
        {"flow.crowding": 2.0},
    ],
    ids=str,
)
def test_what_changes_the_samples_alone_draws_them_anew(values, tmp_path, count_steps):
    run, fresh = (write_run(tmp_path / name, 0.0) for name in ("run", "fresh"))
    fit_flow(run, small())
    history, asked, windows = fit_flow(run, small(**values))
    assert count_steps["flow"] == 5 and run.load("flow_history.json") == history
    fit_flow(fresh, small(**values))
    same, other = artifacts(run, "flow"), artifacts(fresh, "flow")
    for name in ("flow.safetensors", "flow_samples.csv", "flow_samples.npy", "flow_history.json"):
        assert same[name] == other[name], name
    assert len(asked) == len(windows) == small(**values).gan.samples
    assert fit_flow(run, small(**values))[0] == history and count_steps["flow"] == 10


def test_a_cut_while_saving_is_not_taken_for_the_whole(tmp_path, monkeypatch, count_steps):
    "Files of two trainings never pass for one: the history goes first and comes last."
    run, save = write_run(tmp_path, 0.0), type(write_run(tmp_path, 0.0)).save
    fit_flow(run, small())

    def cut(self, name, value):
        if name == "flow_samples.csv":
            raise Killed
        return save(self, name, value)

    monkeypatch.setattr(type(run), "save", cut)
    with pytest.raises(Killed):
        fit_flow(run, small(seed=1))
    monkeypatch.setattr(type(run), "save", save)
    fit_flow(run, small())  # the first one's files are no longer whole
    assert count_steps["flow"] == 15 and run.has(*("flow" + end for end in FITTED))


def test_a_cut_while_drawing_anew_is_not_taken_for_the_whole(tmp_path, monkeypatch, count_steps):
    run, save = write_run(tmp_path, 0.0), Run.save
    fit_flow(run, small())
    before = artifacts(run, "flow")

    def cut(self, name, value):
        if name == "flow_samples.csv":
            raise Killed
        return save(self, name, value)

    monkeypatch.setattr(Run, "save", cut)
    with pytest.raises(Killed):
        fit_flow(run, small(**{"flow.guidance": 1.5}))
    monkeypatch.setattr(Run, "save", save)
    assert artifacts(run, "flow")["flow_samples.npy"] != before["flow_samples.npy"]
    fit_flow(run, small())  # draws once more, and trains nothing
    assert artifacts(run, "flow") == before and count_steps["flow"] == 5


def test_time_of_all_sessions_counts(tmp_path, killed_after, monkeypatch):
    clock = iter(range(0, 10_000, 2))
    monkeypatch.setattr("musemo.movers.time.monotonic", lambda: next(clock))
    run, config = write_run(tmp_path, 0.0), small()
    killed_after(config.flow.steps)
    with pytest.raises(Killed):
        fit_flow(run, config)
    killed_after(-1)
    fit_flow(run, config)  # not a step is left
    assert run.load("flow_times.json")["step"] > 2


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


@pytest.mark.parametrize("damaged", ["end", "weight", "rows"])
def test_a_damaged_state_is_left_behind(damaged, tmp_path, killed_after, capsys):
    run = write_run(tmp_path, 0.0)
    killed_after(2)
    with pytest.raises(Killed):
        fit_flow(run, small())
    state = run.path("flow_checkpoint.safetensors")
    content = bytearray(state.read_bytes())
    place = {"end": -50, "weight": len(content) // 2, "rows": content.index(b'"loss": ') + 8}
    content[place[damaged]] ^= 1
    state.write_bytes(content[:-50] if damaged == "end" else content)
    killed_after(-1)
    fit_flow(run, small())
    assert "flow_checkpoint.safetensors is damaged: training starts anew" in capsys.readouterr().out
    assert run.load("flow_times.json")["steps"] == 5


def test_half_a_batch_is_a_training_of_its_own(tmp_path, killed_after, count_steps, monkeypatch):
    "Cut off and resumed it makes all its steps, though memory runs out with the whole batch again."
    run, learn = write_run(tmp_path, 0.0), GanLearner.learn

    def need_memory(self, *arguments):
        if self.batch_size == 4:
            raise torch.OutOfMemoryError
        return learn(self, *arguments)

    monkeypatch.setattr(GanLearner, "learn", need_memory)
    killed_after(3)
    with pytest.raises(Killed):
        fit_gan(run, small())
    killed_after(-1)
    history, _, _ = fit_gan(run, small())
    whole = GanLearner(small(**{"gan.batch_size": 2}), Songs(*music(4)), torch.device("cpu"))
    assert history["batch_size"] == 2
    assert run.load("gan_times.json")["steps"] == count_steps["gan"] == whole.steps > 5


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


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", KINDS)
def test_half_precision_moves_every_weight(name, precision):
    "A step whose gradient overflows is left out: with each left out, nothing would be learnt."
    half = {"precision": precision, "gan.frames": 32, "flow.steps": 5}
    config, songs = small(**half), Songs(*music(4))
    torch.manual_seed(0)
    learner = KINDS[name](config, songs, torch.device("cpu"))
    networks = {key: mover.network for key, mover in learner.movers.items()}
    before = {key: [p.detach().clone() for p in x.parameters()] for key, x in networks.items()}
    table = pd.DataFrame(train(learner, songs, name, seed=0))
    assert len(table) == 5 and np.isfinite(table.filter(regex="loss$")).all().all()
    # In float16 some steps are left out until the scale fits, but not most.
    assert np.isfinite(table.filter(regex="norm$")).mean().min() >= 0.6
    for key, network in {**networks, "average": learner.average}.items():
        assert all(x.isfinite().all() for x in network.state_dict().values()), key
    for key, network in networks.items():
        moved = [not torch.equal(*x) for x in zip(before[key], network.parameters(), strict=True)]
        assert np.mean(moved) > 0.85, key  # what only labels reach stays still at first
    _, windows = draw_samples(learner.networks()["generator"], config, songs.labels)
    assert np.isfinite(windows).all() and windows.std() > 0.01


def test_float16_that_cannot_work_stops_with_a_way_out():
    learner = Learner(small(precision="float16"), torch.device("cpu"), steps=1, batch_size=2)
    mover = learner.put("generator", torch.nn.Linear(1, 1), betas=(0.5, 0.9), clip=1.0)
    weight = mover.network.weight
    with pytest.raises(MusemoError, match="loss scale of 1 .*precision=float32, or bfloat16"):
        for _ in range(11):
            mover.follow(weight.sum() * torch.inf, 0.1)
    assert weight.isfinite().all()


@pytest.mark.parametrize("name", FITS)
def test_longer_pieces_have_no_seam(name):
    "Steps from frame to frame are no larger where windows meet than half way between."
    torch.manual_seed(0)
    generator = build_generator(small(), name)
    for weight in generator.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    piece = generate(generator, np.zeros((4, 2)), seeds=[1, 2, 3, 4], frames=256)
    assert piece.shape == (4, 128, 256)
    steps = np.abs(np.diff(piece.astype(np.float32), axis=2)).mean((0, 1))
    meets = np.arange(32, 256, 32) - 1  # windows of 64 start here
    others = meets + 16  # where up-sampling has edges as well: it repeats up to 16 frames
    assert steps[meets].mean() < 1.25 * steps[others].mean()


@pytest.mark.parametrize("kind", [GanLearner, ResidualLearner])
def test_a_generator_starts_from_what_songs_tell(kind):
    "Before the first step, levels and directions are the songs', and ringing has not lifted them."
    songs = Songs(*music())
    torch.manual_seed(0)
    generator = kind(small(), songs, torch.device("cpu")).movers["generator"].network
    line, directions = songs.spectra()
    start = generator.last.weight[:128, 0, 0].detach()
    assert torch.cosine_similarity(start, directions[:, 0], dim=0) > 0.999
    for labels in torch.tensor([[0.0, 0.0], [0.5, -0.5]]):
        with torch.no_grad():
            drawn = generator(torch.randn(64, generator.noise_size(64)), labels.expand(64, 2))
        wanted = line[:, 0] + line[:, 1:] @ labels
        assert (drawn.atanh().mean((0, 1, 3)) - wanted).abs().mean() < 0.1


def test_a_discriminator_is_shown_notes_and_steps():
    "Two pictures of the same means of bands and frames differ where notes come and go."
    cloth, notes = torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
    notes[..., :8, :8], notes[..., 8:, 8:] = 1, 1
    notes -= notes.mean()
    assert torch.equal(notes.mean(3), cloth.mean(3)) and torch.equal(notes.mean(2), cloth.mean(2))
    shown = look_closely(notes, 2.0)
    assert torch.equal(shown[:, 1], 2 * notes[:, 0])
    assert shown[:, 2:].abs().amax((0, 2, 3)).tolist() == [2.0, 2.0]
