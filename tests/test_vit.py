"""Sections 9 to 11: parts stay apart, weights are never made up, training does what it says."""

import json
import os

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel

from musemo.activation_cache import (
    ActivationCache,
    CachedLoader,
    CutViT,
    cut_phase,
    frozen_blocks,
    make_store,
)
from musemo.core import MusemoError, Run
from musemo.dataset import EpochSampler, build_loaders, to_pixels
from musemo.presets import make_config
from musemo.processes import open_accelerator
from musemo.vit import (
    EmotionViT,
    build_vit,
    count_trainable,
    describe_vit,
    freeze_backbone,
    predict_songs,
    revive_vit,
    unfreeze_last,
    vit_blocks,
)
from musemo.vit_training import fit_vit, schedule_phases, train_epoch, train_vit
from musemo.weights import WeightsError, locate_weights

SONGS = 16
SMALL = {"vit.hidden": 16, "vit.layers": 1, "vit.heads": 2, "dataset.image_size": 32}
SMALL |= {"training.recipe": "spec"}


def config_of(**values):
    return make_config("smoke", SMALL | {k.replace("__", "."): v for k, v in values.items()})


@pytest.fixture
def run(tmp_path):
    "A run whose songs are constants that name them: song i is at level -0.8 + i / 10."
    run, level = Run(tmp_path / "run"), -0.8 + np.arange(SONGS) / 10
    parts = ["train"] * 10 + ["val"] * 3 + ["test"] * 3
    songs = pd.DataFrame({"song_id": np.arange(SONGS) + 1, "valence": level, "arousal": -level})
    # The table holds songs without sound as well; they are in no part.
    songs = songs.assign(split=parts, frames=90, row=np.arange(SONGS)[::-1], status="ok")
    bad = {"song_id": 99, "valence": 0.0, "arousal": 0.0, "status": "no audio", "row": -1}
    run.save("songs.csv", pd.concat([songs, pd.DataFrame([bad | {"frames": 0}])]))
    log_mel = np.broadcast_to(level[::-1, None, None], (SONGS, 128, 90)).astype(np.float16)
    run.save("logmel.npy", log_mel)
    made = pd.DataFrame(
        {"valence": [0.5] * 4, "arousal": [0.5] * 4, "emotion": ["", "", "", "sad"]}
    )
    run.save("synthetic.csv", made)
    marks = np.array([0.95, 0.95, 0.95, -1.0])[:, None, None]
    run.save("synthetic.npy", np.broadcast_to(marks, (4, 128, 64)).astype(np.float16))
    return run


def make_noisy(run):
    "Give the songs sound that differs from window to window."
    rng = np.random.default_rng(0)
    run.save("logmel.npy", rng.uniform(-1, 1, (SONGS, 128, 90)).astype(np.float16))


def tiny_vit(**options):
    size = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    size |= {"intermediate_size": 32, "image_size": 32, "patch_size": 16}
    torch.manual_seed(3)
    return ViTModel(ViTConfig(**size | options), add_pooling_layer=False)


def levels(loader):
    return {round(float(p.mean()), 2) for pixels, *_ in loader for p in pixels}


def test_no_song_is_in_two_parts_and_nothing_synthetic_leaves_training(run):
    loaders = build_loaders(run, config_of(dataset__windows_per_song=3))
    seen = {split: levels(loader) for split, loader in loaders.items()}
    level = {i + 1: round(-0.8 + i / 10, 2) for i in range(SONGS)}
    assert seen["train"] == {level[i] for i in range(1, 11)} | {0.95}
    assert seen["val"] == {level[i] for i in range(11, 14)}
    assert seen["test"] == {level[i] for i in range(14, 17)}
    ids = [set(loader.dataset.songs["song_id"]) for loader in loaders.values()]
    assert sum(map(len, ids)) == len(set.union(*ids)) == SONGS
    assert all(loaders[part].dataset.synthetic is None for part in ("val", "test"))
    for pixels, labels, places in loaders["train"]:  # each label goes with its picture
        real = places >= 0
        assert torch.allclose(pixels[real].mean(dim=(1, 2, 3)), labels[real, 0], atol=1e-3)


def test_a_part_without_songs_is_an_error(run):
    songs = run.load("songs.csv")
    run.save("songs.csv", songs[songs["split"] != "val"])
    with pytest.raises(MusemoError, match="no songs in the val part"):
        build_loaders(run, config_of())


def test_synthetic_windows_of_another_width_are_an_error(run):
    with pytest.raises(MusemoError, match="windows of 64 frames, the ViT sees 80"):
        build_loaders(run, config_of(dataset__window_frames=80, gan__frames=80))


def test_windows_are_the_same_for_any_number_of_workers(run):
    make_noisy(run)
    epochs = {}
    for workers in (0, 2):
        loader = build_loaders(run, config_of(dataset__workers=workers))["train"]
        epochs[workers] = [torch.cat([batch[0] for batch in loader]) for _ in range(2)]
    assert all(a.equal(b) for a, b in zip(epochs[0], epochs[2], strict=True))
    assert not epochs[0][0].equal(epochs[0][1])


def test_sampler_goes_on_where_it_stopped():
    whole, late = EpochSampler(9, seed=4), EpochSampler(9, seed=4)
    both = [list(whole), list(whole)]
    late.epoch = 1
    assert list(late) == both[1] != both[0]


def test_pixels_follow_the_checkpoints_normalisation():
    window = torch.linspace(-1, 1, 64).repeat(1, 16, 1)
    plain = to_pixels(window, 32)
    assert plain.shape == (1, 3, 32, 32) and plain.abs().max() <= 1
    other = to_pixels(window, 32, mean=(0.1, 0.2, 0.3), std=(0.2, 0.3, 0.4))
    expected = ((plain[0, 2] + 1) / 2 - 0.3) / 0.4
    assert torch.allclose(other[0, 2], expected, atol=1e-6)


def test_weights_from_a_folder_with_their_own_normalisation(tmp_path):
    backbone = tiny_vit()
    backbone.save_pretrained(tmp_path)
    settings = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.2]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    model = build_vit(config_of(vit__weights=str(tmp_path)), kaggle=tmp_path / "none")
    assert (model.mean, model.std) == ((0.4, 0.5, 0.6), (0.2, 0.2, 0.2))
    for name, weight in backbone.state_dict().items():
        assert model.backbone.state_dict()[name].equal(weight), name


def test_weights_that_saw_plain_pictures_get_plain_pictures(tmp_path):
    tiny_vit().save_pretrained(tmp_path)
    settings = {"image_mean": [0.4, 0.5, 0.6], "do_normalize": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    model = build_vit(config_of(vit__weights=str(tmp_path)), kaggle=tmp_path / "none")
    assert (model.mean, model.std) == ((0, 0, 0), (1, 1, 1))


def test_weights_for_pictures_of_one_channel_are_refused(tmp_path):
    tiny_vit(num_channels=1).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="read pictures of 1 channels"):
        build_vit(config_of(vit__weights=str(tmp_path)))


def test_weights_from_a_kaggle_input(tmp_path):
    place = tmp_path / "vit-base-patch16-224-in21k/transformers/default/1"
    tiny_vit().save_pretrained(place)
    (tmp_path / "deam").mkdir()
    (tmp_path / "deam/config.json").write_text('["something else"]')
    model = build_vit(make_config("full", {"dataset.image_size": 32}), kaggle=tmp_path)
    assert model.source == "Kaggle input vit-base-patch16-224-in21k/transformers/default/1"
    assert len(vit_blocks(model.backbone)) == 3


def test_missing_weights_name_the_three_ways_out(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError) as error:
        locate_weights("musemo/there-is-no-such-vit", tmp_path)
    for words in ("vit.weights=FOLDER", "on Kaggle", "vit.weights=scratch"):
        assert words in str(error.value)
    with pytest.raises(WeightsError, match="ways out"):
        locate_weights(str(tmp_path), tmp_path)


def test_a_checkpoint_that_lacks_weights_is_never_filled_up(tmp_path):
    tiny_vit().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in weights if name.endswith("1.layernorm_before.weight"))
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="1 weights are missing or misshapen"):
        build_vit(config_of(vit__weights=str(tmp_path)))


def test_a_broken_or_misfit_checkpoint_is_one_clear_error(tmp_path):
    tiny_vit(image_size=64).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="set dataset.image_size=64"):
        build_vit(config_of(vit__weights=str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(WeightsError, match="cannot be read as a ViT"):
        build_vit(config_of(vit__weights=str(tmp_path), dataset__image_size=64))


def test_a_model_opens_again_from_description_and_weights():
    model = EmotionViT(tiny_vit(), dropout=0.3, mean=(0.4,) * 3).eval()
    again = revive_vit(json.loads(json.dumps(describe_vit(model))), model.state_dict())
    pixels = torch.randn(2, 3, 32, 32)
    assert again(pixels).equal(model(pixels))
    assert (again.mean, again.dropout.p, again.training) == ((0.4,) * 3, 0.3, False)


def test_thawing_moves_exactly_the_last_blocks_and_the_last_norm():
    model = EmotionViT(tiny_vit())
    total = count_trainable(model)
    unfreeze_last(model, 2)
    moving = {name for name, weight in model.named_parameters() if weight.requires_grad}
    first = {f"backbone.{n}" for n, _ in model.backbone.named_parameters() if "s.0." in n}
    assert "backbone.layernorm.weight" in moving and "head.bias" in moving
    assert first and not moving & first
    assert not any("embeddings" in name for name in moving)
    unfreeze_last(model, 3)
    assert count_trainable(model) == total
    freeze_backbone(model)
    assert count_trainable(model) == 16 * 2 + 2


def test_schedule_is_the_specifications():
    full = make_config("full").training
    assert schedule_phases(full) == [(1, 24, 0), (8, 17, 1), (12, 13, 2), (16, 9, 3)]
    short = make_config("full", {"training.epochs": 9}).training
    assert schedule_phases(short) == [(1, 9, 0), (8, 2, 1)]


def test_patience_stops_and_the_best_epoch_comes_back(run):
    values = {"training__epochs": 12, "training__patience": 2, "training__learning_rate": 0.05}
    config = config_of(**values)
    torch.manual_seed(0)
    model, loaders = build_vit(config), build_loaders(run, config)
    states = []
    history, best = train_vit(
        model,
        loaders,
        config,
        on_epoch=lambda row: states.append({k: v.clone() for k, v in model.state_dict().items()}),
    )
    losses = [row["val_loss"] for row in history]
    place = int(np.argmin(losses))
    assert len(history) == min(12, place + 1 + 2)
    assert all(best[name].equal(weight) for name, weight in states[place].items())


def test_frozen_weights_stay_and_the_rate_starts_again(run):
    schedule = {"training__unfreeze": [[3, 1]], "training__epochs": 4, "training__patience": 9}
    config = config_of(vit__layers=2, **schedule)
    model = build_vit(config)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    history, _ = train_vit(model, build_loaders(run, config), config)
    rates = [row["learning_rate"] for row in history]
    assert rates[0] == rates[2] == config.training.learning_rate > rates[1]
    moved = {k for k, v in model.state_dict().items() if not v.equal(before[k])}
    assert any(k.startswith("head") for k in moved)
    assert not any("s.0." in k or "embeddings" in k for k in moved)
    assert any("s.1." in k for k in moved)


def test_gradients_of_the_predictor_are_clipped():
    model, labels = torch.nn.Linear(3, 2), torch.full((4, 2), 100.0)
    model.dropout = torch.nn.Identity()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=1)
    batches, loss = [(torch.ones(4, 3), labels, None)], torch.nn.MSELoss()
    accelerator = open_accelerator(config_of())
    train_epoch(model, batches, loss, optimizer, cosine, accelerator, clip_norm=0.5)
    norms = [weight.grad.norm() for weight in model.parameters()]
    assert torch.stack(norms).norm().item() == pytest.approx(0.5, rel=1e-3)


def test_a_trained_model_can_be_trained_on_with_other_batches(run):
    config = config_of(training__epochs=1, vit__dropout=0.5)
    model = build_vit(config)
    train_vit(model, build_loaders(run, config), config)
    assert model.train().answer(torch.ones(11, model.head.in_features)).shape == (11, 2)


def test_the_stage_gives_the_same_bytes_twice_and_wraps_its_errors(run):
    config = config_of(training__epochs=2)
    fit_vit(run, config)
    names = ("vit.safetensors", "vit_history.json")
    first = [run.path(name).read_bytes() for name in names]
    fit_vit(run, config)
    assert first == [run.path(name).read_bytes() for name in names]
    with pytest.raises(MusemoError, match="ways out"):
        fit_vit(run, config_of(vit__weights=str(run.folder)))


# Head alone, one block, two, all three: the last phase has nothing to remember.
THAWING = {"unfreeze": [[3, 1], [5, 2], [7, 3]], "epochs": 8, "patience": 8, "views": 2}


def cache_of(model, loaders, config, *, blocks=(), **options):
    blocks = list(blocks) or [len(vit_blocks(model.backbone)) - frozen_blocks(model)]
    options |= {"blocks": blocks, "accelerator": open_accelerator(config)}
    return ActivationCache(model, loaders, config.training, **options)


def train_thawing(run, *, folder=None, on_epoch=None, dropout=0.0, mixup=0.0, **values):
    "Train a tiny ViT over the whole schedule: answers, history, rows that the first block saw."
    settings = {f"training__{k}": v for k, v in (THAWING | values).items()}
    settings["augmentation__mixup"] = mixup
    settings |= {"training__backbone_rate": 0.1, "training__learning_rate": 1e-3}
    config = config_of(dataset__batch_size=4, **settings)
    make_noisy(run)
    loaders = build_loaders(run, config)
    model = EmotionViT(tiny_vit(hidden_dropout_prob=dropout), dropout=0.1)
    seen = []
    vit_blocks(model.backbone)[0].register_forward_hook(lambda *a: seen.append(len(a[1][0])))
    torch.manual_seed(5)
    history, _ = train_vit(model, loaders, config, folder=folder, on_epoch=on_epoch)
    rows = sum(seen)
    return predict_songs(model, loaders["test"]), history, rows


@pytest.mark.parametrize(("precision", "far"), [("float32", 1e-5), ("float16", 2e-3)])
@pytest.mark.parametrize(("dropout", "mixup"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.4)])
def test_cache_changes_no_prediction_over_the_whole_schedule(run, precision, far, dropout, mixup):
    options = {"dropout": dropout, "mixup": mixup}
    plain, history, all_rows = train_thawing(run, cache=False, **options)
    cached, same, rows = train_thawing(run, cache_precision=precision, **options)
    assert np.abs(cached - plain).max() < far
    for column in ("train_loss", "val_loss"):
        assert np.allclose([r[column] for r in same], [r[column] for r in history], atol=far)
    # 10 songs and 3 made windows in 2 views, 3 songs to judge; two epochs learn all.
    assert all_rows == 8 * (13 + 3)
    assert rows == 2 * 13 + 3 + 2 * (13 + 3)


def test_cache_beyond_its_memory_lies_on_disk_and_leaves_nothing(run, tmp_path):
    scratch, names = tmp_path / "scratch", []
    scratch.mkdir()
    inside, _, _ = train_thawing(run)
    config = config_of(vit__layers=3, training__cache_mb=0)
    model, loaders = EmotionViT(tiny_vit()), build_loaders(run, config)
    freeze_backbone(model)
    _, batches = cut_phase(cache_of(model, loaders, config, folder=scratch))
    for cached in batches.values():
        assert isinstance(cached.store, np.memmap)
        assert all(len(tokens) == len(labels) for tokens, labels, _ in cached)
    on_disk, _, _ = train_thawing(
        run, folder=scratch, cache_mb=0, on_epoch=lambda row: names.extend(os.listdir(scratch))
    )
    assert np.array_equal(inside, on_disk)
    assert names == os.listdir(scratch) == []


def test_cache_keeps_the_order_and_counts_its_memory(run):
    config = config_of(training__views=2)
    make_noisy(run)
    model = EmotionViT(tiny_vit()).eval()
    unfreeze_last(model, 1)
    plain, loaders = build_loaders(run, config), build_loaders(run, config)
    part, batches = cut_phase(cache_of(model, loaders, config))
    plain["train"].sampler.views = 2
    assert isinstance(batches["train"], CachedLoader) and part.frozen == frozen_blocks(model) == 2
    for _ in range(3):
        for (tokens, *theirs), (pixels, *ours) in zip(
            batches["train"], plain["train"], strict=True
        ):
            assert all(a.equal(b) for a, b in zip(theirs, ours, strict=True))
            assert tokens.dtype == torch.float16
            assert torch.allclose(part(tokens), part(pixels), atol=2e-3)
    assert batches["train"].store.nbytes == 2 * 13 * (1 + 4) * 16 * 2  # views, windows, tokens, D
    freeze_backbone(model)
    _, batches = cut_phase(cache_of(model, loaders, config))
    assert batches["train"].store.nbytes == 2 * 13 * 16 * 2  # the class token alone


def test_nothing_is_cached_where_all_of_the_network_learns(run):
    config = config_of()
    model, loaders = EmotionViT(tiny_vit()), build_loaders(run, config)
    part, batches = cut_phase(cache_of(model, loaders, config))
    assert part.frozen == 0 and batches is loaders and loaders["train"].sampler.views == 0
    pixels = torch.randn(2, 3, 32, 32)
    assert CutViT(model.eval())(pixels).equal(model(pixels))
    part(pixels).sum().backward()
    assert all(weight.grad is not None for weight in model.backbone.embeddings.parameters())


def test_a_cache_that_cannot_hold_its_tokens_says_so(run, tmp_path, monkeypatch):
    config = config_of(training__cache_mb=0)
    model, loaders = EmotionViT(tiny_vit()), build_loaders(run, config)
    freeze_backbone(model)
    model.backbone.embeddings.cls_token.data.fill_(1e6)
    _, batches = cut_phase(cache_of(model, loaders, config))
    with pytest.raises(MusemoError, match="set training.cache_precision=float32"):
        next(iter(batches["train"]))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10}))
    with pytest.raises(MusemoError, match="lower training.views or set training.cache=false"):
        make_store((9, 5, 16), config.training, folder=tmp_path)


def test_blocks_that_freeze_again_are_asked_again(run):
    "After a phase that moved them, tokens of the old weights would be wrong."
    make_noisy(run)
    config = config_of(training__cache_precision="float32")
    model, loaders = EmotionViT(tiny_vit()), build_loaders(run, config)
    cache = cache_of(model, loaders, config, blocks=[1, 2, 3])
    for blocks in (1, 2, 1, 3, 1, 0, 2):
        unfreeze_last(model, blocks)
        part, batches = cut_phase(cache)
        right = predict_songs(model, loaders["val"])
        assert np.abs(predict_songs(part, batches["val"]) - right).max() < 1e-5
        for weight in model.parameters():  # a step of training
            weight.data += 0.01 * weight.requires_grad * torch.randn(weight.shape)
