"""Repeated folds: each fold is a run of its own, judged on songs that nothing in it has seen."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from joblib import delayed

from musemo.annotations import LABELS
from musemo.config import Config
from musemo.core import MusemoError, Run, load_part, pick_device, rng_for, seed_for
from musemo.jobs import run_jobs
from musemo.dataset import WindowDataset, load_synthetic, make_loader
from musemo.evaluation import predict_baselines
from musemo.pipeline import working_run, write_index
from musemo.sections import SECTIONS, Stage
from musemo.presets import read_config
from musemo.verdict import (
    ARMS,
    RIVALS,
    compare_arms,
    deal_folds,
    folds_key,
    folds_tables,
    leakage_table,
    noise_ceiling,
    score_folds,
    score_leakage,
)
from musemo.vit import predict_songs
from musemo.vit_training import train_model
from musemo.weights import find_weights

DRAWS = 1000  # of the bootstrap


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
        songs.loc[songs["split"] != "", "split"] = "train"
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
    torch.set_num_threads(max(1, os.cpu_count() // workers))
    if workers > 1:  # in a process of its own: its bars would write over the others'
        os.environ["MUSEMO_QUIET"] = "1"
    fold = make_fold(run, config, *place)
    config = fold_config(config, *place[:2])
    if not fold.has("both.csv"):
        answer_baselines(fold, config)
    if not fold.has(f"{arm}.csv"):
        answer_fold(fold, config, arm)


def read_answers(
    run: Run, config: Config, arm: str, songs: pd.DataFrame, folds: int, seeds: int
) -> list[np.ndarray]:  # (N, 2) of each seed, in the order of the songs
    "Read an arm's answers."
    answers = []
    for seed in range(seeds):
        places = [Run(fold_folder(run, config, seed, f, folds)) for f in range(folds)]
        tables = [place.load(f"{arm}.csv") for place in places]
        whole = pd.concat(tables).set_index("song_id")
        answers.append(whole.loc[songs["song_id"], LABELS].to_numpy())
    return answers


def read_leakage(run: Run, config: Config, places: tuple[int, int], answers: dict) -> list[dict]:
    "Score what leaks; answers: who answers -> (N, 2) of each seed, and `rated`."
    if "augmented" not in answers:
        return []  # not yet: the arms of generated songs come later
    (folds, seeds), rated, others = places, answers["rated"], {}
    honest, mixed = [(rated, x) for x in answers["augmented"]], []
    for seed in range(seeds):
        found = [Run(fold_folder(run, config, seed, fold, folds)) for fold in range(folds)]
        tables = [fold.load("mixed.csv") for fold in found if fold.has("mixed.csv")]
        if not tables:
            break
        table = pd.concat(tables)
        asked, told = table[[f"{x}_asked" for x in LABELS]], table[LABELS]
        pairs = (rated, asked.to_numpy()), (honest[seed][1], told.to_numpy())
        mixed.append(tuple(map(np.concatenate, pairs)))
    others |= {"mixed": mixed} if mixed else {}
    if "leaky" in answers:
        others["leaky"] = [(rated, x) for x in answers["leaky"]]
    return score_leakage(honest, others)


def summarize(run: Run, config: Config, folds: int, seeds: int, arms: list[str]) -> dict:
    "Score the arms that are there, compare them pairwise, and write folds.json."
    songs = run.load("songs.csv")
    songs = songs[songs["status"] == "ok"].reset_index(drop=True)
    rated, spread = songs[LABELS].to_numpy(), songs[[f"{x}_std" for x in LABELS]].to_numpy()
    names = [*RIVALS, *arms]
    answers = {name: read_answers(run, config, name, songs, folds, seeds) for name in names}
    options = {"draws": DRAWS, "rng": rng_for(config.seed, "verdict")}
    scores, redrawn = score_folds(rated, answers, songs["group"], **options)
    pairs = [("model", rival) for rival in RIVALS]
    pairs += [(arm, "model") for arm in arms if arm != "model"]
    pairs += [("leaky", "augmented")] if "leaky" in arms else []
    rows = scores.reset_index()
    record = {
        "key": folds_key(run, config),
        "songs": len(songs),
        "folds": folds,
        "seeds": seeds,
        "recipe": config.training.recipe,
        "generator": fold_config(config, 0, 0).generators[0],
        "scores": rows.astype(object).where(rows.notna(), None).to_dict("records"),
        "gains": [
            {"who": one, "over": other}
            | compare_arms(scores, redrawn, one, other, songs=len(songs))
            for one, other in pairs
        ],
        "leakage": read_leakage(run, config, (folds, seeds), answers | {"rated": rated}),
        "ceiling": noise_ceiling(rated, spread, config.data.raters),
        "units": {
            "mae, rmse": "on [-1, 1]; times 4 on 1-9",
            "r2, ccc, r": "1 is perfect; mean over seeds, each over all songs",
            "r2_seeds": "standard deviation over seeds; null: one seed tells none",
            "interval": "95 %, songs redrawn with replacement, those of an artist together",
        },
    }
    run.save("folds.json", record)
    return record


@contextmanager
def working_folds(config: Config, out: Path) -> Iterator[tuple[Run, Config]]:
    "Work in a run, alone, after making what the folds need of it: songs and spectrograms."
    with working_run(config, out, may_change=False) as (run, config, _):
        find_weights(config)
        for section in SECTIONS[:3]:
            for stage in section.stages(config):
                if not run.has(*stage.artifacts):
                    stage.make(run, config)
        yield run, config


def check_folds(run: Run, config: Config, *, folds: int, seeds: int, arms: list[str]) -> None:
    "Raise MusemoError for what would fail only after hours."
    songs, least = run.load("songs.csv"), 2 + needs_validation(config)
    most = songs["group"][songs["status"] == "ok"].nunique()
    if not least <= folds <= most or seeds < 1:
        why = ", one of them to stop by," if least > 2 else ""
        raise MusemoError(
            f"--folds {folds} --seeds {seeds}: needed are {least} folds{why} or more, at most "
            f"{most} (songs, those of an artist counted once), and 1 seed or more"
        )
    if "leaky" in arms and "augmented" not in arms:
        raise MusemoError(
            "--leakage with --no-generated: leakage is measured on a model with generated songs; "
            "leave --no-generated out"
        )
    weight = config.small.synthetic_weight
    if "generated" in arms and config.training.recipe == "small" and not weight:
        raise MusemoError(
            "small.synthetic_weight = 0: generated songs would teach nothing; raise it, or "
            "evaluate with --no-generated"
        )


def evaluate_folds(
    run: Run,  # with songs.csv and logmel.npy
    config: Config,
    *,
    folds: int,
    seeds: int,
    arms: list[str],  # of ARMS, beside the rivals
    workers: int = 0,  # processes; 0: one for each core on a CPU, one on a GPU
) -> dict:  # the content of folds.json
    "Train and judge each arm on each fold of each seed; goes on where it was cut off."
    check_folds(run, config, folds=folds, seeds=seeds, arms=arms)
    workers = workers or (os.cpu_count() if pick_device(config.device).type == "cpu" else 1)
    places = [(seed, fold, folds) for seed in range(seeds) for fold in range(folds)]
    for n, arm in enumerate(arms, 1):
        jobs = (delayed(judge_fold)(run, config, place, arm, workers) for place in places)
        run_jobs(jobs, workers=workers, desc=f"{ARMS[arm]}, {n} of {len(arms)}", total=len(places))
        record = summarize(run, config, folds, seeds, arms[:n])
        write_index(run, config)
    return record


def show_folds(record: dict) -> str:
    "Lay out folds.json for a terminal: figures, gains and the verdict."
    figures, gains, words = folds_tables(record)
    parts = [figures.to_string(), gains.to_string(index=False), words]
    if record["leakage"]:
        parts.append(leakage_table(record).to_string())
    return "\n\n".join(parts)
