"""Annotation tables as people's spreadsheets leave them: read right, or refused with the row."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from musemo.annotations import LABELS, read_annotations, read_own_table
from musemo.core import MusemoError
from musemo.data import list_songs
from musemo.presets import make_config

DEAM = ["song_id", "valence_mean", "arousal_mean", "valence_std", "arousal_std"]
OWN = ["file", "valence", "arousal", "artist"]
BAD = ["", "x", "nan", "inf", "0", "9.5", "-3", "5 5", "1e9", "5.0.0", "5,0"]


@st.composite
def tables(draw, columns):
    "A table of such columns: its text, what it says by song, what is wrong with it, and where."
    key, valence_column, arousal_column, *_ = columns
    ids = draw(st.lists(st.integers(1, 3000), min_size=1, max_size=8, unique=True))
    grades = st.integers(100, 900).map(lambda x: x / 100)
    truth = {i: draw(st.tuples(grades, grades)) for i in ids}
    extra = draw(st.lists(st.sampled_from(["note", "Genre ", " tempo"]), max_size=2, unique=True))
    names = draw(st.permutations(columns + extra))
    mark = draw(st.sampled_from([",", ", ", ";"]))
    comma = mark == ";" and draw(st.booleans())

    def number(x):
        return f"{x:.2f}".replace(".", ",") if comma else f"{x:.2f}"

    rows = []
    for i, (valence, arousal) in truth.items():
        cells = {"song_id": str(i), "file": f"{i}.mp3", "valence_std": number(1.25)}
        cells |= {valence_column: number(valence), arousal_column: number(arousal)}
        cells |= {"arousal_std": ""}
        rows.append([cells.get(name, "free text") for name in names])
    wrong = draw(st.sampled_from(["", "value", "duplicate", "column", "short", "long", "twice"]))
    row = draw(st.integers(0, len(rows) - 1))
    if wrong == "value":
        label = draw(st.sampled_from([valence_column, arousal_column]))
        bad = draw(st.sampled_from(BAD[:-1] if mark == ";" else BAD))
        rows[row][names.index(label)] = bad
    elif wrong == "duplicate":
        rows.append(list(rows[row]))
    elif wrong == "column":
        gone = names.index(draw(st.sampled_from([key, valence_column, arousal_column])))
        names, rows = [*names[:gone], *names[gone + 1 :]], [r[:gone] + r[gone + 1 :] for r in rows]
    elif wrong == "short":
        rows[row] = rows[row][:-1]
    elif wrong == "long":
        rows[row] = ["7", *rows[row]]
    elif wrong == "twice":
        again = draw(st.sampled_from(columns)).replace("_", " ").title()
        names, rows = [*names, again], [[*r, "5"] for r in rows]
    blanks = draw(st.integers(0, 2))
    lines = [names, *rows[:row], *[[""] * len(names)] * blanks, *rows[row:]]
    end = draw(st.sampled_from(["\n", "\r\n"]))
    spare = mark.strip() * draw(st.integers(0, 2))  # a spreadsheet's empty columns
    text = end.join(mark.join(cells) + spare for cells in lines) + end
    start = draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    return start + text.encode(), truth, wrong, row + 2 + blanks


def last_row(content):
    "Give the number of the last line."
    return len(content.splitlines())


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@pytest.mark.parametrize("columns", [DEAM, OWN], ids=["deam", "own"])
@given(data=st.data())
def test_a_table_is_read_right_or_refused(columns, tmp_path, data):
    content, truth, wrong, row = data.draw(tables(columns))
    path = tmp_path / "static_annotations_averaged_songs.csv"
    path.write_bytes(content)
    try:
        songs = read_annotations(path) if columns is DEAM else read_own_table(path, "1-9")
    except MusemoError as error:
        assert wrong, f"a good table was refused: {error}"
        said = str(error)
        assert said.startswith(str(path))
        if wrong in ("value", "short", "long"):
            assert f"row {row}" in said
        elif wrong == "duplicate":
            assert f"row {last_row(content)}: " in said
        return
    assert not wrong, "a bad table was read"
    if columns is OWN:
        songs["song_id"] = [int(name.removesuffix(".mp3")) for name in songs["file"]]
    found = {i: (v, a) for i, v, a in songs[["song_id", *LABELS]].itertuples(index=False)}
    assert found == truth
    if columns is DEAM:
        assert songs["valence_std"].eq(1.25).all() and songs["arousal_std"].isna().all()


def test_values_with_decimal_commas_are_never_cut_in_two(tmp_path):
    path = tmp_path / "static_annotations_averaged_songs.csv"
    path.write_text("song_id,valence_mean,arousal_mean\n1,5,5,4,5\n")
    with pytest.raises(MusemoError, match="row 2: has 5 cells and the header 3"):
        read_annotations(path)


def test_a_spread_that_is_no_number_is_refused(tmp_path):
    path = tmp_path / "static_annotations_averaged_songs.csv"
    path.write_text("song_id,valence_mean,valence_std,arousal_mean\n1,5,?,4\n")
    with pytest.raises(MusemoError, match="row 2: valence_std = .* must be a number from 0 to 8"):
        read_annotations(path)


def test_blank_rows_move_no_label_to_another_file(tmp_path):
    names = ["a.wav", "b.wav", "c.wav"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    table = tmp_path / "my.csv"
    table.write_text("file,valence,arousal\na.wav,2,2\n\n,,\nb.wav,5,5\nc.wav,8,8\n")
    assert read_own_table(table, "1-9")["file"].tolist() == names
    songs, _, files = list_songs(make_config("smoke", {"data.path": str(table)}))
    assert [file.name for file in files] == songs["file"].tolist() == names
    assert np.allclose(songs["valence"], [-0.75, 0, 0.75])
