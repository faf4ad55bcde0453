"""Section 12: the figures are right, and honest about few songs."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import r2_score

from musemo.core import Run, load_part
from musemo.dataset import WindowDataset
from musemo.evaluation import (
    evaluate_vit,
    metrics_table,
    predict_baselines,
    song_statistics,
)
from musemo.evaluation_plots import quadrant_of
from musemo.intervals import read_intervals, say_intervals
from musemo.metrics import redraw_songs, score_columns
from musemo.presets import config_record, make_config
from musemo.verdict import say_what_it_is_worth
from musemo.vit_training import fit_vit

SMALL = {
    "vit.hidden": 16,
    "vit.layers": 1,
    "vit.heads": 2,
    "dataset.image_size": 32,
    "training.recipe": "spec",
    "training.epochs": 2,
    "synthesis.songs": 0,
}


def make_run(folder, *, train, val, test, seed=0):
    "Make a run of noisy songs whose level tells their arousal, and train its ViT."
    run, songs = Run(folder), train + val + test
    config, rng = make_config("smoke", SMALL), np.random.default_rng(seed)
    arousal = rng.uniform(-0.8, 0.8, songs)
    log_mel = rng.normal(0.5 * arousal[:, None, None], 0.2, (songs, 128, 200)).clip(-1, 1)
    table = pd.DataFrame({"song_id": np.arange(songs) + 1, "valence": rng.uniform(-1, 1, songs)})
    table["arousal"], table["frames"], table["row"] = arousal, 200, np.arange(songs)
    table["group"], table["valence_std"] = table["song_id"], 0.2
    table["split"] = ["train"] * train + ["val"] * val + ["test"] * test
    run.save("songs.csv", table)
    run.save("logmel.npy", log_mel.astype(np.float16))
    run.save("synthetic.csv", pd.DataFrame(columns=["valence", "arousal", "emotion"]))
    run.save("synthetic.npy", np.zeros((0, 128, 64), np.float16))
    run.save("config.json", config_record(config))
    fit_vit(run, config)
    return run, config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"), train=24, val=6, test=12)


def test_scores_agree_with_their_formulas():
    rng = np.random.default_rng(1)
    y = rng.uniform(-1, 1, (30, 2))
    p = 0.6 * y + rng.normal(0.1, 0.2, (30, 2))
    scores = score_columns(y, p)
    for i in range(2):
        a, b = y[:, i], p[:, i]
        spread = np.cov(a, b)  # n - 1 in variances and covariance alike
        ccc = 2 * spread[0, 1] / (np.trace(spread) + (a.mean() - b.mean()) ** 2)
        expected = {"mae": abs(a - b).mean(), "rmse": ((a - b) ** 2).mean() ** 0.5, "ccc": ccc}
        expected |= {"r2": r2_score(a, b), "r": np.corrcoef(a, b)[0, 1]}
        for name, value in expected.items():
            assert scores[name][i] == pytest.approx(value, abs=1e-6), name


def test_what_is_not_defined_is_missing_and_not_zero():
    y = np.array([[0.1, 0.3], [0.5, 0.3], [0.2, 0.3]])
    scores = score_columns(y, np.full((3, 2), 0.2))
    assert scores["ccc"][0] == 0 and np.isnan(scores["ccc"][1])
    assert np.isfinite(scores["r2"][0]) and np.isnan(scores["r2"][1])
    assert np.isnan(scores["r"]).all()
    one = score_columns(y[:1], y[:1])
    assert (one["mae"] == 0).all() and all(np.isnan(one[k]).all() for k in ("ccc", "r2", "r"))


def test_rivals_are_redrawn_together():
    rng = np.random.default_rng(2)
    y, p = rng.uniform(-1, 1, (20, 2)), rng.uniform(-1, 1, (20, 2))
    drawn = redraw_songs(y, {"a": p, "b": p.copy()}, range(20), draws=30, rng=rng)
    assert np.array_equal(drawn["a"]["r2"], drawn["b"]["r2"])
    assert drawn["a"]["r2"].shape == (30, 2) and drawn["a"]["r2"].std() > 0


def test_baselines_know_the_training_songs_only(finished):
    run, config = finished
    songs, log_mel = run.load("songs.csv"), run.load("logmel.npy")
    train = WindowDataset(songs[:24], log_mel[:24], config)
    test = songs[30:].reset_index(drop=True)
    answers = predict_baselines(train, WindowDataset(test, log_mel[30:], config))
    changed = test.assign(valence=0.9, arousal=-0.9)
    again = predict_baselines(train, WindowDataset(changed, log_mel[30:], config))
    assert all(np.array_equal(answers[name], again[name]) for name in answers)
    assert np.allclose(answers["mean"], songs[["valence", "arousal"]][:24].mean())
    assert np.corrcoef(answers["ridge"][:, 1], test["arousal"])[0, 1] > 0.9


def test_the_stage_leaves_complete_metrics(finished):
    run, config = finished
    evaluate_vit(run, config)
    metrics = json.loads(run.path("metrics.json").read_text())
    for axis in ("valence", "arousal"):
        for name in ("model", "mean", "ridge"):
            assert set(metrics[axis][name]) == {"mae", "rmse", "ccc", "r2", "r"}
        low, high = metrics[axis]["model_interval"]["mae"]
        assert low <= metrics[axis]["model"]["mae"] <= high
    assert metrics["n_test"] == 12 and metrics["units"]
    noise = 0.2**2 / config.data.raters
    rated = run.load("songs.csv").query("split == 'test'")["valence"]
    top = {axis: metrics["ceiling"][axis]["r2"] for axis in ("valence", "arousal")}
    assert top == {"valence": pytest.approx(1 - noise / rated.var()), "arousal": None}
    predictions = run.load("predictions.csv")
    assert predictions["split"].value_counts().to_dict() == {"test": 12, "val": 6}
    assert predictions[["valence_predicted", "arousal_predicted"]].abs().max().max() <= 1
    test = predictions[predictions["split"] == "test"]
    error = (test["arousal"] - test["arousal_predicted"]).abs().mean()
    assert metrics["arousal"]["model"]["mae"] == pytest.approx(error, abs=1e-3)
    ends = test[["valence_low", "valence_high", "arousal_low", "arousal_high"]].to_numpy()
    # Six validation songs are too few for 90 %: nothing short of the scale is promised.
    assert np.array_equal(ends, np.tile([-1, 1, -1, 1], (12, 1)))
    assert metrics["intervals"]["n_calibration"] == 6
    assert metrics["intervals"]["arousal"]["coverage"] == 1
    assert "too few" in say_intervals(metrics)
    first = run.path("metrics.json").read_bytes()
    evaluate_vit(run, config)
    assert run.path("metrics.json").read_bytes() == first
    assert "12 real test songs" in say_what_it_is_worth(metrics)


def test_intervals_hold_test_songs_and_are_kept_for_new_ones(tmp_path):
    run, config = make_run(tmp_path, train=30, val=20, test=20)
    songs, rng = run.load("songs.csv"), np.random.default_rng(0)
    for axis in ("valence", "arousal"):
        songs[f"{axis}_std"] = rng.uniform(0.2, 0.5, len(songs))
    run.save("songs.csv", songs)
    metrics, _ = evaluate_vit(run, config)
    table = run.load("predictions.csv")
    test, val = (table[table["split"] == split] for split in ("test", "val"))
    assert val["valence_low"].isna().all()
    for axis in ("valence", "arousal"):
        low, high = test[f"{axis}_low"], test[f"{axis}_high"]
        assert (low >= -1).all() and (high <= 1).all() and (low < high).all()
        inside = ((low <= test[axis]) & (test[axis] <= high)).mean()
        assert metrics["intervals"][axis]["coverage"] == pytest.approx(inside) and inside > 0.6
    data = WindowDataset(*load_part(run, "test"), config)
    statistics = song_statistics(data.log_mel, data.frames)
    answers = test[["valence_predicted", "arousal_predicted"]].to_numpy()
    low, _ = read_intervals(run.load("intervals.json")).around(answers, statistics)
    assert np.allclose(low, test[["valence_low", "arousal_low"]], atol=1e-5)


def test_two_test_songs_are_enough_to_finish(tmp_path):
    metrics, predictions = evaluate_vit(*make_run(tmp_path, train=6, val=2, test=2))
    assert metrics["arousal"]["model_interval"]["r2"] is None
    assert "judge nothing" in say_what_it_is_worth(metrics)
    assert metrics_table(metrics).shape == (16, 5) and len(predictions) == 4
    assert quadrant_of(predictions[["valence", "arousal"]].to_numpy()).shape == (4,)
