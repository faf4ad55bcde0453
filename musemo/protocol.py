"""Repeated folds: every arm on each fold of each seed, its figures, and what they say."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import cpu_count, delayed

from musemo.annotations import LABELS
from musemo.config import Config
from musemo.core import MusemoError, Run, pick_device, rng_for
from musemo.folds import fold_config, fold_folder, judge_fold, needs_validation
from musemo.jobs import run_jobs
from musemo.pipeline import run_suite, working_run, write_index
from musemo.records import load_record
from musemo.sections import SECTIONS
from musemo.verdict import (
    ARMS,
    RIVALS,
    compare_arms,
    folds_key,
    folds_tables,
    leakage_table,
    noise_ceiling,
    score_folds,
    score_leakage,
)
from musemo.weights import find_weights

DRAWS = 1000  # of the bootstrap


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
            | compare_arms(scores, redrawn, one, other, groups=songs["group"].nunique())
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
    drawn = config.synthesis.songs
    if "augmented" in arms and round(drawn * (1 - config.judgement.judged_generated)) < 1:
        raise MusemoError(
            f"synthesis.songs = {drawn}: leaves no generated songs to learn from; raise it, or "
            "evaluate with --no-generated"
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
    workers = workers or (cpu_count() if pick_device(config.device).type == "cpu" else 1)
    places = [(seed, fold, folds) for seed in range(seeds) for fold in range(folds)]
    for n, arm in enumerate(arms, 1):
        jobs = (delayed(judge_fold)(run, config, place, arm, workers) for place in places)
        run_jobs(jobs, workers=workers, desc=f"{ARMS[arm]}, {n} of {len(arms)}", total=len(places))
        record = summarize(run, config, folds, seeds, arms[:n])
        write_index(run, config)
    return record


def show_on_page(run: Run, config: Config) -> None:
    "Make page 12 of a finished run anew: it shows what the folds found."
    done = load_record(run)["sections"]
    if all(section.name in done for section in SECTIONS):
        run_suite(config, run.folder, only=len(SECTIONS))


def show_folds(record: dict) -> str:
    "Lay out folds.json for a terminal: figures, gains and the verdict."
    figures, gains, words = folds_tables(record)
    parts = [figures.to_string(), gains.to_string(index=False), words]
    if record["leakage"]:
        parts.append(leakage_table(record).to_string())
    return "\n\n".join(parts)
