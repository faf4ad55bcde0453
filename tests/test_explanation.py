"""Explanations: relevance finds what the answer rests on, and the deletion test can tell."""

import numpy as np
import pandas as pd
import pytest
import torch
import transformers

from musemo.core import Run
from musemo.dataset import WindowDataset
from musemo.explanation import (
    deletion_test,
    explain_run,
    find_relevance,
    keep_relevant,
    map_relevance,
    mask_in_order,
    patch_grid,
    say_deletion,
    score_deletion,
)
from musemo.presets import make_config
from musemo.vit import EmotionViT, SmallViT, build_vit

SHARES = {"judgement.masked_shares": [0.125, 0.25, 0.5], "dataset.windows_per_song": 2}


def toy_windows(count, seed):
    "Make windows of noise with a tone in one column of eight: windows, its loudness, its place."
    rng = torch.Generator().manual_seed(seed)
    windows = 0.1 * torch.randn(count, 1, 16, 64, generator=rng)
    loud, place = torch.rand(count, generator=rng), torch.randint(8, (count,), generator=rng)
    for window, level, column in zip(windows, loud, place, strict=True):
        window[:, 2:6, 8 * column : 8 * column + 8] += level
    return windows, loud, place


def train_toy(kind, patch):
    "Train a small network to say how loud the tone is."
    torch.manual_seed(0)
    size = {"image_size": [16, 64], "patch_size": patch, "num_channels": 1, "hidden_size": 32}
    size |= {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    backbone = transformers.ViTModel(transformers.ViTConfig(**size), add_pooling_layer=False)
    options = {"tempi": 5} if kind is SmallViT else {}
    model = kind(backbone, dropout=0.0, **options)
    adam = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(150):
        windows, loud, _ = toy_windows(64, step)
        loss = ((model(windows) - loud[:, None]) ** 2).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return model.eval().requires_grad_(False)


@pytest.fixture(
    scope="module",
    params=[(EmotionViT, [16, 8]), (EmotionViT, [8, 8]), (SmallViT, [16, 8])],
    ids=["columns", "squares", "small"],
)
def model(request):
    return train_toy(*request.param)


def test_relevance_finds_the_columns_that_matter(model):
    windows, loud, place = toy_windows(200, seed=1000)
    before, copy = model(windows), windows.clone()
    relevance = find_relevance(model, windows, axis=1)
    assert relevance.shape == (200, np.prod(patch_grid(model))) and (relevance >= 0).all()
    rows, columns = patch_grid(model)
    over_time = relevance.unflatten(1, (rows, columns)).sum(1)
    found = (over_time.argmax(1) == place)[loud > 0.3].float().mean()
    assert found > 3 / 8  # by chance 1 / 8
    if rows == 2:  # the tone lies in the lower bands
        lower = relevance.unflatten(1, (rows, columns))[:, 0].sum(1) / relevance.sum(1)
        assert lower[loud > 0.3].mean() > 0.55
    assert model(windows).equal(before) and windows.equal(copy) and not windows.requires_grad


def test_the_model_computes_as_before(model):
    before = model.backbone.config._attn_implementation
    with pytest.raises(ValueError):
        find_relevance(model, torch.zeros(1, 1, 16, 60), axis=0)
    assert model.backbone.config._attn_implementation == before


def test_the_deletion_test_beats_chance_and_knows_chance(model):
    songs = toy_windows(120, seed=2000)[0].unflatten(0, (30, 4))
    config = make_config("smoke", SHARES)
    relevant, random = deletion_test(model, songs, config, seed=0)
    assert relevant.shape == random.shape == (3, 30, 2)
    told = score_deletion(relevant, random, draws=200, rng=np.random.default_rng(0))
    assert told["arousal"]["verdict"] == "better" and told["arousal"]["interval"][0] > 0.02
    _, other = deletion_test(model, songs, config, seed=1)
    told = score_deletion(other, random, draws=200, rng=np.random.default_rng(0))
    assert abs(told["arousal"]["area"]) < 0.02
    told = score_deletion(-relevant, random, draws=200, rng=np.random.default_rng(0))
    assert told["arousal"]["verdict"] == "worse"
    assert "mislead" in say_deletion(told | {"n_songs": 30})
    few = score_deletion(relevant[:, :4], random[:, :4], draws=200, rng=np.random.default_rng(0))
    assert "finds anything cannot be told" in say_deletion(few | {"n_songs": 4})


def test_masks_put_the_mean_level_in_place():
    pixels = torch.randn(3, 2, 1, 4, 8) + torch.arange(4.0)[:, None]
    score = torch.arange(4.0).expand(3, 2, 4)  # the last patch first
    masked = mask_in_order(pixels, score, 0.25, (1, 4))
    assert masked[..., :6].equal(pixels[..., :6])
    level = pixels.mean(dim=(0, 1, 4))[0]
    torch.testing.assert_close(masked[..., 6:], level[:, None].expand(3, 2, 1, 4, 2))


@pytest.mark.parametrize("size", [0, 32])
def test_a_run_is_explained_alike_twice(tmp_path, size):
    recipe = {"training.recipe": "small" if size == 0 else "spec", "dataset.image_size": size}
    config = make_config("smoke", SHARES | recipe | {"vit.hidden": 16, "vit.layers": 1})
    rng = np.random.default_rng(0)
    songs = pd.DataFrame({"song_id": range(6), "valence": 0.0, "arousal": 0.0})
    songs["frames"] = [40, 130, 130, 130, 130, 130]  # the first is shorter than a window
    data = WindowDataset(songs, rng.uniform(-1, 1, (6, 128, 130)), config)
    torch.manual_seed(0)
    model, run = build_vit(config).eval(), Run(tmp_path)
    record = explain_run(run, config, model, data)
    first = run.path("explanation.json").read_bytes()
    assert record["n_songs"] == 6 and record["relevant"].shape == (3, 6, 2)
    explain_run(run, config, model, data)
    assert run.path("explanation.json").read_bytes() == first
    for song, frames in ((0, 40), (1, 130)):
        windows = {"width": config.window, "count": 2, "image_size": size}
        relevance = map_relevance(model, data.log_mel[song][:, :frames], 0, **windows)
        assert relevance.shape == (128, frames) and np.isfinite(relevance).all()
        kept = keep_relevant(
            data.log_mel[song][:, :frames], relevance, config.audio, share=0.2, turned_down=30.0
        )
        same = (kept == np.float32(data.log_mel[song][:, :frames])).all(axis=0)
        assert same.sum() == round(0.2 * frames)
