"""The bench's own arithmetic, on made-up stages: what it measures is measured by `make bench`."""

import json

import numpy as np
import pytest

from tests.bench import bench
from tests.bench.mutations import MUTATIONS
from tests.bench.stages import Growth, Rule, Stage, absolute, judge, judge_growth
from tests.conftest import ROOT

STAGE = Stage(
    "made up",
    "a stage of no work",
    {"musemo": "ours.x", "usual": "usual.x", "alone": "ours.y"},
    (Rule("usual", "musemo", least=3), Rule("musemo", "alone", most=2)),
    *(absolute, 0.1, "of nothing"),
)
GROWTH = Growth("songs", "growth.x", "songs", (0, 100, 200, 400))


def way(seconds, *, cpu=None, mb=100, result=0.0):
    return {"seconds": seconds, "cpu": cpu or seconds, "mb": mb, "result": np.full(3, result)}


def fake(monkeypatch, tmp_path, seconds, results=None, **options):
    "Let the bench believe that each way took so long; return what a start of it would do."
    monkeypatch.setattr(bench, "STAGES", (STAGE,))
    monkeypatch.setattr(bench, "GROWTHS", (GROWTH,))
    took = {name: iter(values) for name, values in seconds.items()}

    def run_way(name, options, *, size=0):
        if name == GROWTH.way:
            return way(1 + size / 100, mb=300)
        return way(next(took[name]), result=(results or {}).get(name, 0.0))

    monkeypatch.setattr(bench, "run_way", run_way)
    clips = tmp_path / "no clips"
    runs = len(next(iter(seconds.values())))
    return lambda: bench.main(["--runs", str(runs), "--out", str(tmp_path), "--clips", str(clips)])


def test_ratios_are_of_one_run_and_their_median_is_judged():
    seconds = [(1, 4, 1), (2, 4, 1), (1, 9, 0.5)]
    names = ("musemo", "usual", "alone")
    runs = [dict(zip(names, map(way, row), strict=True)) for row in seconds]
    runs[0]["usual"]["cpu"], runs[1]["usual"]["mb"] = 8, 700
    floor, limit = judge(STAGE, runs)
    assert (floor["median"], floor["lowest"], floor["highest"]) == (4, 2, 9)
    assert floor["cpu"] == 8 and floor["mb"] == {"usual": 700, "musemo": 100}
    assert floor["room"] == pytest.approx(1 / 3) and floor["kept"]
    assert limit["median"] == 2 and limit["room"] == 0 and limit["kept"]  # exactly at its limit


def test_what_is_below_its_floor_or_above_its_limit_is_missed():
    run = {"musemo": way(10), "usual": way(29), "alone": way(4)}
    floor, limit = judge(STAGE, [run])
    assert floor["room"] == pytest.approx(2.9 / 3 - 1) and not floor["kept"]
    assert limit["room"] == pytest.approx(1 - 2.5 / 2) and not limit["kept"]


def test_a_part_that_was_measured_is_made_whole_and_a_difference_is_in_seconds():
    assert Rule("unfrozen", "musemo", least=4.5, times=12).figure(2, 4) == 6
    overhead = Rule("musemo", "usual", most=90, minus=True)
    assert overhead.figure(100, 40) == 60 and overhead.room(60) == pytest.approx(1 / 3)
    assert Rule("a", "b").room(7) is None  # no limit, none missed


def test_the_worst_of_all_runs_says_whether_the_ways_agree():
    runs = [{name: way(1) for name in STAGE.ways} for _ in range(2)]
    runs[1]["usual"]["result"] = np.array([0, 0.2, 0])
    row = judge(STAGE, runs)[0]
    assert row["difference"] == pytest.approx(0.2) and not row["same"]


@pytest.mark.parametrize(
    ("power", "mb", "kept"), [(1.0, 500, True), (1.3, 500, False), (0.5, 5000, False)]
)
def test_a_cost_grows_no_faster_than_its_input(power, mb, kept):
    runs = [{size: way(size**power, mb=mb) for size in GROWTH.sizes}]
    row = judge_growth(GROWTH, runs)
    assert row["power_cpu"] == pytest.approx(power) and row["power_mb"] == 0
    assert row["kept"] == kept


def test_a_bench_that_keeps_its_floors_ends_well(monkeypatch, tmp_path, capsys):
    start = fake(monkeypatch, tmp_path, {"ours.x": [1, 1], "usual.x": [4, 5], "ours.y": [1, 1]})
    start()
    record = json.loads((tmp_path / "bench.json").read_text())
    assert record["missed"] == [] and record["stages"][0]["median"] == 4.5
    assert record["growth"][0]["kept"] and (tmp_path / "bench.png").stat().st_size > 10_000
    shown = capsys.readouterr().out
    assert "usual / musemo" in shown and "MISSED" not in shown and "DIFFER" not in shown


@pytest.mark.parametrize(
    ("seconds", "result", "told"),
    [
        (2, 0.0, "made up, usual against musemo: 2 x, limit 3"),
        (4, 1.0, "made up: results differ by 1 of nothing"),
    ],
)
def test_a_bench_that_misses_one_says_which_and_fails(monkeypatch, tmp_path, seconds, result, told):
    times = {"ours.x": [1], "usual.x": [seconds], "ours.y": [1]}
    start = fake(monkeypatch, tmp_path, times, {"usual.x": result})
    with pytest.raises(SystemExit) as ended:
        start()
    assert str(ended.value) == f"missed: {told}"  # a text: the exit code is 1
    assert json.loads((tmp_path / "bench.json").read_text())["missed"] == [told]


def test_stages_that_need_clips_are_skipped_aloud(monkeypatch, tmp_path, capsys):
    start = fake(monkeypatch, tmp_path, {"ours.x": [1], "usual.x": [4], "ours.y": [1]})
    needy = Growth("songs", "growth.x", "songs", (1, 2), clips=True)
    monkeypatch.setattr(bench, "GROWTHS", (needy,))
    start()
    assert "songs: skipped, no .mp3" in capsys.readouterr().out
    assert json.loads((tmp_path / "bench.json").read_text())["skipped"] == ["songs"]


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_line_to_be_broken_and_the_test_that_notices_are_there(name):
    module, line, _, test = MUTATIONS[name]
    file, _, function = test.partition("::")
    assert (ROOT / f"musemo/{module}.py").read_text().count(line) == 1
    assert f"def {function}(" in (ROOT / "tests" / file).read_text()
