"""What the pages of a run say, and what they leave out."""

import base64
import json
import re
import shlex
import shutil
import subprocess
import sys
from urllib.parse import unquote

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

import musemo
from musemo.cli import app
from musemo.cli_options import configure
from musemo.compare import compare_runs
from musemo.core import MusemoError, Run
from musemo.facts import command_line, read_facts, warn
from musemo.pages import duration, figure, hours, interval, memory
from musemo.peak_memory import watch_memory
from musemo.pipeline import write_index
from musemo.presets import make_config, save_config
from musemo.records import load_config, load_record
from musemo.report import _tidy_table, write_report
from musemo.sections import SECTIONS
from musemo.verdict import RIVALS, folds_key

FOLDS = {
    "songs": 16,
    "folds": 2,
    "seeds": 1,
    "recipe": "small",
    "generator": "flow",
    "scores": [
        {"axis": axis, "who": who, "r2": 0.5, "r2_seeds": 0.01, "r2_interval": [0.4, 0.6]}
        | {"ccc": 0.6, "mae": 0.1, "rmse": 0.2, "r": 0.7, "seeds": 1}
        for axis in ("valence", "arousal")
        for who in (*RIVALS, "model", "augmented")
    ],
    "gains": [
        {
            "who": "augmented",
            "over": "model",
            "valence": {"r2_gain": 0.08, "interval": [0.02, 0.15], "verdict": "helps"},
            "arousal": {"r2_gain": -0.01, "interval": [-0.1, 0.1], "verdict": "cannot be told"},
        }
    ],
    "leakage": [],
    "ceiling": {
        "raters": 10,
        "valence": {"r2": 0.9, "r": 0.95},
        "arousal": {"r2": None, "r": None},
    },
    "units": {"r2": "1 is perfect"},
}


@pytest.fixture
def copy(smoke_run, tmp_path):
    "A copy of the smoke run under a name that a page must escape."
    return Run(shutil.copytree(smoke_run, tmp_path / "<b>copy & co"))


def index_of(run: Run) -> str:
    return write_index(run, load_config(run)).read_text()


def test_the_index_tells_the_run(smoke_run):
    run = Run(smoke_run)
    page, record = index_of(run), run.load("run.json")
    quality, metrics = run.load("gan_quality.json"), run.load("metrics.json")
    assert f"{quality['score']:.0f} of 100" in page and "noise (floor)" in page
    for axis in ("valence", "arousal"):
        for who in ("model", "mean", "both"):
            assert f"{metrics[axis][who]['r2']:.2f}" in page
    for emotion in run.load("audio/audio.json")["emotions"].values():
        for file in (emotion["file"], emotion["nearest_song"]["file"]):
            assert f'src="{file}"' in page.replace(unquote("%2B"), "+")
    assert "16" in page and "Preset smoke proves" in page and "not measured" in page
    assert set(record["memory"]) == set(record["sections"])
    assert all(100 < megabytes < 20000 for megabytes in record["memory"].values())
    for name, megabytes in record["memory"].items():
        assert memory(megabytes) in page and duration(record["sections"][name]) in page
    versions = page.split('id="versions"')[1].split("</section>")[0]
    environment = smoke_run / "environment.json"
    for package, version in json.loads(environment.read_text())["packages"].items():
        assert f"{package} {version}" in versions
    assert f"musemo {musemo.__version__}" in versions
    assert "http" not in page


def test_memory_of_a_gpu_stands_beside_that_of_processes(copy, monkeypatch):
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: 5.04e9)
    copy.headline("11_vit_training", "trained", plt.figure())
    page = index_of(copy)
    assert page.count("of the GPU") == 1 and "5.0 GB of the GPU" in page


def test_songs_that_are_not_here_are_named_by_what_they_are(copy):
    "A run fetched from Kaggle: its songs lie there."
    config = load_config(copy)
    data = config.data.model_copy(update={"path": "/kaggle/input"})
    away = config.model_copy(update={"data": data})
    assert "--data WHERE_THE_SONGS_LIE" in command_line("evaluate", copy, away)
    audit = copy.load("label_audit.json")
    copy.save("label_audit.json", audit | {"known": True})
    assert read_facts(copy, away, load_record(copy)["sections"])["data"]["name"] == "DEAM"


def test_a_page_names_the_command_that_has_its_configuration(smoke_run, tmp_path):
    values = {"vit.weights": "scratch", "gan.epochs": 3, "training.unfreeze": [[1, 2], [2, 4]]}
    values |= {"generators": ["flow"], "small.thaw": True, "data.path": str(tmp_path)}
    run, config = Run(tmp_path), make_config("smoke", values)
    words = shlex.split(command_line("evaluate", run, config))
    settings = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    preset, data = (words[words.index(name) + 1] for name in ("--preset", "--data"))
    assert configure(preset, settings, path=data) == config
    assert words[:2] == ["musemo", "evaluate"] and words[-2:] == ["--out", str(tmp_path)]


def test_folds_give_the_verdict(copy):
    assert "musemo evaluate --preset smoke" in index_of(copy)
    folds = FOLDS | {"key": folds_key(copy, load_config(copy))}
    copy.save("folds.json", folds)
    page = index_of(copy)
    assert "valence: helps" in page and "arousal: cannot be told" in page
    assert "not measured" not in page and "this model, real and generated songs" in page
    copy.save("folds.json", folds | {"gains": []})
    assert "judged with real songs alone" in index_of(copy)
    copy.save("folds.json", folds | {"key": "of other songs"})
    page = index_of(copy)
    assert "measured with other songs or settings" in page and "not measured" in page


def test_names_are_escaped(copy):
    page = index_of(copy)
    assert "<b>copy" not in page and "&lt;b&gt;copy &amp; co" in page
    report = copy.path("reports/03_data.html")
    write_report(copy, "03_data")
    index_of(copy)
    assert "<b>copy" not in report.read_text() and "&lt;b&gt;copy" in report.read_text()


def test_what_is_made_again_is_not_shown(copy):
    record = copy.load("run.json")
    for section in SECTIONS[5:]:
        del record["sections"][section.name]
    copy.save("run.json", record)
    page = index_of(copy)
    assert "Not done yet" in page and 'id="emotions"' not in page and 'id="predictor"' not in page
    assert "5 of 12 sections" in page and 'id="data"' in page


def test_warnings_are_plain_words(copy):
    config = load_config(copy)
    songs = copy.load("songs.csv")
    songs.loc[0, ["status", "split"]] = "too_short", ""
    copy.save("songs.csv", songs)
    audit = copy.load("label_audit.json") | {"exchanged": [1, 2], "applied": False}
    copy.save("label_audit.json", audit)
    told = " ".join(warn(config, read_facts(copy, config, load_record(copy)["sections"])))
    assert "1 song left out (1 too short)" in told
    assert "2 songs had valence and arousal exchanged: left as published" in told
    assert "test songs cannot tell the model from" in told and "of 100 points" in told
    assert "Memory ran out" not in told


def test_half_a_batch_is_a_warning(copy):
    config = load_config(copy)
    for name in ("flow", "vit"):
        copy.save(f"{name}_history.json", copy.load(f"{name}_history.json") | {"batch_size": 3})
    told = warn(config, read_facts(copy, config, load_record(copy)["sections"]))
    words = "was trained in batches of 3, not"
    assert f"Memory ran out: flow {words} flow.batch_size = {config.flow.batch_size}." in told
    assert f"Memory ran out: vit {words} small.batch_size = {config.small.batch_size}." in told


def test_an_artifact_of_another_version_is_one_clear_error(copy):
    quality = copy.load("gan_quality.json")
    del quality["held_out"]
    copy.save("gan_quality.json", quality)
    with pytest.raises(MusemoError, match="06_gan_quality: left by another version.*--from 6"):
        index_of(copy)


def test_folds_of_another_version_are_one_clear_error(copy):
    folds = FOLDS | {"key": folds_key(copy, load_config(copy))}
    del folds["ceiling"]
    copy.save("folds.json", folds)
    with pytest.raises(MusemoError, match="folds.json: left by another version.*musemo evaluate"):
        index_of(copy)


def test_a_report_reads_as_a_page(tmp_path):
    run, new = Run(tmp_path), nbformat.v4
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    picture = {"image/png": base64.b64encode((tmp_path / "a.png").read_bytes()).decode()}
    cells = [
        new.new_markdown_cell("# Title\n\n> A promise.\n\nShapes: N songs."),
        new.new_markdown_cell("## Inside"),
        new.new_code_cell("#| export\nhidden = 1"),
        new.new_markdown_cell("## On the run\n\nWhat `this` is."),
        new.new_code_cell("first = 1"),
        new.new_code_cell("figure = draw()", outputs=[new.new_output("display_data", picture)] * 3),
        new.new_code_cell('run.headline("a", "7 < 8", figure)'),
        new.new_code_cell(
            "last",
            outputs=[
                new.new_output("stream", name="stderr", text="SomeWarning: x"),
                new.new_output("execute_result", {"text/plain": "[Text(0.5, 1.0, 'x')]"}),
                new.new_output("stream", name="stdout", text="word " * 15 + "that\nflows on."),
                new.new_output("stream", name="stdout", text="x " * 40 + "1   2\nin its row"),
                new.new_output("execute_result", {"text/plain": "a    1\ndtype: int64"}),
            ],
        ),
    ]
    path = run.path("reports/a.ipynb")
    path.parent.mkdir()
    nbformat.write(new.new_notebook(cells=cells), path)
    run.save("figures/a.json", {"number": "7 < 8", "units": {"number": "text"}})
    page = write_report(run, "a").read_text()
    assert page.index("A promise.") < page.index("7 &lt; 8") < page.index("On the run")
    order = ("On the run", "How it works", "Shapes: N", "Inside")
    assert [page.index(words) for words in order] == sorted(map(page.index, order))
    assert page.count("<summary>Code") == 3 and "#| export" not in page  # two became one
    alts = re.findall('alt="(.*?)"', page)
    assert alts == [f"Picture {i} of 2. On the run: What this is." for i in (1, 2)] + [
        "On the run: 7 &lt; 8"
    ]
    assert "that flows on." in page and "1   2\nin its row" in page
    for debris in ("SomeWarning", "Text(0.5", "dtype"):
        assert debris not in page


def test_a_page_that_is_too_large_is_named(tmp_path, caplog):
    run, new = Run(tmp_path), nbformat.v4
    run.path("reports").mkdir()
    for name, letters in (("small", 14_000_000), ("large", 16_000_000)):
        output = new.new_output("display_data", {"text/html": "x" * letters})
        cells = [new.new_markdown_cell("# Title"), new.new_markdown_cell("## On the run")]
        cells.append(new.new_code_cell("show()", outputs=[output]))
        nbformat.write(new.new_notebook(cells=cells), run.path(f"reports/{name}.ipynb"))
        assert write_report(run, name).stat().st_size > letters
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("musemo", "WARNING")
    assert "reports/large.html has 16 MB" in record.message


def test_a_table_has_no_debris_of_pandas():
    table = pd.DataFrame({"valence_std": [0.5, None], "file": ["a_b.mp3", "c.mp3"]})
    page = _tidy_table(table.to_html())
    assert "NaN" not in page and "<th>0</th>" not in page and "<td>a_b.mp3</td>" in page
    assert "<th>valence std</th>" in page and page.count("<th>") == 2
    for kept in (table.set_index("file"), table.rename_axis("step"), table[1:]):
        assert _tidy_table(kept.to_html()).count("<th>") >= 3
    assert "scroll" not in page
    page = _tidy_table(pd.DataFrame({'a "b" & c': ["word " * 8], "d": [1]}).to_html())
    assert 'aria-label="Table of a &quot;b&quot; &amp; c, d"><table' in page
    assert page.count('tabindex="0"') == page.count("</table></div>") == 1


def test_memory_is_that_of_processes_started_meanwhile():
    code = "import time; x = bytearray(300_000_000); time.sleep(1)"
    with watch_memory(every=0.05) as seen:
        subprocess.run([sys.executable, "-c", code], check=True)
    assert 300 < seen["peak"] < 600
    with watch_memory(every=0.05) as seen:
        pass
    assert seen["peak"] == 0


def test_figures_are_written_as_people_read_them():
    told = ["4 s", "1 min 1 s", "14 min", "1 h 1 min"]
    assert [duration(s) for s in (3.6, 61, 874, 3700)] == told
    assert [memory(x) for x in (812, 1234)] == ["812 MB", "1.2 GB"]
    assert [hours(x) for x in (1 / 60, 0.5, 12)] == ["1 minute", "30 minutes", "12.0 hours"]
    assert (
        interval([0.1, -0.25]) == "[0.10, -0.25]" and interval(None) == "" and figure(None) == "-"
    )


def test_runs_stand_side_by_side(smoke_run, small_config, copy, tmp_path):
    tree = small_config.model_dump(mode="json")
    tree["training"]["patience"] = 7
    copy.save("config.json", tree | {"units": {"a": "b"}})
    copy.save("folds.json", FOLDS | {"key": folds_key(copy, load_config(copy))})
    run = Run(tmp_path / "new")
    save_config(run, small_config)
    page = compare_runs([smoke_run, copy.folder, run.folder], tmp_path / "pages/x.html").read_text()
    rows = [row.split("</tr>")[0] for row in page.split("<tr>")]
    settings = next(row for row in rows if "training.patience" in row)
    assert "<td>7</td>" in settings and page.count("training.") == 1
    assert "0.50 [0.40, 0.60]" in page and "helps: +0.080 [0.020, 0.150]" in page
    assert page.count("<audio") == 10 and "same 3 test songs" not in page
    sources = [part.split('"')[0] for part in page.split('src="')[1:]]
    assert all((tmp_path / "pages" / unquote(source)).exists() for source in sources)
    assert "&lt;b&gt;copy" in page and "<b>copy" not in page
    both = compare_runs([smoke_run, copy.folder], tmp_path / "y.html").read_text()
    assert "All predictors are judged by the same 3 test songs" in both


def test_what_cannot_be_compared_is_one_clear_error(smoke_run, copy, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MusemoError, match="empty: is no run .no config.json"):
        compare_runs([smoke_run, tmp_path / "empty"])
    with pytest.raises(MusemoError, match="name two or more"):
        compare_runs([smoke_run])
    with pytest.raises(MusemoError, match="must end in .html"):
        compare_runs([smoke_run, copy.folder], tmp_path / "x.txt")
    copy.path("config.json").write_text(json.dumps({"preset": "smoke", "gone": 1, "units": {}}))
    with pytest.raises(MusemoError, match="cannot be read by this version.*leave it out"):
        compare_runs([smoke_run, copy.folder])


def test_the_command_compares(smoke_run, tmp_path):
    out = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["compare", str(smoke_run), str(smoke_run), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert str(out) in result.output and "Runs side by side" in out.read_text()
