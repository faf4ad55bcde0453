"""The flow: its shapes, its training, what it may see, and which generator a run draws with."""

import numpy as np
import pytest
import torch

from musemo.core import MusemoError, Run
from musemo.drawing import load_generator
from musemo.flow import Flow, draw_flow, flow_times
from musemo.flow_training import FlowLearner, fit_flow, flow_rate
from musemo.gan_quality import judge_generators
from musemo.gan_training import fit_gan
from musemo.generator_training import Songs, train
from musemo.pieces import blend_windows, window_starts
from musemo.presets import make_config
from musemo.synthesis import pick_generator, seam_table, synthesize
from tests.test_gan import artifacts, music, write_run

SMALL = {
    "flow.channels": [8, 16, 16],
    "flow.steps": 5,
    "flow.warm_up": 2,
    "flow.draw_steps": 3,
    "gan.samples": 8,
    "gan.channels": 16,
    "gan.narrowest": 8,
    "gan.epochs": 1,
    "synthesis.songs": 2,
}
CPU = torch.device("cpu")


def small(**values):
    return make_config("smoke", SMALL | values)


def trained(config, log_mel=None):
    "Train on made-up songs, loud where arousal is high."
    songs, frames, labels = music()
    songs = Songs(songs if log_mel is None else log_mel, frames, labels)
    torch.manual_seed(0)
    learner = FlowLearner(config, songs, CPU)
    return train(learner, songs, "flow", seed=0), learner.networks()["generator"]


def awake(config):
    "Build a flow whose layers that start at zero do not."
    torch.manual_seed(0)
    net = Flow(config).eval()
    for weight in net.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    return net


@pytest.mark.parametrize("frames", [16, 33, 101])
@pytest.mark.parametrize("bands", [16, 48])
def test_any_width_and_number_of_bands(frames, bands):
    widths = {"gan.frames": frames, "dataset.window_frames": frames}
    net = awake(small(**widths, **{"audio.n_mels": bands}))
    drawn = net(torch.randn(2, net.noise_size(frames)), torch.zeros(2, 2))
    assert drawn.shape == (2, 1, bands, frames) and drawn.abs().max() <= 1
    longer = draw_flow(net, torch.randn(1, 1, bands, 150), torch.zeros(1, 2), guidance=2.0)
    assert longer.shape == (1, 1, bands, 150) and longer.isfinite().all()


@torch.no_grad()
def test_guidance_between_the_guesses():
    config = small()
    net = awake(config)
    start, labels = torch.randn(2, 1, 128, 64), torch.tensor([[0.9, 0.9], [-0.9, 0.1]])

    def walk(asked):
        x, times = start, flow_times(config.flow)
        for t, after in zip(times, times[1:], strict=False):
            guess = net.guess(x, torch.full((2,), t), labels, torch.full((2, 1), asked))
            x = x + (after - t) / (1 - t) * (guess - x)
        return x

    conditional = draw_flow(net, start, labels, guidance=1.0)
    assert torch.equal(conditional, walk(1.0))
    assert not torch.equal(conditional, walk(0.0))
    assert not torch.equal(conditional, draw_flow(net, start, labels, guidance=3.0))
    assert torch.equal(conditional, draw_flow(net, start, labels, guidance=1.0))


@torch.no_grad()
def test_without_an_emotion_labels_say_nothing():
    net, x, t = awake(small()), torch.randn(2, 1, 128, 64), torch.full((2,), 0.4)
    some, others = (
        net.guess(x, t, value * torch.ones(2, 2), torch.zeros(2, 1)) for value in (1, -1)
    )
    assert torch.equal(some, others)


def test_training_lowers_the_loss_and_repeats():
    config = small(**{"flow.steps": 60, "flow.channels": [32, 32, 32]})
    steady = music()[0].mean(axis=(1, 2), keepdims=True).repeat(128, 1).repeat(80, 2)
    rows, net = trained(config, steady)
    losses = [row["loss"] for row in rows]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])
    again = trained(config, steady)[1].state_dict()
    assert all(torch.equal(value, again[name]) for name, value in net.state_dict().items())
    assert net.deviation > 0 and net.line.abs().max() < 1


def test_the_rate_rises_and_falls():
    flow = make_config("demo").flow
    rates = [flow_rate(step, flow) for step in range(flow.steps)]
    assert max(rates) > 0.97 and rates[0] < 0.1 and rates[-1] < 1e-3


def test_a_bad_number_stops_the_flow():
    log_mel, *_ = music()
    log_mel[:, 5] = np.nan
    with pytest.raises(MusemoError, match=r"stopped at step 1: loss = nan; lower flow"):
        trained(small(), log_mel)


def test_the_flow_sees_training_songs_only(tmp_path):
    runs = [write_run(tmp_path / str(i), value) for i, value in enumerate((-1.0, 0.75))]
    for run in runs:
        fit_flow(run, small())
    first, second = (artifacts(run, "flow") for run in runs)
    assert set(first) == {
        "flow.safetensors",
        "flow_history.json",
        "flow_samples.csv",
        "flow_samples.npy",
    }
    assert first == second
    windows = runs[0].load("flow_samples.npy")
    assert windows.shape == (8, 128, 64) and windows.dtype == np.float16
    assert np.abs(windows).max() <= 1


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    run = write_run(tmp_path, 0.0)
    fit_flow(run, small())
    load_generator(run, small(), "flow")
    other = {
        "flow.channels": (8, 16, 24),
        "audio.n_mels": 64,
        "audio.f_max": 7000.0,
        "audio.sample_rate": 24000,
        "audio.db_min": -50.0,
        "audio.hop": 256,
        "gan.frames": 48,
    }
    for field, value in other.items():
        rule = f"flow.safetensors is of another configuration: {field} is .*needs .*--from 5"
        with pytest.raises(MusemoError, match=rule):
            load_generator(run, small(**{field: value}), "flow")
    # What only training or drawing needs is free to differ.
    load_generator(run, small(**{"flow.guidance": 1.0, "flow.steps": 9}), "flow")
    load_generator(run, small(**{"audio.clip_seconds": 5.0}), "flow")


def test_weights_that_are_broken_or_say_nothing_of_themselves(tmp_path):
    run = write_run(tmp_path, 0.0)
    fit_flow(run, small())
    history = run.load("flow_history.json")
    run.save("flow_history.json", {k: v for k, v in history.items() if k != "settings"})
    with pytest.raises(MusemoError, match="audio.sample_rate is None, this one needs 22050"):
        load_generator(run, small(), "flow")
    run.save("flow_history.json", history)
    whole = run.path("flow.safetensors").read_bytes()
    for part in (whole[: len(whole) // 2], whole[:5], b""):
        run.path("flow.safetensors").write_bytes(part)
        with pytest.raises(MusemoError, match=r"flow.safetensors is no whole .*: delete it"):
            load_generator(run, small(), "flow")


def test_windows_of_a_trained_flow_agree_where_they_meet():
    "Against the same flow's windows drawn apart and laid over each other, which do not."
    config = small(**{"flow.steps": 80, "flow.channels": [16, 24, 32], "flow.draw_steps": 8})
    rng = np.random.default_rng(0)
    songs = np.zeros((8, 128, 80))  # a beat every 16 frames, somewhere, and its decay
    for song, first in zip(songs, rng.integers(0, 16, 8), strict=True):
        song[:] = 0.6 * np.exp(-((np.arange(80) - first) % 16) / 5) - 0.5
    songs += rng.normal(0, 0.05, songs.shape)
    net, width = trained(config, songs.astype(np.float32))[1], config.gan.frames
    draw, labels = torch.no_grad()(net), torch.zeros(8, 2)
    noise = torch.randn(8, 128 * 2 * width, generator=torch.Generator().manual_seed(1))
    piece = draw(noise, labels, 2 * width)[:, 0].numpy()
    starts = window_starts(2 * width, width)
    cuts = [noise.unflatten(1, (128, -1))[..., a : a + width].flatten(1) for a in starts]
    apart = torch.stack([draw(x.roll(i, 0), labels) for i, x in enumerate(cuts)], dim=1)
    apart = blend_windows(apart, 2 * width)[:, 0].numpy()
    real = np.tile(songs[..., 16:48], 4)
    table = seam_table({"drawn": piece, "apart": apart, "real": real}, config)
    assert abs(table.loc["real", "spread, ratio"] - 1) < 0.1
    assert abs(table.loc["drawn", "spread, ratio"] - 1) < 0.15
    assert abs(table.loc["drawn", "step, ratio"] - 1) < 0.15
    assert abs(table.loc["drawn", "level, difference (dB)"]) < 1.5
    assert table.loc["apart", "spread, ratio"] < 0.85


def test_both_are_judged_alike_and_the_better_one_draws(tmp_path):
    run, config = write_run(tmp_path, 0.0), small(generators=["gan", "flow"])
    songs = run.load("songs.csv")
    songs.loc[4:, "arousal"] = [0.1, -0.2, 0.3, 0.4]
    run.save("songs.csv", songs)
    rng = np.random.default_rng(1)
    run.save("logmel.npy", np.clip(rng.normal(0, 0.2, (8, 128, 80)), -1, 1).astype(np.float16))
    fit_gan(run, config)
    fit_flow(run, config)
    assert list(run.load("flow_samples.csv")) == ["valence", "arousal"]
    assert run.load("flow_samples.csv").equals(run.load("gan_samples.csv"))
    quality = judge_generators(run, config).quality
    records = quality["generators"]
    assert quality["best"] == max(records, key=lambda name: records[name]["validation_score"])
    assert quality["score"] == records[quality["best"]]["score"]
    assert {"score", "tier", "interval", "components"} <= set(records["gan"]) & set(records["flow"])
    for best in ("gan", "flow"):
        run.save("gan_quality.json", quality | {"best": best})
        assert pick_generator(run, config) == best
        assert set(synthesize(run, config)["generator"]) == {best}
    asked = small(**{"generators": ["gan", "flow"], "synthesis.generator": "gan"})
    assert pick_generator(run, asked) == "gan"
    assert pick_generator(Run(tmp_path / "none"), small(generators=["gan"])) == "gan"
