"""One fold: a run of its own, whose songs to judge nothing in it has seen."""

import logging
import os
import shutil
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd

from musemo.annotations import LABELS
from musemo.config import Config
from musemo.core import Run, load_part, rng_for, seed_for
from musemo.dataset import WindowDataset, load_synthetic, make_loader
from musemo.evaluation import predict_baselines
from musemo.execution import log_to
from musemo.presets import read_config
from musemo.processes import end_with_parent
from musemo.sections import SECTIONS, Stage
from musemo.tracking import follow_part
from musemo.verdict import RIVALS, deal_folds, folds_key
from musemo.vit import predict_songs
from musemo.vit_training import train_model

log = logging.getLogger("musemo")


def fold_config(config: Config, seed: int, fold: int) -> Config:
    "Give a fold a seed of its own and one generator, chosen before anything is judged."
    tree, name = config.model_dump(mode="json"), config.synthesis.generator
    if name == "best":
        name = "flow" if "flow" in config.generators else config.generators[-1]
    tree["seed"] = seed_for(config.seed, "fold", seed, fold)
    tree["generators"], tree["synthesis"]["generator"] = [name], name
    return read_config(tree)


def fold_folder(run: Run, config: Config, seed: int, fold: int, folds: int) -> Path:
    "Say where a fold lies: other songs or settings have other folders, so nothing stale is read."
    return run.path(f"folds/{folds_key(run, config)}/{folds}-seed{seed}-fold{fold}")


def make_run(folder: Path, songs: pd.DataFrame, log_mel: Path) -> Run:
    "Lay out a run of other parts on the same spectrograms, which are linked and not copied."
    run = Run(folder)
    run.save("songs.csv", songs)
    if not run.has("logmel.npy"):
        try:
            os.link(log_mel, run.path("logmel.npy"))
        except OSError:  # another disk, or one without links
            part = run.path("logmel.npy.part")
            shutil.copyfile(log_mel, part)
            os.replace(part, run.path("logmel.npy"))
    return run


def needs_validation(config: Config) -> bool:
    "Say whether training stops, or thaws, by songs that it does not learn from."
    return config.training.recipe == "spec" or config.small.thaw


def make_fold(run: Run, config: Config, seed: int, fold: int, folds: int) -> Run:
    "Lay out a fold: one part to judge, the others to train (and one to stop by, where needed)."
    songs = run.load("songs.csv")
    usable = songs["status"] == "ok"
    groups = songs["group"][usable].astype(str).tolist()
    dealt = deal_folds(groups, folds, rng_for(config.seed, "folds", folds, seed))
    parts = np.full(len(dealt), "train", dtype=object)
    if needs_validation(config):
        parts[dealt == (fold + 1) % folds] = "val"
    parts[dealt == fold] = "test"
    songs["split"] = ""
    songs.loc[usable, "split"] = parts
    folder = fold_folder(run, config, seed, fold, folds)
    return make_run(folder, songs, run.path("logmel.npy"))


def make_generated(fold: Run, config: Config, *, leaky: bool = False) -> Run:
    "Train the generator on a fold's training songs, or on all of them, and draw songs."
    if leaky:
        songs = fold.load("songs.csv")
        songs.loc[songs["status"] == "ok", "split"] = "train"
        fold = make_run(fold.path("leaky"), songs, fold.path("logmel.npy"))
    name, made = config.generators[0], ("synthetic.npy", "synthetic.csv")
    training = next(s for s in SECTIONS[4].all_stages if s.generator == name)
    for stage in (training, Stage("synthesis:synthesize", made)):
        if not fold.has(*stage.artifacts):
            stage.make(fold, config)
    return fold


def read_fold(fold: Run, config: Config, arm: str) -> dict[str, WindowDataset]:
    "Read what an arm learns from, and the songs that judge it."
    songs, log_mel = load_part(fold, "train")
    options = {"seed": seed_for(config.seed, "dataset")}
    if arm != "model":
        source = make_generated(fold, config, leaky=arm == "leaky")
        made, labels = load_synthetic(source, config.window)
        kept = round(config.judgement.judged_generated * len(made))
        options["synthetic"], options["synthetic_labels"] = made[kept:], labels[kept:]
        judged = pd.DataFrame(labels[:kept], columns=LABELS).assign(frames=config.window)
    if arm == "generated":
        songs, log_mel = songs[:0], log_mel[:0]
    data = {"train": WindowDataset(songs, log_mel, config, **options)}
    if arm == "augmented" and kept:
        judged["song_id"] = -1
        data["mixed"] = WindowDataset(judged, made[:kept], config)
    if needs_validation(config):
        data["val"] = WindowDataset(*load_part(fold, "val"), config)
    return data | {"test": WindowDataset(*load_part(fold, "test"), config)}


def answer_fold(fold: Run, config: Config, arm: str) -> None:
    "Train an arm on a fold and write its answers for the judged songs, ARM.csv."
    data = read_fold(fold, config, arm)
    model, _ = train_model(data, config, seed=config.seed, folder=fold.folder)
    for name, part in (("mixed", "mixed"), (arm, "test")):  # the arm's own file is the last
        if part in data:
            answers = predict_songs(model, make_loader(data[part], config)).astype(float).round(6)
            table = pd.DataFrame(answers, columns=LABELS)
            asked = pd.DataFrame(data[part].labels, columns=[f"{x}_asked" for x in LABELS])
            table = pd.concat([table, asked.astype(float)], axis=1)
            fold.save(f"{name}.csv", table.assign(song_id=data[part].songs["song_id"]))


def answer_baselines(fold: Run, config: Config) -> None:
    "Write what the rivals answer; they need no songs to stop by and learn from these as well."
    parts = [load_part(fold, name) for name in ("train", "val")]
    songs = pd.concat([table for table, _ in parts], ignore_index=True)
    known = WindowDataset(songs, np.concatenate([array for _, array in parts]), config)
    judged = WindowDataset(*load_part(fold, "test"), config)
    for name, answers in predict_baselines(known, judged).items():
        table = pd.DataFrame(answers.astype(float).round(6), columns=LABELS)
        fold.save(f"{name}.csv", table.assign(song_id=judged.songs["song_id"]))


def judge_fold(run: Run, config: Config, place: tuple[int, int, int], arm: str, workers: int):
    "Make one arm's answers on one fold, where they are not there yet."
    apart = workers > 1  # in a process of its own, to which joblib gives its share of the cores
    if apart:
        end_with_parent()
        os.environ["MUSEMO_QUIET"] = "1"  # its bars would write over the others'
    begun, name = time.monotonic(), f"seed{place[0]}-fold{place[1]}-{arm}"
    with log_to(run) if apart else nullcontext(), follow_part(name):
        fold, config = make_fold(run, config, *place), fold_config(config, *place[:2])
        if not fold.has(*(f"{name}.csv" for name in RIVALS)):
            answer_baselines(fold, config)
        if not fold.has(f"{arm}.csv"):
            answer_fold(fold, config, arm)
            log.info("%s: done in %.1f s", name, time.monotonic() - begun)
