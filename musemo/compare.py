"""Runs side by side in one page."""

import os
from pathlib import Path

from musemo.config import Config
from musemo.core import MusemoError, Run, write_atomic
from musemo.facts import read_facts
from musemo.pages import count, duration, figure, hours, interval, memory, page_style, render
from musemo.presets import flatten
from musemo.records import load_config, load_record
from musemo.report import read_promise
from musemo.verdict import ARMS, AXES, RIVALS, say_figure


def open_done(folder: Path) -> dict:  # run, config, record, facts, environment
    "Read a run; raises MusemoError for a folder that is none, or one of another version."
    run = Run(folder.expanduser().resolve())
    config = load_config(run, way_out="make it again with this version, or leave it out")
    record = load_record(run)
    facts = read_facts(run, config, record["sections"])
    environment = run.load("environment.json") if run.has("environment.json") else {}
    done = {"run": run, "config": config, "record": record}
    return done | {"facts": facts, "environment": environment}


def only_different(rows: list[dict]) -> list[dict]:
    "Keep the entries in which some of these differ."
    names = list(dict.fromkeys(name for row in rows for name in row))
    kept = [name for name in names if len({str(row.get(name)) for row in rows}) > 1]
    return [{name: str(row[name]) for name in kept if name in row} for row in rows]


def _settings(config: Config) -> dict:
    values = flatten(config)
    del values["data.path"], values["data.cache"]  # where it lies says nothing of what it is
    return values


def _versions(environment: dict) -> dict:
    rest = {k: v for k, v in environment.items() if k not in ("packages", "units")}
    return rest | environment.get("packages", {})


def _data(facts: dict) -> dict[str, str]:
    if not (data := facts["data"]):
        return {}
    return {
        "songs": f"{data['songs']} of {data['name']}",
        "sound": hours(data["hours"]),
        "to learn / choose / judge by": " / ".join(map(str, data["parts"].values())),
        "left out": count(sum(data["left_out"].values()), "song"),
        "labels": data["labels"],
    }


def _generators(facts: dict) -> dict[str, str]:
    if not (made := facts["generators"]):
        return {}
    points = {
        f"{name}, 90 %": f"{x['score']:.0f} {interval(x['interval'], 0)} {x['tier']}"
        for name, x in made["scores"].items()
    }
    ends = {
        "noise (floor)": figure(made["noise"], 0),
        "real songs (ceiling)": figure(made["real"], 0),
    }
    return {"chosen": made["best"]} | points | ends


def _predictor(facts: dict) -> dict[str, str]:
    if not (found := facts["predictor"]):
        return {}
    rows = {"judged by": count(found["songs"], "test song")}
    for axis in AXES[::-1]:
        told, ends = found["figures"][axis], found["intervals"][axis]
        for metric, label in {"r2": "R2", "ccc": "CCC", "mae": "MAE"}.items():
            own = f"{figure(told['model'][metric])} {interval(ends[metric])}"
            rows[f"{axis}: {label}, 95 %"] = own
        for who, words in RIVALS.items():
            rows[f"{axis}: R2 of the {words}"] = figure(told[who]["r2"])
    return rows


def _folds(facts: dict) -> dict[str, str]:
    if not (folds := facts["folds"]):
        return {}
    rows = {"songs, folds x seeds": f"{folds['songs']}, {folds['folds']} x {folds['seeds']}"}
    for axis in AXES[::-1]:
        for who, told in folds["r2"][axis].items():
            own = f"{figure(told['r2'])} {interval(told['r2_interval'])}"
            rows[f"{axis}: R2 of {ARMS[who]}, 95 %"] = own
        if folds["verdict"]:
            gain = folds["verdict"][axis]
            added = f"{say_figure(gain['r2_gain'])} {interval(gain['interval'], 3)}"
            told = f"{gain['verdict']}: {added}"
            rows[f"{axis}: do generated songs help?"] = told
    return rows


def _cost(record: dict) -> dict[str, str]:
    rows = {"all": duration(sum(record["sections"].values()))}
    for name, seconds in sorted(record["sections"].items()):
        held = record["memory"].get(name)
        told = duration(seconds) + (f", {memory(held)}" if held else "")
        rows[f"{name[:2]} {read_promise(name)[0]}"] = told
    return rows


def say_whether_comparable(facts: list[dict]) -> str:
    "Say whether the figures of these runs are of the same songs."
    judged = [x["data"]["judged"] if x["data"] else None for x in facts]
    if all(songs is not None and songs == judged[0] for songs in judged):
        if not any(x["predictor"] for x in facts):
            return "All runs have the same songs with the same labels."
        return (
            f"All predictors are judged by the same {count(len(judged[0]), 'test song')}, with the "
            "same labels. Intervals are over songs: runs whose intervals overlap may yet differ, "
            "and one seed each cannot tell."
        )
    return (
        "These runs are not judged by the same test songs with the same labels: figures stand "
        "side by side, and no difference between them is one of the models alone."
    )


def compare_runs(
    folders: list[Path],  # of two runs or more
    out: Path | None = None,  # the page; by default compare.html beside the first run
) -> Path:  # the page
    "Write a page with runs side by side; raises MusemoError for a folder that is no run."
    if len(folders) < 2:
        raise MusemoError(f"{folders[0]}: one run; name two or more to compare")
    runs = [open_done(folder) for folder in folders]
    out = (out or runs[0]["run"].folder.parent / "compare.html").expanduser().resolve()
    if out.suffix != ".html":
        raise MusemoError(f"--out {out.name}: must end in .html")
    places = [os.path.relpath(x["run"].folder, out.parent) for x in runs]
    facts = [x["facts"] for x in runs]
    groups = {
        "Configured differently": only_different([_settings(x["config"]) for x in runs]),
        "Data": [_data(x) for x in facts],
        "Generators: 0 to 100 points": [_generators(x) for x in facts],
        "Predictor, one split; MAE on [-1, 1]": [_predictor(x) for x in facts],
        "Repeated folds (musemo evaluate)": [_folds(x) for x in facts],
        "Time, and most memory": [_cost(x["record"]) for x in runs],
        "Different versions or machines": only_different(
            [_versions(x["environment"]) for x in runs]
        ),
    }
    heard = [x["emotions"] or {} for x in facts]
    page = render(
        "compare.html.j2",
        style=page_style(),
        places=places,
        groups={title: _join(rows) for title, rows in groups.items()},
        emotions={name: [x.get(name) for x in heard] for x in heard for name in x},
        comparable=say_whether_comparable(facts),
    )
    return write_atomic(out, page)


def _join(rows: list[dict[str, str]]) -> dict[str, list[str]]:  # label -> a text for each run
    labels = dict.fromkeys(label for row in rows for label in row)
    return {label: [row.get(label, "-") for row in rows] for label in labels}
