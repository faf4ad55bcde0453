"""The recipe for small data: what it reads, what it leaves, what it must not see."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.ensemble import GradientBoostingRegressor

from musemo.core import MusemoError, Run
from musemo.dataset import WindowDataset, make_loader
from musemo.presets import make_config
from musemo.readout import Trees, plant_trees
from musemo.vit import build_vit, predict_songs, revive_vit
from musemo.vit_training import fit_vit, train_model

SMALL = {"vit.hidden": 16, "vit.layers": 1, "small.steps": 30, "dataset.windows_per_song": 2}
SMALL |= {"small.tree_leaf": 1}


def config_of(**values):
    return make_config("smoke", SMALL | {k.replace("__", "."): v for k, v in values.items()})


def made_songs(count, seed=0):
    "Make noisy songs: louder with arousal, pulsing faster with valence."
    rng = np.random.default_rng(seed)
    labels = rng.uniform(-0.8, 0.8, (count, 2)).astype(np.float32)
    speed = 0.3 + 0.25 * labels[:, :1, None]
    pulse = np.sign(np.sin(speed * np.arange(128)))
    log_mel = 0.4 * labels[:, 1:, None] + 0.2 * pulse + rng.normal(0, 0.1, (count, 128, 128))
    songs = pd.DataFrame(labels, columns=["valence", "arousal"]).assign(frames=128)
    songs["song_id"] = songs["row"] = songs["group"] = np.arange(count)
    return songs, np.clip(log_mel, -1, 1).astype(np.float16)


def datasets(config, train=48, val=8, **options):
    songs, log_mel = made_songs(train + val)
    later = songs[train:].reset_index(drop=True)
    return {
        "train": WindowDataset(songs[:train], log_mel[:train], config, seed=1, **options),
        "val": WindowDataset(later, log_mel[train:], config),
    }


def predict(model, data, config):
    return predict_songs(model, make_loader(data, config))


@pytest.mark.parametrize("depth", [1, 3])
def test_trees_of_tensors_answer_like_scikit_learns(depth):
    rng = np.random.default_rng(depth)
    x, y = rng.normal(size=(90, 6)).astype(np.float32), rng.normal(size=(90, 2))
    options = {"n_estimators": 25, "max_depth": depth, "random_state": 0, "subsample": 0.7}
    boosted = [GradientBoostingRegressor(**options).fit(x, y[:, i]) for i in range(2)]
    trees = plant_trees(boosted)
    new = rng.normal(size=(50, 6)).astype(np.float32)
    wanted = np.stack([model.predict(new) for model in boosted], axis=1)
    np.testing.assert_allclose(trees(torch.from_numpy(new)), wanted, atol=1e-5)
    again = Trees(**json.loads(json.dumps(trees.size)))
    again.load_state_dict(trees.state_dict())
    assert again(torch.from_numpy(new)).equal(trees(torch.from_numpy(new)))


def test_it_predicts_songs_that_it_never_saw():
    config = config_of()
    data = datasets(config)
    model, record = train_model(data, config, seed=0)
    error = np.abs(predict(model, data["val"], config) - data["val"].labels).mean(0)
    floor = np.abs(data["train"].labels.mean(0) - data["val"].labels).mean(0)
    assert (error < 0.6 * floor).all()
    assert len(record["steps"]) == 30
    again, _ = train_model(datasets(config), config, seed=0)
    assert all(x.equal(again.state_dict()[k]) for k, x in model.state_dict().items())


def test_validation_songs_and_their_labels_are_not_read():
    config = config_of()
    data = datasets(config)
    model, _ = train_model({"train": data["train"]}, config, seed=0)
    other, _ = train_model(data, config, seed=0)
    assert all(x.equal(other.state_dict()[k]) for k, x in model.state_dict().items())


def test_synthetic_windows_count_by_their_weight():
    made = {"synthetic": np.full((20, 128, 64), 0.9, np.float16)}
    made["synthetic_labels"] = np.full((20, 2), 0.9, np.float32)
    silent = np.full((1, 128, 64), 0.9, np.float16)
    loud = WindowDataset(made_songs(1)[0].assign(frames=64), silent, config_of())
    said = {}
    for weight in (0.0, 5.0):
        config = config_of(small__synthetic_weight=weight)
        model, _ = train_model(datasets(config, **made), config, seed=0)
        said[weight] = predict(model, loud, config)[0]
    assert (np.abs(said[5.0] - 0.9) < np.abs(said[0.0] - 0.9)).any()
    assert np.abs(said[5.0] - 0.9).max() < 0.25


def test_synthetic_songs_alone_are_enough_to_train():
    config, (songs, log_mel) = config_of(), made_songs(40)
    labels = songs[["valence", "arousal"]].to_numpy(np.float32, copy=True)
    made = {"synthetic": log_mel[..., :64], "synthetic_labels": labels}
    data = WindowDataset(songs[:0], log_mel[:0], config, seed=0, **made)
    model, _ = train_model({"train": data}, config, seed=0)
    judged = datasets(config)["val"]
    answers = predict(model, judged, config)
    assert np.corrcoef(answers[:, 1], judged.labels[:, 1])[0, 1] > 0.7


def test_the_stage_leaves_a_model_that_opens_again(tmp_path):
    run, config = Run(tmp_path), config_of()
    songs, log_mel = made_songs(20)
    songs["split"] = ["train"] * 12 + ["val"] * 4 + ["test"] * 4
    run.save("songs.csv", songs)
    run.save("logmel.npy", log_mel)
    run.save("synthetic.csv", pd.DataFrame(columns=["valence", "arousal", "emotion"]))
    run.save("synthetic.npy", np.zeros((0, 128, 64), np.float16))
    record = fit_vit(run, config)
    names = ("vit.safetensors", "vit_history.json")
    first = [run.path(name).read_bytes() for name in names]
    assert record["recipe"] == "small" and set(record["validation"]) >= {"val_loss"}
    model = revive_vit(run.load("vit_history.json")["model"], run.load("vit.safetensors"))
    assert type(model) is type(build_vit(config)) and model.trees.size["trees"] == 10
    fit_vit(run, config)
    assert first == [run.path(name).read_bytes() for name in names]


THAW = {"small__thaw": True, "training__epochs": 3, "training__patience": 3}


def test_thawing_that_gains_nothing_leaves_no_trace():
    "At a rate that ruins the line it is undone: the same bytes as without it."
    config = config_of(**THAW, training__learning_rate=0.5)
    model, record = train_model(datasets(config), config, seed=0)
    thaw = record["thaw"]
    assert thaw["kept"] is False and thaw["gain"] < 0 and len(thaw["epochs"]) == 3
    plain, record = train_model(datasets(config_of()), config_of(), seed=0)
    assert "thaw" not in record
    assert all(x.equal(plain.state_dict()[k]) for k, x in model.state_dict().items())


def test_thawing_is_kept_where_validation_songs_gain(monkeypatch):
    "The warm-up is cut short, so that there is something left to learn from labels."
    config = config_of(**THAW | {"training__epochs": 30, "training__patience": 30}, small__steps=1)
    data = datasets(config, val=24)
    model, record = train_model(data, config, seed=0)
    thaw = record["thaw"]
    assert thaw["kept"] == (thaw["gain"] > thaw["standard_error"]) and thaw["songs"] == 24
    assert thaw["epochs"][0]["trainable"] > model.head.weight.numel() + 2
    verdict = {"kept": True, "gain": 1.0, "standard_error": 0.1, "songs": 24}
    monkeypatch.setattr("musemo.vit_training.gain_over_songs", lambda *_: dict(verdict))
    kept, _ = train_model(data, config, seed=0)
    plain, _ = train_model({"train": data["train"]}, config_of(small__steps=1), seed=0)
    for name in ("head.weight", "backbone.embeddings.cls_token"):
        assert not kept.state_dict()[name].equal(plain.state_dict()[name])
    assert not kept.trees.value.equal(plain.trees.value)  # fitted to what the network says now


def test_thawing_needs_validation_songs():
    config = config_of(**THAW)
    with pytest.raises(MusemoError, match="set small.thaw=false"):
        train_model({"train": datasets(config)["train"]}, config, seed=0)


def test_a_small_model_thaws_block_by_block():
    "Its head reads windows beside tokens, so a cache of tokens must not come between."
    config = config_of(**THAW, training__unfreeze=[[2, 1], [3, 2]], vit__layers=2)
    _, record = train_model(datasets(config), config, seed=0)
    moving = [row["trainable"] for row in record["thaw"]["epochs"]]
    assert moving == sorted(set(moving))
