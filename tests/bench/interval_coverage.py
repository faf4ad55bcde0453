"""Measure what prediction intervals hold, over many splits: python tests/bench/interval_coverage.py

By default on the songs that `musemo demo` composes. A ridge on statistics of the spectrogram stands
in for the model: it takes a second a split. Coverage and width of intervals with and without the
raters' spread, and the coverage within each genre (of composed songs: the ensemble).
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from musemo.config import Config
from musemo.core import Run, rng_for
from musemo.data import prepare_data
from musemo.demo import draw_cues
from musemo.evaluation import song_statistics
from musemo.intervals import calibrate, held, learn_spread, unscaled
from musemo.opening import with_data
from musemo.presets import make_config
from musemo.readout import ridge_regression
from musemo.splitting import split_songs

LEAST = 10  # songs of a genre, over all splits


def read_songs(config: Config) -> tuple[pd.DataFrame, np.ndarray]:
    "Prepare the songs and describe them."
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        prepare_data(run, config)
        songs = run.load("songs.csv")
        songs = songs[songs["status"] == "ok"].reset_index(drop=True)
        log_mel = run.load("logmel.npy")[songs["row"].to_numpy(int)]
        return songs, song_statistics(log_mel, songs["frames"].to_numpy(int))


def judge_split(
    songs: pd.DataFrame, told: np.ndarray, parts: np.ndarray, config: Config
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], np.ndarray]:
    "Give who was held (N, 2) and how wide the intervals are, with and without spread; the power."
    names = ["valence", "arousal"]
    rated, spread = songs[names].to_numpy(), songs[[f"{x}_std" for x in names]].to_numpy()
    train, val, test = (parts == part for part in ("train", "val", "test"))
    ridge = make_pipeline(StandardScaler(), ridge_regression()).fit(told[train], rated[train])
    predicted, judge = np.clip(ridge.predict(told), -1, 1), config.judgement
    options = {"powers": judge.spread_powers, "folds": judge.spread_folds}
    groups = songs["group"][train]
    learnt = learn_spread(told[train], rated[train], spread[train], groups, **options)
    answers = {}
    for name, one in {"scaled": learnt, "unscaled": unscaled(learnt)}.items():
        error = (predicted - rated)[val]
        one = calibrate(one, told[val], error, coverage=judge.coverage)
        low, high = one.around(predicted[test], told[test])
        answers[name] = held(rated[test], low, high), high - low
    return answers, learnt.power


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where demo music lies")
    parser.add_argument("--data", default="", help="folder in DEAM's layout; empty: the demo")
    parser.add_argument("--genres", type=Path, help="table of song_id and genre")
    options = parser.parse_args()
    config = with_data(make_config("demo", {"data.path": options.data}), options.runs)
    songs, told = read_songs(config)
    ids = songs["song_id"]
    genre = [] if options.data else [draw_cues(0, song).ensemble for song in ids]
    if options.genres:
        table = pd.read_csv(options.genres).set_index("song_id")
        genre = table.iloc[:, 0].reindex(ids).fillna("none").tolist()
    shares = {"validation": config.data.validation, "test": config.data.test}
    rows, inside, powers = [], [], []
    for split in range(options.splits):
        rng = rng_for(options.seed, "coverage", split)
        parts = np.array(split_songs(songs["group"], **shares, rng=rng))
        answers, power = judge_split(songs, told, parts, config)
        powers.append(power)
        for name, (holds, width) in answers.items():
            rows.append((name, *holds.mean(0), *width.mean(0)))
        inside.append(pd.DataFrame(answers["scaled"][0]).assign(i=np.flatnonzero(parts == "test")))
    columns = ["who", "coverage V", "coverage A", "width V", "width A"]
    table = pd.DataFrame(rows, columns=columns).set_index("who")
    sizes = {part: int((parts == part).sum()) for part in ("train", "val", "test")}
    print(
        f"{len(songs)} songs, {options.splits} splits, seed {options.seed}, songs a split: {sizes}"
    )
    for who, one in table.groupby(level=0):
        both = one[["coverage V", "coverage A"]].to_numpy()
        print(
            f"{who}: coverage {both.mean():.4f} (V, A: {both.mean(0).round(3)}), of a split "
            f"{both.min():.2f} .. {both.max():.2f}, sd {both.std():.3f}; "
            f"mean width V, A: {one[['width V', 'width A']].mean().round(4).tolist()}"
        )
    wider = (table.loc["scaled"].to_numpy() - table.loc["unscaled"].to_numpy())[:, 2:]
    error = wider.std(0, ddof=1) / len(wider) ** 0.5
    print(f"scaled minus unscaled width, V, A: {wider.mean(0).round(4)} +- {error.round(4)}")
    print(f"mean power of the spread, V, A: {np.mean(powers, axis=0).round(2)}")
    if len(genre):
        whole = pd.concat(inside)
        within = whole[[0, 1]].groupby(np.array(genre)[whole["i"]]).agg(["mean", "count"])
        within = within[within[0]["count"] >= LEAST]
        for i, axis in enumerate(("valence", "arousal")):
            told = within[i]["mean"].sort_values().round(3).to_dict()
            print(f"{axis}, coverage within a genre:", told)


if __name__ == "__main__":
    main()
