"""The demo music: same bytes every time, DEAM's layout, audible cues, all or nothing."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from musemo.core import MusemoError
from musemo.demo import LEVELS, STATIC, TABLES, compose_demo, draw_cues, rate, write_clip

CUTS = "dynamic (per second annotations)"


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    return compose_demo(tmp_path_factory.mktemp("demo") / "a", songs=3, seconds=4, workers=1)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def level(path: Path) -> float:
    samples, _ = soundfile.read(path)
    return 10 * np.log10(np.mean(samples**2))


def test_same_bytes_with_two_workers(demo, tmp_path):
    again = compose_demo(tmp_path / "b", songs=3, seconds=4, workers=2)
    assert contents(again) == contents(demo)
    assert len(contents(demo)) == 3 + 3 + 1  # sounds, tables, notice


def test_seed_and_song_change_the_music(demo, tmp_path):
    other = compose_demo(tmp_path / "b", songs=1, seconds=4, seed=1, workers=1)
    sounds = [(demo / f"DEAM_audio/MEMD_audio/{k}.mp3").read_bytes() for k in (1, 2, 3)]
    sounds.append((other / "DEAM_audio/MEMD_audio/1.mp3").read_bytes())
    assert len(set(sounds)) == 4


def test_a_song_does_not_depend_on_how_many_there_are(demo, tmp_path):
    small = contents(compose_demo(tmp_path / "b", songs=2, seconds=4, workers=1))
    whole = contents(demo)
    for name in small:
        if name != "README.txt":
            assert whole[name].startswith(small[name]), name


def test_static_table_has_deams_form(demo):
    text = (demo / TABLES / STATIC).read_bytes().decode()
    lines = text.split("\r\n")
    assert lines[0] == "song_id, valence_mean, valence_std, arousal_mean, arousal_std"
    assert [line.split(",")[0] for line in lines[1:]] == ["1", "2", "3", ""]
    assert text.count("\n") == text.count("\r\n") == 4


@pytest.mark.parametrize("name", ["valence", "arousal"])
def test_dynamic_tables_agree_with_the_labels(tmp_path, monkeypatch, name):
    monkeypatch.setattr("musemo.demo.write_clip", lambda *_: None)
    folder = compose_demo(tmp_path / "b", songs=60, seconds=30, workers=1) / TABLES
    table = pd.read_csv(folder / CUTS / f"{name}.csv", index_col="song_id")
    labels = pd.read_csv(folder / STATIC, skipinitialspace=True, index_col="song_id")
    assert list(table.columns) == [f"sample_{ms}ms" for ms in range(15000, 30000, 500)]
    assert table.abs().max().max() <= 1
    assert table.mean(axis=1).corr(labels[f"{name}_mean"]) > 0.9


def test_short_songs_are_annotated_from_half_way(demo):
    columns = pd.read_csv(demo / TABLES / CUTS / "valence.csv").columns
    assert list(columns[1:]) == [f"sample_{ms}ms" for ms in (2000, 2500, 3000, 3500)]


def test_sound_has_its_length_and_never_clips(demo):
    for k in (1, 2, 3):
        samples, sample_rate = soundfile.read(demo / f"DEAM_audio/MEMD_audio/{k}.mp3")
        assert len(samples) / sample_rate == pytest.approx(4, abs=0.1)
        assert 0.01 < np.abs(samples).max() < 1


def test_loud_pieces_are_loud(tmp_path):
    low, high = LEVELS["dynamics"][:2]
    levels = []
    for velocity in (low, (low + high) / 2, high):
        write_clip(tmp_path, 1, 6, 0, dynamics=velocity)
        levels.append(level(tmp_path / "1.mp3"))
    assert np.all(np.diff(levels) > 3)  # dB


def test_labels_follow_the_cues():
    cues = [draw_cues(0, k) for k in range(1, 301)]
    labels = np.stack([rate(c, 0, k).mean(axis=0) for k, c in enumerate(cues, start=1)])
    assert labels.min() >= 1 and labels.max() <= 9
    assert np.abs(labels.mean(axis=0) - (4.9, 4.8)).max() < 0.3
    assert np.all((labels.std(axis=0) > 1) & (labels.std(axis=0) < 1.5))

    def corr(name, k):
        return np.corrcoef([getattr(c, name) for c in cues], labels[:, k])[0, 1]

    assert corr("dynamics", 1) > 0.3 and corr("tempo", 1) > 0.3 and corr("tempo", 0) > 0.2
    assert corr("dissonance", 0) < -0.1
    major = np.array([c.mode == "major" for c in cues])
    minor = np.array([c.mode == "minor" for c in cues])
    assert labels[major, 0].mean() > labels[minor, 0].mean() + 1


def test_says_that_nobody_rated_it(demo):
    text = (demo / "README.txt").read_text()
    assert "NO HUMAN RATED IT" in text and "Eerola" in text and "GNU General Public" in text


@pytest.mark.parametrize(
    "wrong",
    [{"songs": 0}, {"songs": 1745}, {"seconds": 2.9}, {"seconds": 601}, {"seconds": float("nan")}],
)
def test_refuses_what_cannot_be_made(tmp_path, wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(MusemoError, match=f"{name} is {value}"):
        compose_demo(tmp_path / "b", **wrong)
    assert not list(tmp_path.iterdir())


def test_returns_at_once_when_it_is_there(demo, monkeypatch):
    monkeypatch.setattr("musemo.demo.write_tables", lambda *_, **__: pytest.fail("composed again"))
    assert compose_demo(demo, songs=3, seconds=4) == demo


@pytest.mark.parametrize("other", [{"songs": 2}, {"seconds": 5}, {"seed": 1}])
def test_leaves_another_demo_alone(demo, other):
    with pytest.raises(MusemoError, match="3 songs of 4 s, seed 0"):
        compose_demo(demo, **{"songs": 3, "seconds": 4} | other)


def test_two_that_compose_the_same_at_once_share_it(tmp_path, monkeypatch):
    def be_slower(folder, k, *_):
        (folder / f"{k}.mp3").write_text("sound")
        if not (tmp_path / "a").exists():
            monkeypatch.undo()
            compose_demo(tmp_path / "a", songs=1, seconds=3, workers=1)

    monkeypatch.setattr("musemo.demo.write_clip", be_slower)
    monkeypatch.setattr("musemo.demo.run_jobs", lambda jobs, **_: [f(*x) for f, x, _ in jobs])
    assert compose_demo(tmp_path / "a", songs=1, seconds=3, workers=1) == tmp_path / "a"
    assert (tmp_path / "a/DEAM_audio/MEMD_audio/1.mp3").read_bytes() != b"sound"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_leaves_other_files_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(MusemoError, match="files that are no demo music"):
        compose_demo(tmp_path, songs=1, seconds=3)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_leaves_nothing_when_cut_off(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("musemo.demo.write_clip", stop)
    with pytest.raises(KeyboardInterrupt):
        compose_demo(tmp_path / "b", songs=2, seconds=3, workers=1)
    assert not list(tmp_path.iterdir())
