"""Changed training windows: seeded, in range, never where songs are judged, off means off."""

import numpy as np
import pandas as pd
import pytest
import torch

from musemo.activation_cache import ActivationCache, cut_phase
from musemo.augmentation import (
    draw_stretch,
    frames_needed,
    mask_stretches,
    mix_batch,
    shift_bands,
    stretch_time,
)
from musemo.dataset import WindowDataset, make_loader
from musemo.presets import make_config
from musemo.processes import open_accelerator
from musemo.vit import EmotionViT, freeze_backbone, unfreeze_last
from musemo.vit_training import train_vit
from tests.test_small import made_songs
from tests.test_vit import tiny_vit

STRONG = {"time_masks": 2, "band_masks": 2, "stretch": 0.3, "shift": 4}
EACH = [{"time_masks": 3}, {"band_masks": 3}, {"stretch": 0.5}, {"shift": 4}, STRONG]
SPEC = {"training.recipe": "spec", "dataset.image_size": 32, "dataset.batch_size": 8}


def config_of(augmentation=(), **values):
    changes = {f"augmentation.{name}": value for name, value in dict(augmentation).items()}
    return make_config(
        "smoke", SPEC | changes | {k.replace("__", "."): v for k, v in values.items()}
    )


def songs_of(config, *, seed=3, songs=6, made=3, frames=None):
    table, log_mel = made_songs(songs)
    if frames is not None:
        table["frames"] = frames
    options = {"synthetic": log_mel[:made, :, :64], "synthetic_labels": np.zeros((made, 2), "f4")}
    return WindowDataset(table, log_mel, config, seed=seed, **options if made else {})


def windows_of(data, keys):
    return torch.stack([data[key][0] for key in keys])


@pytest.mark.parametrize("changes", EACH, ids=lambda c: "+".join(c))
def test_changed_windows_keep_shape_range_and_seed(changes):
    plain, data = songs_of(config_of()), songs_of(config_of(changes))
    keys = range(3 * len(data))
    windows, again = windows_of(data, keys), windows_of(data, reversed(keys)).flip(0)
    assert windows.equal(again) and windows.shape == windows_of(plain, keys).shape
    assert windows.abs().max() <= 1 and windows.isfinite().all()
    assert not windows.equal(windows_of(plain, keys))
    synthetic = windows[len(data) - 1], windows_of(plain, keys)[len(data) - 1]
    assert synthetic[0].shape == synthetic[1].shape
    assert all(data[key][1].equal(plain[key][1]) for key in keys)  # labels stay


def test_any_number_of_workers_gives_the_same_windows():
    epochs = []
    for workers in (0, 2):
        config = config_of(STRONG, dataset__workers=workers)
        loader = make_loader(songs_of(config), config)
        epochs.append([torch.cat([batch[0] for batch in loader]) for _ in range(2)])
    assert all(a.equal(b) for a, b in zip(*epochs, strict=True))
    assert not epochs[0][0].equal(epochs[0][1])


def test_what_judges_is_never_changed():
    for seed, augmented in ((None, True), (3, False)):
        plain, changed = (
            songs_of(config, seed=seed, made=0) for config in (config_of(), config_of(STRONG))
        )
        changed.augmented = augmented
        keys = range(len(plain))
        assert windows_of(changed, keys).equal(windows_of(plain, keys))


def test_a_slower_pulse_has_a_longer_period():
    pulse = torch.full((4, 65), -1.0)
    pulse[:, ::4] = 1
    for factor in (0.5, 2.0, 3.0):
        width = int(64 * factor) + 1
        beats = (stretch_time(pulse, factor=factor, width=width)[0] > 0.99).nonzero().flatten()
        assert beats.diff().eq(int(4 * factor)).all() and len(beats) == 17


@pytest.mark.parametrize("frames", [64, 70, 90, 128])
def test_no_frame_is_invented(frames):
    "A cut is as wide as the tempo asks, and never wider than the song."
    rng = np.random.default_rng(0)
    factors = [draw_stretch(1.0, width=64, frames=frames, rng=rng) for _ in range(200)]
    assert max(frames_needed(64, factor) for factor in factors) <= frames
    assert max(factors) <= 2 and min(factors) >= 63 / (frames - 1) - 1e-9
    data = songs_of(config_of({"stretch": 1.0}), songs=2, made=0, frames=frames)
    data.log_mel = np.zeros_like(data.log_mel)  # padding would be -1
    assert windows_of(data, range(40)).abs().max() < 1e-6


def test_a_line_moves_by_the_bands_asked_for():
    note = torch.full((16, 5), -1.0)
    note[6] = 1
    for bands in (-6, -1, 0, 4, 9):
        moved = shift_bands(note, bands)
        assert (moved[:, 0] == 1).nonzero().flatten().tolist() == [6 + bands]
        assert moved.eq(1).any(1).sum() == 1  # the edge band is silent here, and fills with silence


def test_masks_stay_within_their_share():
    window, rng = torch.linspace(-1, 0.5, 40).repeat(20, 1), np.random.default_rng(0)
    for _ in range(50):
        hidden = mask_stretches(window, axis=1, masks=1, width=0.25, rng=rng)
        where = (hidden - window.mean()).abs().max(0).values < 1e-6
        assert where.sum() <= 10
        assert hidden[:, ~where].equal(window[:, ~where])


def test_mixing_keeps_means_and_goes_with_its_label():
    labels = torch.from_numpy(made_songs(30)[0][["valence", "arousal"]].to_numpy("f4", copy=True))
    inputs, rng = labels[:, :1].half().expand(-1, 5), np.random.default_rng(0)
    for _ in range(20):
        mixed, told = mix_batch(inputs, labels, alpha=0.4, rng=rng)
        assert torch.allclose(mixed[:, 0], told[:, 0], atol=1e-3)
        assert torch.allclose(told.mean(0), labels.mean(0), atol=1e-5)
        assert told.abs().max() <= labels.abs().max()


@pytest.mark.parametrize("views", [1, 3])
def test_cached_views_are_changed_each_in_its_way_and_a_single_one_is_not(views):
    config = config_of(STRONG, training__views=views, training__cache_precision="float32")
    model = EmotionViT(tiny_vit()).eval()
    loaders = {name: make_loader(songs_of(config), config) for name in ("train", "val")}
    plain = songs_of(config_of())
    freeze_backbone(model)
    options = {"blocks": [0, 3], "accelerator": open_accelerator(config)}
    cache = ActivationCache(model, loaders, config.training, **options)
    _, batches = cut_phase(cache)
    for _ in range(views):
        list(batches["train"])
    assert len(batches["train"].seen) == views
    keys = range(views * len(plain))
    unchanged = windows_of(loaders["train"].dataset, keys).equal(windows_of(plain, keys))
    assert unchanged == (views == 1)
    tokens = torch.from_numpy(batches["train"].store).reshape(views, len(plain), -1)
    assert views == 1 or not torch.allclose(tokens[0], tokens[1], atol=1e-3)
    unfreeze_last(model, 3)  # all of it: windows are new in each epoch, and changed
    cut_phase(cache)
    assert loaders["train"].dataset.augmented


def test_mixup_trains_and_leaves_validation_alone():
    losses = {}
    for alpha in (0.0, 0.4):
        config = config_of({"mixup": alpha}, training__unfreeze=[[2, 1]], training__epochs=3)
        torch.manual_seed(0)
        model = EmotionViT(tiny_vit(), dropout=0.0)
        train, val = songs_of(config), songs_of(config, seed=None, made=0)
        loaders = {"train": make_loader(train, config), "val": make_loader(val, config)}
        history, _ = train_vit(model, loaders, config)
        losses[alpha] = pd.DataFrame(history)
        assert losses[alpha].notna().all().all()
    assert not np.allclose(losses[0.0]["train_loss"], losses[0.4]["train_loss"])


def test_changes_that_would_change_nothing_or_too_much_are_refused():
    with pytest.raises(ValueError, match="augmentation.mixup goes with training.recipe=spec"):
        make_config("smoke", {"augmentation.mixup": 0.2})  # nothing is trained by batches
    with pytest.raises(ValueError, match="augmentation.shift must be below 128"):
        config_of({"shift": 128})
