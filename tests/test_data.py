"""Finding, reading, auditing and splitting songs."""

import os
import shutil
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from musemo.annotations import _published, audit_labels, read_annotations, settle_labels
from musemo.core import MusemoError, Run, load_part, write_atomic
from musemo.data import extract_log_mels, find_deam, list_songs, log_mel_of, prepare_data
from musemo.keeping import mark_data
from musemo.presets import make_config
from musemo.sound_files import open_sound, read_blocks
from musemo.splitting import group_songs, split_songs
from tests.conftest import write_deam


def config_for(folder, cache, **values):
    return make_config(
        "smoke",
        {"data.path": str(folder), "data.cache": str(cache), "audio.clip_seconds": 3.0, **values},
    )


def table_of(folder):
    return find_deam(folder).tables[0]


def test_every_song_has_a_status_and_a_reason(deam, tmp_path):
    sound = deam / "DEAM_audio/MEMD_audio"
    (sound / "3.mp3").unlink()
    (sound / "4.mp3").write_text("words, not music")
    soundfile.write(sound / "5.mp3", np.zeros(22050 * 4), 22050)
    soundfile.write(sound / "6.mp3", np.full(11025, 0.1), 22050)
    (sound / "7.mp3").write_bytes(b"")
    soundfile.write(sound / "99.wav", np.full(22050 * 4, 0.1), 22050)
    run = Run(tmp_path / "run")
    prepare_data(run, config_for(deam, tmp_path / "cache"))
    songs = run.load("songs.csv").set_index("file")
    assert songs.loc["4.mp3", "status"] == "unreadable"
    assert "cannot be read as sound" in songs.loc["4.mp3", "reason"]
    assert songs.loc["5.mp3", "status"] == "silent"
    assert songs.loc["6.mp3", "status"] == "too_short"
    assert songs.loc["7.mp3", "status"] == "unreadable"
    assert songs.loc["99.wav", "status"] == "no_label"
    songs = run.load("songs.csv")
    assert songs[songs["song_id"] == 3]["status"].item() == "no_audio"
    assert (songs["reason"].isna() == (songs["status"] == "ok")).all()
    assert set(songs[songs["status"] == "ok"]["split"]) == {"train", "val", "test"}
    assert songs[songs["status"] != "ok"]["split"].isna().all()


def test_what_the_suite_left_in_a_data_folder_is_no_song_of_it(deam, tmp_path):
    before = find_deam(deam)
    (deam / "runs/demo/audio").mkdir(parents=True)
    (deam / "runs/demo/run.json").write_text("{}")
    soundfile.write(deam / "runs/demo/audio/99.wav", np.full(22050 * 4, 0.1), 22050)
    assert find_deam(deam) == before
    copy = deam / "runs/music" / table_of(deam).name
    copy.parent.mkdir()
    copy.write_bytes(table_of(deam).read_bytes())  # the same table twice
    assert find_deam(deam).tables == before.tables
    copy.write_text("song_id, valence_mean, arousal_mean\n2, 3.1, 3.0\n")
    with pytest.raises(MusemoError, match="runs/music/.* have one name and are not the same"):
        find_deam(deam)


def test_labels_are_mapped_from_1_9_to_unit(deam, tmp_path):
    run = Run(tmp_path / "run")
    songs, _ = prepare_data(run, config_for(deam, tmp_path / "cache"))
    table = pd.read_csv(table_of(deam), skipinitialspace=True)
    assert songs["song_id"].tolist() == table["song_id"].tolist()
    assert run.load("songs.csv")["song_id"].dtype == int
    assert np.allclose(songs["valence"], (table["valence_mean"] - 5) / 4)
    assert np.allclose(songs["arousal_std"], table["arousal_std"] / 4)


def test_parts_hold_different_songs_and_rows_match(deam, tmp_path):
    run = Run(tmp_path / "run")
    config = config_for(deam, tmp_path / "cache")
    prepare_data(run, config)
    ids = [set(load_part(run, part)[0]["song_id"]) for part in ("train", "val", "test")]
    assert sum(map(len, ids)) == len(set.union(*ids)) == 12
    songs, log_mel = load_part(run, "test")
    wave, rate = soundfile.read(deam / "DEAM_audio/MEMD_audio" / songs["file"][0], dtype="float32")
    expected = log_mel_of(wave[: 3 * rate], config.audio)
    assert np.allclose(log_mel[0, :, : expected.shape[1]], expected, atol=0.01)


def test_an_artist_belongs_to_one_part(deam, tmp_path):
    rows = "\n".join(f"{i},Artist {i % 4}" for i in range(1, 13))
    (deam / "metadata_2013.csv").write_text("song_id,Artist\n" + rows)
    songs, _ = prepare_data(Run(tmp_path / "run"), config_for(deam, tmp_path / "cache"))
    assert songs["artist"].nunique() == 4
    assert songs.groupby("artist")["split"].nunique().max() == 1


def test_a_second_run_decodes_nothing(deam, tmp_path, monkeypatch):
    config = config_for(deam, tmp_path / "cache")
    first, _ = prepare_data(Run(tmp_path / "a"), config)
    monkeypatch.setattr("musemo.data.decode", lambda *_: pytest.fail("decoded again"))
    second, _ = prepare_data(Run(tmp_path / "b"), config)
    assert first.equals(second)
    assert (tmp_path / "a/logmel.npy").read_bytes() == (tmp_path / "b/logmel.npy").read_bytes()


def test_other_audio_settings_are_decoded_anew(deam, tmp_path):
    prepare_data(Run(tmp_path / "a"), config_for(deam, tmp_path / "cache"))
    other = config_for(deam, tmp_path / "cache", **{"audio.db_min": -50.0})
    prepare_data(Run(tmp_path / "b"), other)
    fresh = other.data.model_copy(update={"cache": str(tmp_path / "fresh")})
    prepare_data(Run(tmp_path / "c"), other.model_copy(update={"data": fresh}))
    first, second, third = ((tmp_path / x / "logmel.npy").read_bytes() for x in "abc")
    assert first != second == third


@pytest.mark.parametrize("damage", ["cut", "pickled", "zipped"])
def test_a_damaged_cache_is_mended(deam, tmp_path, damage):
    settings = config_for(deam, tmp_path / "cache")
    before = prepare_data(Run(tmp_path / "one"), settings)[0]
    for path in (tmp_path / "cache").rglob("*.npy"):
        if damage == "cut":
            path.write_bytes(path.read_bytes()[:2000])
        elif damage == "pickled":
            np.save(path, np.array([{}], dtype=object), allow_pickle=True)
        else:
            with open(path, "wb") as file:
                np.savez(file, np.zeros(3))
    pd.testing.assert_frame_equal(before, prepare_data(Run(tmp_path / "two"), settings)[0])
    content = [(tmp_path / name / "logmel.npy").read_bytes() for name in ("one", "two")]
    assert content[0] == content[1]


@pytest.mark.parametrize("rate", [16000, 22050, 44100])
@pytest.mark.parametrize("suffix", ["mp3", "ogg", "flac", "wav"])
def test_a_file_read_in_blocks_is_the_whole_file(tmp_path, suffix, rate):
    path, noise = (
        tmp_path / f"song.{suffix}",
        np.random.default_rng(0).normal(0, 0.1, (5 * rate, 2)),
    )
    soundfile.write(path, noise, rate)
    with closing(open_sound(path)) as file:
        read = list(read_blocks(file))
    assert len(read) > 1
    whole, _ = soundfile.read(path, dtype="float32")
    # mpg123 itself differs by a bit where its buffers lie elsewhere in memory.
    assert np.allclose(np.concatenate(read), whole.mean(axis=1), rtol=0, atol=2e-7)


def test_a_table_of_ones_own(deam, tmp_path):
    sound = sorted((deam / "DEAM_audio/MEMD_audio").iterdir())
    table = tmp_path / "my.csv"
    rows = [f"{os.path.relpath(path, tmp_path)},0.25,1.0" for path in sound]
    table.write_text("file,valence,arousal\n" + "\n".join(rows))
    config = config_for(table, tmp_path / "cache", **{"data.scale": "0-1"})
    songs, audit = prepare_data(Run(tmp_path / "run"), config)
    assert set(songs["valence"]) == {-0.5} and set(songs["arousal"]) == {1.0}
    assert audit["exchanged"] == []
    with pytest.raises(MusemoError, match=r"valence = '0.25' must be a number from 1 to 9"):
        list_songs(config_for(table, tmp_path / "cache"))


@pytest.mark.parametrize(
    ("header", "word"),
    [
        ("song_id, valence_mean, valence_std, loudness", "no column arousal_mean"),
        ("song_id; valence_mean; arousal_mean", "row 2: has 1 cells and the header 3"),
    ],
)
def test_a_table_without_a_column_is_refused(tmp_path, header, word):
    folder = write_deam(tmp_path / "deam", songs=2, header=header)
    with pytest.raises(MusemoError, match=word):
        list_songs(config_for(folder, tmp_path))


def test_a_value_off_the_scale_is_refused_with_its_row(deam, tmp_path):
    table = table_of(deam)
    lines = table.read_text().splitlines()
    lines[3] = "3,11.5,1.1,4.0,1.2"
    table.write_text("\n".join(lines))
    with pytest.raises(MusemoError, match="row 4: valence_mean = '11.5'"):
        list_songs(config_for(deam, tmp_path))


def test_too_few_songs_are_refused_with_the_counts(tmp_path):
    folder = write_deam(tmp_path / "deam", songs=7)
    for i in (1, 2, 3):
        (folder / f"DEAM_audio/MEMD_audio/{i}.mp3").write_text("no music")
    run = Run(tmp_path / "run")
    with pytest.raises(MusemoError, match="4 usable songs.*at least 6.*3 unreadable"):
        prepare_data(run, config_for(folder, tmp_path / "cache"))
    assert not run.folder.exists()


def test_deam_s_exchanged_labels_are_found_and_corrected(real_data, tmp_path):
    songs, audit, _ = list_songs(config_for(real_data("deam"), tmp_path))
    assert len(audit["exchanged"]) == 744 and max(audit["exchanged"]) == 1000
    first, second, third = audit["blocks"]
    assert (first["songs"], second["songs"], third["songs"]) == (744, 1000, 58)
    assert first["valence_with_dynamic_valence"] == pytest.approx(0.575, abs=0.002)
    assert first["valence_with_dynamic_arousal"] == pytest.approx(0.956, abs=0.002)
    assert second["valence_with_dynamic_valence"] == pytest.approx(0.912, abs=0.002)
    assert third["arousal_with_dynamic_arousal"] == pytest.approx(0.929, abs=0.002)
    # The 2013 table names the columns the right way round: the corrected labels agree with it.
    right = pd.read_csv(real_data("mediaeval2013") / "static_annotations.csv")
    both = songs.merge(right, on="song_id")
    agree = np.ones(len(both), dtype=bool)
    for label in ("valence", "arousal"):
        agree &= np.isclose(both[label] * 4 + 5, both[f"mean_{label}"], atol=0.01)
    assert (len(both), agree.sum()) == (744, 738)


def test_dynamic_annotations_alone_can_witness_the_exchange():
    rng = np.random.default_rng(0)
    dynamic = pd.DataFrame(rng.uniform(-0.5, 0.5, (40, 2)), columns=["valence", "arousal"])
    dynamic.index = np.arange(101, 141)
    songs = pd.DataFrame({"song_id": dynamic.index})
    songs["valence"], songs["arousal"] = (dynamic[c].to_numpy() * 4 + 5 for c in dynamic)
    assert audit_labels(songs, dynamic)["exchanged"] == []
    crossed = songs.rename(columns={"valence": "arousal", "arousal": "valence"})
    audit = audit_labels(crossed, dynamic)
    assert (audit["known"], audit["witness"], len(audit["exchanged"])) == (False, "exchanged", 40)


def test_exchanged_labels_and_spreads_are_exchanged_back_and_no_others():
    rng, columns = np.random.default_rng(0), ["valence", "arousal", "valence_std", "arousal_std"]
    right = pd.DataFrame(rng.uniform(1, 9, (80, 4)), columns=columns)
    right.insert(0, "song_id", np.arange(961, 1041))
    dynamic = (right.set_index("song_id")[columns[:2]] - 5) / 4
    wrong, first = right.copy(), right["song_id"] <= 1000
    wrong.loc[first, columns] = right.loc[first, [columns[i] for i in (1, 0, 3, 2)]].to_numpy()
    corrected, audit = settle_labels(wrong, dynamic, "corrected")
    assert audit["exchanged"] == [*range(961, 1001)]
    pd.testing.assert_frame_equal(corrected, right)
    pd.testing.assert_frame_equal(settle_labels(right, dynamic, "corrected")[0], right)


def test_witnesses_that_disagree_stop_the_run():
    rows = [(i, *pair) for i, pair in _published.items()]
    rows += [(i, 1 + i % 7, 1 + i % 5) for i in range(20, 60)]
    songs = pd.DataFrame(rows, columns=["song_id", "valence", "arousal"], dtype=float)
    songs = songs.assign(valence_std=1.0, arousal_std=1.0)
    dynamic = songs.set_index("song_id")[["valence", "arousal"]]
    with pytest.raises(MusemoError, match="data.labels=published"):
        settle_labels(songs, dynamic, "corrected")
    assert settle_labels(songs, dynamic, "published")[0] is songs


def test_one_recording_under_two_names_belongs_to_one_part(deam, tmp_path):
    sound = deam / "DEAM_audio/MEMD_audio"
    for i in range(7, 13):
        (sound / f"{i}.mp3").write_bytes((sound / f"{i - 6}.mp3").read_bytes())
    songs, _ = prepare_data(Run(tmp_path / "run"), config_for(deam, tmp_path / "cache"))
    parts = songs.set_index("song_id")["split"]
    assert [parts[i] == parts[i + 6] for i in range(1, 7)] == [True] * 6


def test_settings_of_the_sound_move_no_song_to_another_part(deam, tmp_path):
    "Else two settings would be judged by different songs."
    config = config_for(deam, tmp_path / "cache")
    other = config_for(deam, tmp_path / "cache", **{"audio.n_mels": 64})
    both = {"a": config, "b": other}
    parts = [prepare_data(Run(tmp_path / x), c)[0]["split"] for x, c in both.items()]
    assert parts[0].equals(parts[1])


def test_songs_linked_by_artist_or_content_form_one_group():
    artists = pd.Series(["a", "b", "", "b", "", "c", ""])
    contents = pd.Series(["1", "1", "2", "3", "3", "4", "5"])
    assert group_songs(artists, contents).tolist() == [0, 0, 1, 0, 0, 2, 3]


@pytest.mark.parametrize("seed", range(20))
def test_few_artists_fill_every_part(seed):
    groups, rng = [0] * 8 + [1, 2], np.random.default_rng(seed)
    parts = split_songs(groups, validation=0.2, test=0.2, rng=rng)
    assert set(parts) == {"train", "val", "test"}


@pytest.mark.parametrize("content", [b"", b"\0", b"song_id,artist,artist\ninf,x,y\n"])
def test_an_odd_table_of_artists_is_read_or_refused_by_name(deam, tmp_path, content):
    (deam / "metadata_2014.csv").write_bytes(content)
    try:
        songs, _, _ = list_songs(config_for(deam, tmp_path))
        assert not songs["artist"].any()
    except MusemoError as error:
        assert "metadata_2014.csv: is no readable table of artists" in str(error)


def test_a_dynamic_table_with_a_song_twice_is_refused(deam, tmp_path):
    for label in ("valence", "arousal"):
        table = deam / f"dynamic/{label}.csv"
        table.parent.mkdir(exist_ok=True)
        table.write_text("song_id,sample_15000ms\n1,0.1\n1,0.2\n")
    with pytest.raises(MusemoError, match="valence.csv: song_id 1 stands there twice; remove"):
        list_songs(config_for(deam, tmp_path))


def test_ratings_that_are_all_alike_witness_nothing():
    ids = range(1, 41)
    songs = pd.DataFrame({"song_id": ids, "valence": np.linspace(1, 9, 40), "arousal": 5.0})
    dynamic = pd.DataFrame({"valence": np.linspace(-1, 1, 40), "arousal": 0.0}, index=ids)
    assert audit_labels(songs, dynamic)["witness"] == "cannot tell"


def test_metadata_with_odd_letters_and_rows_is_read(deam, tmp_path):
    text = "song_id,Artist\n1,Bj\xf6rk\n2,a,b,c\n3,Bj\xf6rk\n"
    (deam / "metadata_2014.csv").write_bytes(text.encode("latin-1"))
    songs, _, _ = list_songs(config_for(deam, tmp_path))
    named = songs.set_index("song_id")["artist"]
    assert named[1] == named[3] != "" and named[2] == ""


@pytest.mark.parametrize(
    ("row", "words"), [("2.7,5,1,5,1", "song_id 2.7 must be a whole"), ("2,5,1,x,1", "'x'")]
)
def test_a_bad_row_is_refused(deam, tmp_path, row, words):
    table = table_of(deam)
    table.write_text(table.read_text() + ",,,,\n" + row + "\n")
    with pytest.raises(MusemoError, match=words):
        list_songs(config_for(deam, tmp_path))


def test_a_file_listed_twice_is_refused(tmp_path):
    table = tmp_path / "my.csv"
    table.write_text("file,valence,arousal\na.mp3,5,5\na.mp3,6,6\n")
    with pytest.raises(MusemoError, match="a.mp3 stands there twice"):
        list_songs(config_for(table, tmp_path))


def test_published_labels_can_be_kept(real_data, tmp_path):
    config = config_for(real_data("deam"), tmp_path, **{"data.labels": "published"})
    songs, audit, _ = list_songs(config)
    assert len(audit["exchanged"]) == 744
    assert songs.set_index("song_id").loc[7, "arousal"] * 4 + 5 == pytest.approx(6.4)


def test_another_set_with_the_same_ids_stays_as_it_is(real_data, tmp_path):
    _, audit, _ = list_songs(config_for(real_data("vgmidi"), tmp_path))
    assert (audit["known"], audit["exchanged"]) == (False, [])


def test_two_songs_of_one_number_are_refused(deam):
    song = next(deam.rglob("3.*"))
    (deam / "other").mkdir()
    shutil.copyfile(song, deam / "other" / song.name)  # the same once more
    for folder in ("other", "more"):  # no label, no matter
        (deam / folder).mkdir(exist_ok=True)
        (deam / folder / "7777.mp3").write_text(folder)
    config = make_config("smoke", {"data.path": str(deam)})
    list_songs(config)
    with open(deam / "other" / song.name, "ab") as file:
        file.write(b"other")
    with pytest.raises(MusemoError, match="have one name and are not the same"):
        list_songs(config)


def test_two_tables_that_differ_about_a_song_are_refused(deam):
    config, more = (
        make_config("smoke", {"data.path": str(deam)}),
        table_of(deam).with_stem("static_annotations_averaged_songs_2000_2058"),
    )
    number, *_ = table_of(deam).read_text().splitlines()[1].split(",")
    more.write_text(f"song_id, valence_mean, arousal_mean\n{number}, 1.5, 8.5\n")
    with pytest.raises(MusemoError, match=f"song_id {number} has other labels in another table"):
        list_songs(config)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders here")
def test_a_pipe_is_no_song(deam):
    before = find_deam(deam)
    os.mkfifo(deam / "999.mp3")  # whoever opens it waits for ever
    assert find_deam(deam) == before


def test_a_column_given_twice_is_one_clear_error(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("song_id,valence_mean,arousal_mean,valence_std,valence_std\n3,5,5,1,2\n")
    with pytest.raises(MusemoError, match="2 columns valence_std"):
        read_annotations(table)


def test_what_is_no_spectrogram_in_the_cache_is_decoded_again(deam, tmp_path):
    config = make_config("smoke", {"data.cache": str(tmp_path)})
    songs = sorted(find_deam(deam).audio.values())[:1]
    ((_, where),) = extract_log_mels(songs, config)
    whole = Path(where).read_bytes()
    np.save(where, np.zeros((3, 5000)))
    assert extract_log_mels(songs, config) == [("ok", where)]
    assert Path(where).read_bytes() == whole


@pytest.mark.skipif(sys.platform != "linux", reason="no such names here")
def test_names_in_another_encoding_are_read(deam, tmp_path):
    folder = shutil.copytree(deam, tmp_path / os.fsdecode(b"m\xe9"))
    shutil.copyfile(next(deam.rglob("3.*")), folder / os.fsdecode(b"caf\xe9.mp3"))
    run, config = Run(tmp_path / "run"), config_for(folder, tmp_path / "cache")
    prepare_data(run, config)
    songs = run.load("songs.csv").set_index("file")
    assert songs.loc["caf\\udce9.mp3", "status"] == "no_label"
    assert mark_data(config) != mark_data(config_for(deam, tmp_path / "cache"))


def test_a_name_in_another_encoding_is_written_escaped(tmp_path):
    name = "caf\udce9.mp3"
    path = write_atomic(tmp_path / "songs.csv", pd.DataFrame({"file": [name]}))
    assert path.read_text() == "file\ncaf\\udce9.mp3\n"
    assert "caf" in write_atomic(tmp_path / "page.html", f"<p>{name}</p>").read_text()
