"""Repeated folds: nothing judged is seen, nothing is done twice, the verdict is the interval's."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from musemo import folds, protocol
from musemo.cli import app
from musemo.compare import compare_runs
from musemo.core import MusemoError, Run, load_part
from musemo.data import prepare_data
from musemo.folds import fold_config, judge_fold, make_fold, make_generated, read_fold
from musemo.presets import make_config, save_config
from musemo.protocol import evaluate_folds, show_on_page
from musemo.records import load_record
from musemo.sections import SECTIONS
from musemo.verdict import (
    RIVALS,
    compare_arms,
    deal_folds,
    folds_tables,
    leakage_table,
    load_folds,
    noise_ceiling,
    score_folds,
)
from tests.test_small import SMALL, made_songs

TINY = SMALL | {"flow.steps": 3, "flow.draw_steps": 2, "synthesis.songs": 6, "gan.samples": 8}
TINY |= {"gan.frames": 64, "generators": ["gan", "flow"], "flow.channels": [8, 16, 16]}


def config_of(**values):
    return make_config("smoke", TINY | {k.replace("__", "."): v for k, v in values.items()})


def write_run(folder, count=20):
    run = Run(folder)
    songs, log_mel = made_songs(count)
    songs["status"], songs["group"] = "ok", [f"artist {i // 2}" for i in range(count)]
    songs["valence_std"], songs["arousal_std"] = 0.2, 0.3
    run.save("songs.csv", songs)
    run.save("logmel.npy", log_mel)
    return run


def test_folds_part_all_songs_and_no_artist(tmp_path):
    run, config = write_run(tmp_path), config_of()
    judged = []
    for fold in range(3):
        songs = make_fold(run, config, 0, fold, 3).load("songs.csv")
        parts = songs.groupby("split")["group"].agg(set)
        assert not parts["train"] & parts["test"] and set(parts.index) == {"train", "test"}
        judged += songs.loc[songs["split"] == "test", "song_id"].tolist()
    assert sorted(judged) == list(range(20))
    for change in ({"training__recipe": "spec"}, {"small__thaw": True}):
        config = config_of(**change)
        fold = make_fold(run, config, 0, 0, 3)
        assert set(fold.load("songs.csv")["split"]) == {"train", "val", "test"}
        assert len(read_fold(fold, config, "model")["val"].songs) > 0
    config = config_of()
    other = make_fold(run, config, 1, 0, 3).load("songs.csv")
    assert not other["split"].equals(make_fold(run, config, 0, 0, 3).load("songs.csv")["split"])


def test_groups_are_dealt_evenly():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 60, 200).astype(str).tolist()
    fold = deal_folds(groups, 5, rng)
    assert np.ptp(np.bincount(fold)) <= 2
    assert all(
        len({f for g, f in zip(groups, fold, strict=True) if g == name}) == 1 for name in groups
    )


def test_nothing_of_the_judged_songs_reaches_model_or_generator(tmp_path):
    "Judged songs with other sounds and other labels: the same generator, the same songs drawn."
    config = fold_config(config_of(), 0, 0)
    assert config.generators == ("flow",)
    drawn, learnt = [], []
    for i, change in enumerate((False, True)):
        run = write_run(tmp_path / str(i))
        if change:
            fold = make_fold(run, config, 0, 0, 4)
            songs, log_mel = run.load("songs.csv"), np.array(run.load("logmel.npy"))
            judged = fold.load("songs.csv")["split"] == "test"
            songs.loc[judged, ["valence", "arousal"]] = 0.9
            log_mel[songs["row"][judged]] = 0.5
            fold.path("logmel.npy").unlink()
            run.save("songs.csv", songs)
            run.save("logmel.npy", log_mel)
        fold = make_fold(run, config, 0, 0, 4)
        made = make_generated(fold, config)
        drawn.append(made.path("synthetic.npy").read_bytes())
        train = read_fold(fold, config, "augmented")["train"]
        learnt.append((train.songs["song_id"].tolist(), np.array(train.log_mel).tobytes()))
    assert drawn[0] == drawn[1] and learnt[0] == learnt[1]
    leaky = make_generated(fold, config, leaky=True)
    assert len(load_part(leaky, "train")[0]) == 20
    assert leaky.path("synthetic.npy").read_bytes() != drawn[1]


def test_folds_are_judged_kept_and_summed_up(tmp_path, monkeypatch):
    run, config = write_run(tmp_path), config_of()
    arms = ["model", "augmented", "generated", "leaky"]
    options = {"folds": 2, "seeds": 2, "workers": 1}
    record = evaluate_folds(run, config, arms=arms, **options)
    text = run.path("folds.json").read_text()
    assert json.loads(text) == record
    assert len(record["scores"]) == 2 * (len(RIVALS) + len(arms))
    pairs = {(gain["who"], gain["over"]) for gain in record["gains"]}
    assert {("model", "both"), ("augmented", "model"), ("leaky", "augmented")} <= pairs
    figures, gains, words = folds_tables(record)
    assert len(figures) == len(record["scores"]) and len(gains) == len(pairs)
    assert "20 songs, 2 folds x 2 seeds" in words and "Adding songs of the flow" in words
    leakage = {row["protocol"]: row for row in record["leakage"]}
    assert list(leakage) == ["honest", "mixed", "leaky"]
    honest = next(x for x in record["scores"] if (x["axis"], x["who"]) == ("arousal", "augmented"))
    assert leakage["honest"]["arousal r2"] == pytest.approx(honest["r2"])
    assert leakage["mixed"]["songs"] == 20 + 2 * 1 > leakage["leaky"]["songs"] == 20

    def again(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(folds, "train_model", again)
    evaluate_folds(run, config, arms=arms, **options)
    assert run.path("folds.json").read_text() == text
    make_fold(run, config, 0, 1, 2).path("model.csv").unlink()
    with pytest.raises(AssertionError, match="trained again"):
        evaluate_folds(run, config, arms=arms, **options)
    with pytest.raises(AssertionError, match="trained again"):  # other settings, other answers
        evaluate_folds(run, config_of(small__trees=11), arms=arms[:1], **options)


def test_a_verdict_needs_an_interval_off_zero():
    rng = np.random.default_rng(0)
    rated = rng.uniform(-1, 1, (120, 2))
    good, bad = (rated + rng.normal(0, s, rated.shape) for s in (0.2, 0.5))
    arms = {"good": [good], "bad": [bad], "same": [good.copy()]}

    def verdicts(one, other, songs=120, artists=120):
        some = {name: [p[:songs] for p in seeds] for name, seeds in arms.items()}
        groups = np.arange(songs) % artists
        found = score_folds(rated[:songs], some, groups, draws=200, rng=rng)
        told = compare_arms(*found, one, other, groups=min(songs, artists))
        return {told[axis]["verdict"] for axis in told}

    assert verdicts("good", "bad") == {"helps"} and verdicts("bad", "good") == {"does not help"}
    assert verdicts("good", "same") == verdicts("good", "bad", songs=3) == {"cannot be told"}
    # The songs of a few artists tell no more than so many songs.
    assert verdicts("good", "bad", artists=3) == {"cannot be told"}
    assert verdicts("good", "bad", artists=40) == {"helps"}


def test_the_ceiling_falls_with_the_raters_disagreement():
    rated = np.random.default_rng(0).normal(0, 0.3, (500, 2))
    r2 = [noise_ceiling(rated, np.full((500, 2), s), 10)["valence"]["r2"] for s in (0.0, 0.3, 2.0)]
    assert r2[0] == 1 and r2[2] == 0 and r2[1] == pytest.approx(0.9, abs=0.02)
    assert noise_ceiling(rated, np.full((500, 2), np.nan), 10)["valence"]["r2"] is None


def test_too_few_folds_are_refused(tmp_path):
    run, one = write_run(tmp_path), {"seeds": 1, "arms": ["model"]}
    with pytest.raises(MusemoError, match="needed are 2 folds or more, at most 10"):
        evaluate_folds(run, config_of(), folds=1, **one)
    with pytest.raises(MusemoError, match="at most 10 .*an artist"):
        evaluate_folds(run, config_of(), folds=11, **one)
    for change in ({"training__recipe": "spec"}, {"small__thaw": True}):
        with pytest.raises(MusemoError, match="needed are 3 folds, one of them to stop by"):
            evaluate_folds(run, config_of(**change), folds=2, **one)


def test_arms_that_cannot_be_judged_are_refused_at_once(tmp_path):
    run, size = write_run(tmp_path), {"folds": 2, "seeds": 1}
    with pytest.raises(MusemoError, match="leave --no-generated out"):
        evaluate_folds(run, config_of(), arms=["model", "leaky"], **size)
    config = config_of(small__synthetic_weight=0)
    with pytest.raises(MusemoError, match="synthetic_weight = 0"):
        evaluate_folds(run, config, arms=["model", "augmented", "generated"], **size)
    with pytest.raises(MusemoError, match="synthesis.songs = 0: leaves no generated songs"):
        evaluate_folds(run, config_of(synthesis__songs=0), arms=["model", "augmented"], **size)
    assert not run.path("folds").exists()


def test_folds_are_known_by_songs_and_settings_alone(tmp_path):
    run, config = write_run(tmp_path), config_of()
    evaluate_folds(run, config, folds=2, seeds=1, arms=["model"], workers=1)
    assert load_folds(run, config_of(data__workers=1, data__cache="elsewhere"))
    assert load_folds(run, config_of(small__trees=11)) is None
    songs = run.load("songs.csv")
    for change in ({"valence": 0.5}, {"content": "other sound"}):
        run.save("songs.csv", songs.assign(**change))
        assert load_folds(run, config) is None


def test_songs_that_are_left_out_teach_no_generator(tmp_path):
    run, config = write_run(tmp_path), config_of()
    songs = run.load("songs.csv")
    out = songs[:1].assign(song_id=99, status="no_audio", row=-1, frames=0)
    run.save("songs.csv", pd.concat([songs, out]))
    fold = make_fold(run, config, 0, 0, 4)
    leaky = make_generated(fold, fold_config(config, 0, 0), leaky=True)
    assert len(load_part(leaky, "train")[0]) == 20
    fold.save("both.csv", songs)  # all that was written when a process was killed
    judge_fold(run, config, (0, 0, 4), "model", 1)
    assert fold.has(*(f"{name}.csv" for name in RIVALS))


def test_songs_of_one_label_have_no_r2_and_no_gain(tmp_path):
    run, config = write_run(tmp_path), config_of()
    run.save("songs.csv", run.load("songs.csv").assign(valence=0.5))
    record = evaluate_folds(run, config, folds=2, seeds=1, arms=["model"], workers=1)
    assert {gain["valence"]["r2_gain"] for gain in record["gains"]} == {None}
    assert all(gain["arousal"]["r2_gain"] is not None for gain in record["gains"])
    assert "-" in set(folds_tables(record)[1]["valence, gain in R2"])
    record["gains"].append(record["gains"][0] | {"who": "augmented", "over": "model"})
    run.save("folds.json", record)
    save_config(run, config)
    page = compare_runs([tmp_path, tmp_path], tmp_path / "both.html").read_text()
    assert "cannot be told: - " in page
    row = {"protocol": "honest", "songs": 20} | dict.fromkeys(("arousal r2", "arousal ccc"), 0.5)
    row |= dict.fromkeys(("valence r2", "valence ccc"))
    assert leakage_table({"leakage": [row]}).loc[:, "valence R2"].tolist() == ["-"]


def test_the_command_judges_and_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = [f"--set={k}={json.dumps(v) if isinstance(v, list) else v}" for k, v in TINY.items()]
    command = ["evaluate", "--preset", "smoke", "--folds", "2", "--seeds", "1", "--no-generated"]
    monkeypatch.setenv("MUSEMO_LOG", "")
    command += ["--set", "data.demo_songs=12", "--log", "tensorboard", "--workers", "2"]
    result = CliRunner().invoke(app, [*command, *settings])
    assert result.exit_code == 0, result.output
    assert "this model, real songs" in result.output and "folds.json" in result.output
    run = tmp_path / "runs/smoke"
    assert (run / "folds.json").is_file()
    assert "this model, real songs" in (run / "index.html").read_text()
    for fold in ("seed0-fold0-model", "seed0-fold1-model"):
        assert re.search(f"INFO {fold}: done in .* s", (run / "run.log").read_text())
        assert list(run.glob(f"logs/{fold}/warm-up/events*"))


def test_page_12_of_a_finished_run_is_made_anew(tmp_path, monkeypatch):
    run, made = Run(tmp_path), []
    monkeypatch.setattr(protocol, "run_suite", lambda *_, **options: made.append(options))
    for count in (11, 12):
        done = {section.name: 1.0 for section in SECTIONS[:count]}
        run.save("run.json", load_record(run) | {"sections": done})
        show_on_page(run, config_of())
    assert made == [{"only": 12}]


@pytest.mark.parametrize(("workers", "inner"), [(1, True), (2, False)])
def test_bars_of_several_processes_do_not_mix(workers, inner, tmp_path, monkeypatch, capfd):
    for name in ("MUSEMO_QUIET", "CI"):
        monkeypatch.delenv(name, raising=False)
    run = write_run(tmp_path)
    evaluate_folds(run, config_of(), arms=["model"], folds=2, seeds=1, workers=workers)
    told = capfd.readouterr().err
    # Two folds that end in the same tenth of a second are one step of the bar.
    assert re.search("1 of 1: +(50|100)%", told) and ("warm-up" in told) == inner


def test_deam_is_judged_by_published_and_by_corrected_labels(real_data, tmp_path):
    "The ten clips are all of the exchanged part: what told arousal tells valence, and back."
    deam, found = str(real_data("deam")), {}
    for labels in ("corrected", "published"):
        config = config_of(data__path=deam, data__cache=str(tmp_path), data__labels=labels)
        run = Run(tmp_path / labels)
        save_config(run, config)
        prepare_data(run, config)
        record = evaluate_folds(run, config, arms=["model"], folds=2, seeds=1, workers=1)
        found[labels] = {(row["axis"], row["who"]): row["r2"] for row in record["scores"]}
    for who in RIVALS:
        for one, other in (("valence", "arousal"), ("arousal", "valence")):
            expected = found["corrected"][one, who]
            assert found["published"][other, who] == pytest.approx(expected, abs=1e-6)
    assert found["published"] != found["corrected"]
    page = compare_runs([tmp_path / labels for labels in found]).read_text()
    assert "exchanged back" in page and "left as published" in page
    assert "not judged by the same test songs with the same labels" in page
    assert f"{found['published']['arousal', 'ridge']:.2f} [" in page
