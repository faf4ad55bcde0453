# %%
#| default_exp vit_training

# %% [markdown]
# # ViT training
#
# > Thaw the network block by block, watch real validation songs, keep the best epoch.
#
# From section 9 come the loaders, from section 10 the model. Out come the history of every
# epoch and the weights of the best one. Synthetic windows help to train where they can; whether
# they do is decided by real songs only.
#
# Shapes: B batch, N songs.

# %%
#| export
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

from musemo.config import Config, TrainingConfig
from musemo.core import (
    MusemoError,
    Run,
    autocast,
    pick_device,
    pick_precision,
    progress,
    seed_everything,
    seed_for,
)
from musemo.dataset import build_loaders
from musemo.vit import (
    EmotionViT,
    WeightsError,
    build_vit,
    count_trainable,
    describe_vit,
    parameter_groups,
    predict_songs,
    start_at_mean,
    unfreeze_last,
)

# %%
#| hide
from fastcore.test import test_close, test_eq, test_fail
from torch.utils.data import TensorDataset
from transformers import ViTConfig, ViTModel

from musemo.presets import make_config


# %% [markdown]
# ## A loss with a preference
#
# Valence is the harder of the two, so the specification gives its squared error 60 % of the
# weight and arousal's 40 %.


# %%
#| export
class WeightedEmotionLoss(nn.Module):
    "Weighted squared error of valence and arousal."

    def __init__(self, valence_weight: float = 0.6, arousal_weight: float = 0.4):
        super().__init__()
        self.register_buffer("weights", torch.tensor([valence_weight, arousal_weight]))

    def forward(
        self,
        predicted: torch.Tensor,  # (B, 2) valence, arousal
        rated: torch.Tensor,  # (B, 2)
    ) -> torch.Tensor:  # one number
        "Average the weighted squared error over the batch."
        return ((predicted.float() - rated) ** 2 @ self.weights).mean()


# %%
loss_function = WeightedEmotionLoss()
rated = torch.zeros(5, 2)
test_close(float(loss_function(rated + torch.tensor([1.0, 0.0]), rated)), 0.6, eps=1e-6)
test_close(float(loss_function(rated + torch.tensor([0.0, 1.0]), rated)), 0.4, eps=1e-6)


# %% [markdown]
# ## The schedule
#
# The head learns first, alone; then the last block joins, then the last two, the last three.
# A phase is a stretch of epochs in which the same weights move.


# %%
#| export
def schedule_phases(
    config: TrainingConfig,
) -> list[tuple[int, int, int]]:  # first epoch, epochs that remain from it, trainable blocks
    "List the phases of the unfreezing schedule, from epoch 1 to the last."
    steps = dict([(1, 0), *config.unfreeze])  # a pair for epoch 1 replaces "head only"
    return [
        (first, config.epochs - first + 1, blocks)
        for first, blocks in steps.items()
        if first <= config.epochs
    ]


# %%
full = make_config("full").training
test_eq(schedule_phases(full), [(1, 24, 0), (8, 17, 1), (12, 13, 2), (16, 9, 3)])
test_eq(schedule_phases(make_config("smoke").training), [(1, 3, 64)])


# %% [markdown]
# At each phase the optimiser is made anew, since it must know the weights that have joined, and
# the cosine starts again from the full rate over all epochs that remain, down to `min_rate`.
# The rate falls with every batch.


# %%
#| export
def start_phase(
    model: EmotionViT,
    config: TrainingConfig,
    *,
    blocks: int,  # last blocks that may move
    steps: int,  # batches that remain
) -> tuple[torch.optim.Optimizer, CosineAnnealingLR]:
    "Unfreeze the last blocks and make the optimiser and its cosine anew."
    unfreeze_last(model, blocks)
    groups = parameter_groups(model, config.learning_rate, config.backbone_rate)
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    return optimizer, CosineAnnealingLR(optimizer, T_max=steps, eta_min=config.min_rate)


# %%
tiny = ViTConfig(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    image_size=32,
    patch_size=16,
)
torch.manual_seed(0)
model = EmotionViT(ViTModel(tiny, add_pooling_layer=False), dropout=0.0)
optimizer, cosine = start_phase(model, full, blocks=1, steps=10)
test_close([group["lr"] for group in optimizer.param_groups], [1e-4, 1e-5], eps=1e-9)
for _ in range(10):
    optimizer.step()
    cosine.step()
test_close([group["lr"] for group in optimizer.param_groups], [1e-6, 1e-6], eps=1e-9)


# %% [markdown]
# ## One epoch
#
# Batch, loss, backward, clip, step. A loss that is no number would poison every weight, so it
# stops the run there and then.


# %%
#| export
def train_epoch(
    model: EmotionViT,
    batches,  # of pixels (B, 3, H, W), labels (B, 2), songs' places (B,)
    loss_function: nn.Module,
    optimizer: torch.optim.Optimizer,
    cosine: CosineAnnealingLR,
    scaler: torch.amp.GradScaler,
    *,
    clip_norm: float,
    dtype: torch.dtype,  # of the forward pass
) -> float:  # mean loss
    "Train for one epoch; raises MusemoError where the loss is no finite number."
    model.train()
    device, total, seen = model.head.weight.device, 0.0, 0
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for step, (pixels, labels, _) in enumerate(batches, 1):
        with autocast(device, dtype):
            predicted = model(pixels.to(device, non_blocking=True))
        loss = loss_function(predicted, labels.to(device, non_blocking=True))
        if not torch.isfinite(loss):
            raise MusemoError(
                f"vit training: loss = {loss.item()} at batch {step}; lower "
                "training.learning_rate or set precision=float32"
            )
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(weights, clip_norm)
        scaler.step(optimizer)
        scaler.update()
        cosine.step()
        total, seen = total + loss.item() * len(labels), seen + len(labels)
    return total / seen


# %% [markdown]
# ## Judged by real songs
#
# Once an epoch, and by songs, not windows: what chooses the best epoch is what section 12 will
# measure.


# %%
#| export
def judge_epoch(
    model: EmotionViT,
    loader: DataLoader,  # validation songs
    loss_function: nn.Module,
    *,
    dtype: torch.dtype,  # of the forward pass
) -> dict[str, float]:
    "Judge the model on real validation songs; raises MusemoError for a loss that is no number."
    rated = torch.from_numpy(loader.dataset.labels)
    predicted = torch.from_numpy(predict_songs(model, loader, dtype=dtype))
    device = model.head.weight.device
    loss = loss_function(predicted.to(device), rated.to(device)).item()
    if not np.isfinite(loss):
        raise MusemoError(f"vit training: validation loss = {loss}; set precision=float32")
    valence, arousal = (predicted - rated).abs().mean(dim=0).tolist()
    return {"val_loss": loss, "val_mae_valence": valence, "val_mae_arousal": arousal}


# %% [markdown]
# ## The loop
#
# Early stopping is the specification's: after `patience` epochs without a better validation
# loss, training ends, whatever the schedule still had in store. Validation parts are small and
# noisy, so a run may end before its last block thaws; the history shows where.


# %%
#| export
def train_vit(
    model: EmotionViT,  # on its device
    loaders: dict[str, DataLoader],  # train and val, from section 9
    config: Config,
    *,
    on_epoch: Callable[[dict], None] | None = None,  # called with each epoch's row
) -> tuple[list[dict], dict[str, torch.Tensor]]:  # a row an epoch; the best epoch's weights
    "Train by the schedule; raises MusemoError where a loss is no number."
    settings, device = config.training, model.head.weight.device
    dtype = pick_precision(device, config.precision)
    loss_function = WeightedEmotionLoss(settings.valence_weight, settings.arousal_weight).to(device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    phases = {first: rest for first, *rest in schedule_phases(settings)}
    history, best, best_state = [], {"val_loss": np.inf, "epoch": 0}, {}
    for epoch in progress(range(1, settings.epochs + 1), desc="ViT epochs"):
        if epoch in phases:
            left, blocks = phases[epoch]
            steps = left * len(loaders["train"])
            optimizer, cosine = start_phase(model, settings, blocks=blocks, steps=steps)
        row = {"epoch": epoch, "trainable": count_trainable(model)}
        row["learning_rate"] = optimizer.param_groups[0]["lr"]
        row["train_loss"] = train_epoch(
            model,
            loaders["train"],
            loss_function,
            optimizer,
            cosine,
            scaler,
            clip_norm=settings.clip_norm,
            dtype=dtype,
        )
        row |= judge_epoch(model, loaders["val"], loss_function, dtype=dtype)
        history.append(row)
        if row["val_loss"] < best["val_loss"]:
            best = row
            best_state = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
        if on_epoch:
            on_epoch(row)
        if epoch - best["epoch"] >= settings.patience:
            break
    return history, best_state


# %% [markdown]
# Six made-up songs whose picture is their label, a tiny ViT, and no files: the loss falls, the
# schedule thaws in epoch 3, and what comes back are the weights of the best epoch.


# %%
class MadeSongs(TensorDataset):
    labels = np.linspace(-0.8, 0.8, 6, dtype=np.float32)[:, None].repeat(2, axis=1)


labels = torch.from_numpy(MadeSongs.labels)
pictures = labels[:, :1, None, None] + 0.1 * torch.randn(6, 3, 32, 32)
made = DataLoader(MadeSongs(pictures, labels, torch.arange(6)), batch_size=3)
settings = {"training.epochs": 8, "training.unfreeze": [[3, 1]], "training.patience": 8}
settings |= {"training.learning_rate": 0.01, "training.backbone_rate": 1.0}
config = make_config("smoke", settings)
start_at_mean(model, labels)
history, best_state = train_vit(model, {"train": made, "val": made}, config)
test_eq([row["trainable"] for row in history[1:4]], [34, 34 + 2224 + 32, 34 + 2224 + 32])
best = min(history, key=lambda row: row["val_loss"])
assert best["val_loss"] < 0.5 * history[0]["val_loss"]
model.load_state_dict(best_state)
answers = torch.from_numpy(predict_songs(model, made))
test_close(float(loss_function(answers, labels)), best["val_loss"], eps=1e-6)

# %% [markdown]
# A rate of zero gain stops early: with `patience` 1 the second epoch without gain is never
# trained. A loss that is no number stops with the way out.

# %%
stuck = make_config("smoke", {"training.patience": 1, "training.learning_rate": 1e-5})
broken = DataLoader(MadeSongs(pictures * torch.nan, labels, torch.arange(6)), batch_size=3)
test_fail(
    lambda: train_vit(model, {"train": broken, "val": made}, stuck),
    contains="loss = nan at batch 1",
)


# %% [markdown]
# ## The stage
#
# The best weights, and beside them the history with a description of the model: with both,
# section 12 opens the model again and needs neither hub nor checkpoint.


# %%
#| export
def fit_vit(run: Run, config: Config) -> dict:  # the content of vit_history.json
    "Train this run's ViT; raises MusemoError without weights, songs or a finite loss."
    seed_everything(seed_for(config.seed, "vit"))
    try:
        model = build_vit(config)
    except WeightsError as error:
        raise MusemoError(str(error)) from error
    loaders = build_loaders(run, config, mean=model.mean, std=model.std)
    start_at_mean(model, torch.from_numpy(loaders["train"].dataset.labels))
    model.to(pick_device(config.device))
    epochs, best_state = train_vit(model, loaders, config)
    record = {
        "best_epoch": min(epochs, key=lambda row: row["val_loss"])["epoch"],
        "stopped_early": len(epochs) < config.training.epochs,
        "epochs": epochs,
        "model": describe_vit(model),
        "units": {
            "loss": "weighted squared error on [-1, 1]",
            "val_mae": "on [-1, 1]",
            "learning_rate": "of the head, at the epoch's start",
            "trainable": "parameters",
        },
    }
    run.save("vit.safetensors", best_state)
    run.save("vit_history.json", record)
    return record


# %% [markdown]
# ## On the run
#
# Training this run's ViT. The table is the history: what could move, at which rate, and what it
# brought on the validation songs.

# %% tags=["parameters"]
run_folder = None  # a run's folder; None: a run at the smoke size, made on the spot

# %%
#| hide
import pandas as pd

from musemo.core import COLORS, load_part, subplots
from musemo.pipeline import open_run

run, config = open_run(run_folder, before=11)

# %%
trained = fit_vit(run, config)
table = pd.DataFrame(trained["epochs"]).set_index("epoch")
table.style.format(precision=4).format("{:,}", subset="trainable").format(
    "{:.1e}", subset="learning_rate"
)

# %% [markdown]
# The first figure of validation is after one epoch; the grey line is the mean predictor, where
# training began. A training loss that falls while validation rises is overfitting: the epochs
# right of the dashed line were thrown away.

# %%
songs = load_part(run, "val")[0][["valence", "arousal"]].to_numpy()
middle = load_part(run, "train")[0][["valence", "arousal"]].mean().to_numpy()
shares = np.array([config.training.valence_weight, config.training.arousal_weight])
floor = float(((songs - middle) ** 2 @ shares).mean())
figure, axes = subplots(1, 3, size=(3.8, 2.8))
axes[0].plot(table["train_loss"], color=COLORS["real"], label="training (windows)")
axes[0].plot(table["val_loss"], color=COLORS["model"], label=f"validation ({len(songs)} songs)")
axes[0].axhline(floor, color=COLORS["floor"], label="mean predictor, validation")
axes[0].set(title="Loss", ylabel="weighted squared error")
axes[1].plot(table["val_mae_valence"], color=COLORS["real"], label="valence")
axes[1].plot(table["val_mae_arousal"], color=COLORS["model"], label="arousal")
axes[1].set(title="Validation songs", ylabel="mean absolute error on [-1, 1]")
axes[2].step(table.index, table["trainable"], where="mid", color=COLORS["third"])
axes[2].set(title="Trainable", ylabel="parameters (count)", yscale="log")
for panel in axes:
    panel.set_xlabel("epoch")
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.axvline(trained["best_epoch"], color=COLORS["floor"], linestyle="--")
for panel in axes[:2]:
    panel.legend()
best_loss = table.loc[trained["best_epoch"], "val_loss"]
run.headline(
    "11_vit_training",
    f"validation loss {best_loss:.4f} in epoch {trained['best_epoch']} of {len(table)}, "
    f"mean predictor {floor:.4f} ({len(songs)} songs)",
    figure,
)
