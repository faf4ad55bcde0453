"""What a run found, read from its artifacts: the facts that its page and a comparison tell."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from musemo.annotations import say_labels
from musemo.config import Config
from musemo.core import MusemoError, Run
from musemo.data import about_data
from musemo.intervals import say_intervals
from musemo.pages import count
from musemo.presets import changed_values, config_command, look_up, make_config
from musemo.quality_record import explain_quality
from musemo.verdict import AXES, RIVALS, join_words, load_folds, say_folds, say_what_it_is_worth


_DATA = ("songs.csv", "label_audit.json")


def read_facts(run: Run, config: Config, done: dict[str, float]) -> dict:
    "Read each part whose section is done, None for the others; raises MusemoError for old ones."
    facts = {}
    for part, (section, read) in _PARTS.items():
        with _of_this_version(f"{run.folder}: section {section}", f"--from {int(section[:2])}"):
            there = section in done or part == "data" and run.has(*_DATA)  # of musemo evaluate
            facts[part] = read(run, config) if there else None
    with _of_this_version(run.path("folds.json"), "musemo evaluate, where it is deleted"):
        found = load_folds(run, config)
        facts["folds"] = read_folds(found) if found else None
        facts["old_folds"] = found is None and run.has("folds.json")
    return facts


@contextmanager
def _of_this_version(what: object, way_out: str) -> Iterator[None]:
    "Say of what lacks a fact that another version left it."
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise MusemoError(
            f"{what}: left by another version ({reason}); make it again with {way_out}"
        ) from error


def read_data(run: Run, config: Config) -> dict:
    "Tell the songs, their parts, what is left out, and the audit of the labels."
    songs, audit = run.load("songs.csv"), run.load("label_audit.json")
    usable = songs[songs["status"] == "ok"]
    seconds = usable["frames"].sum() * config.audio.hop / config.audio.sample_rate
    left_out = songs[songs["status"] != "ok"]
    judged = usable[usable["split"] == "test"][["song_id", *AXES]]
    return {
        "name": "DEAM" if audit["known"] else Path(config.data.path).name,
        "songs": len(usable),
        "hours": seconds / 3600,
        "parts": {name: int((usable["split"] == name).sum()) for name in ("train", "val", "test")},
        "left_out": left_out["status"].value_counts().to_dict(),
        "labels": say_labels(audit),
        "exchanged": len(audit["exchanged"]),
        "corrected": audit["applied"],
        "about": about_data(config).partition("\n\n")[0],
        "artists": bool(songs["artist"].notna().any()),
        "judged": [tuple(row) for row in judged.sort_values("song_id").to_numpy().tolist()],
    }


def read_generators(run: Run, config: Config) -> dict:
    "Tell each generator's score, between noise and real songs."
    quality = run.load("gan_quality.json")
    keys = ("score", "interval", "tier", "obedience", "copied")
    scores = {name: {k: x[k] for k in keys} for name, x in quality["generators"].items()}
    words = explain_quality(quality).splitlines()
    return {
        "best": quality["best"],
        "scores": dict(sorted(scores.items(), key=lambda item: -item[1]["score"])),
        "noise": quality.get("noise"),
        "real": quality["held_out"]["score"],
        "real_obedience": quality["held_out"]["obedience"],
        "words": [line for line in words if not line.startswith(_WARNING)],
        "warnings": [
            *(line.removeprefix(_WARNING) for line in words if line.startswith(_WARNING)),
            *(line for name in quality["generators"] for line in _batch_taken(run, config, name)),
        ],
    }


_WARNING = "WARNING: "


def _batch_taken(run: Run, config: Config, name: str) -> list[str]:
    "Say where memory made a training take smaller batches than it was asked to."
    parts = {"flow": "flow", "vit": "small" if config.training.recipe == "small" else "dataset"}
    part = parts.get(name, "gan")
    asked = getattr(config, part).batch_size
    taken = run.load(f"{name}_history.json").get("batch_size", asked)
    text = f"Memory ran out: {name} was trained in batches of {taken}, not {part}.batch_size = "
    return [f"{text}{asked}."] if taken != asked else []


def read_emotions(run: Run, config: Config) -> dict:
    "Tell the named emotions: what was asked, what was drawn, and the real song nearest to it."
    drawn_by = run.load("synthetic.csv")["generator"].iloc[0]
    emotions = run.load("audio/audio.json")["emotions"]
    keys = ("valence", "arousal", "file", "level")
    return {
        name.replace("_", ", "): {key: x[key] for key in keys}
        | {"drawn_by": drawn_by, "near": {k: x["nearest_song"][k] for k in ("song_id", *keys)}}
        for name, x in emotions.items()
    }


def read_predictor(run: Run, config: Config) -> dict:
    "Tell the predictor's figures on its test songs, beside those of its rivals."
    metrics = run.load("metrics.json")
    figures = {axis: {who: metrics[axis][who] for who in ("model", *RIVALS)} for axis in AXES}
    return {
        "figures": figures,
        "intervals": {axis: metrics[axis]["model_interval"] for axis in AXES},
        "gains": {
            axis: {rival: metrics[axis][f"rmse_below_{rival}_interval"] for rival in RIVALS}
            for axis in AXES
        },
        "songs": metrics["n_test"],
        "words": [*say_what_it_is_worth(metrics).splitlines(), say_intervals(metrics)],
        "warnings": _batch_taken(run, config, "vit"),
    }


_PARTS = {
    "data": ("03_data", read_data),
    "generators": ("06_gan_quality", read_generators),
    "emotions": ("08_audio", read_emotions),
    "predictor": ("12_evaluation", read_predictor),
}


def read_folds(record: dict) -> dict:
    "Tell R2 over repeated folds, and whether adding generated songs helps; empty: not measured."
    keys = ("r2", "r2_interval", "r2_seeds")
    r2 = {axis: {} for axis in AXES}
    for one in record["scores"]:
        r2[one["axis"]][one["who"]] = {key: one[key] for key in keys}
    told = [x for x in record["gains"] if (x["who"], x["over"]) == ("augmented", "model")]
    verdict = {axis: told[0][axis] for axis in AXES} if told else {}
    size = {key: record[key] for key in ("songs", "folds", "seeds")}
    return size | {"r2": r2, "verdict": verdict, "words": say_folds(record).splitlines()}


def changed_settings(config: Config) -> dict[str, tuple]:  # field -> preset's value, this run's
    "Name what differs from the preset that the run started from, but for where its songs lie."
    before, changed = make_config(config.preset).model_dump(mode="json"), changed_values(config)
    changed.pop("data.path", None)
    return {name: (look_up(before, name), value) for name, value in changed.items()}


def command_line(command: str, run: Run, config: Config) -> str:
    "Write the command that does something with this run's own configuration."
    path = config.data.path if Path(config.data.path).exists() else "WHERE_THE_SONGS_LIE"
    data = config.data.model_copy(update={"path": path})
    config = config.model_copy(update={"data": data})
    return config_command(config, command, out=run.folder.resolve())


def warn(config: Config, facts: dict) -> list[str]:
    "Say in plain words what a reader of the figures should know first."
    told = []
    if config.preset == "smoke":
        told.append("Preset smoke proves that all parts work. Its figures mean nothing else.")
    for part, find in _WARNINGS.items():
        if facts[part]:
            told += find(facts[part])
    if facts["old_folds"]:
        told.append(
            "Repeated folds were measured with other songs or settings, and are not shown: "
            "musemo evaluate measures them again."
        )
    return told


def _warn_of_data(data: dict) -> list[str]:
    told = []
    if data["about"].startswith("Demo music composed by musemo"):
        told.append(
            "The songs were composed, and rated by nobody: figures say that the suite works, "
            "not how well emotion can be predicted."
        )
    if data["left_out"]:
        reasons = ", ".join(f"{n} {status}" for status, n in data["left_out"].items())
        total = count(sum(data["left_out"].values()), "song")
        told.append(f"{total} left out ({reasons.replace('_', ' ')}); songs.csv says why.")
    if data["exchanged"] and not data["corrected"]:
        told.append(data["labels"])
    return told


def _warn_of_generators(generators: dict) -> list[str]:
    best = generators["scores"][generators["best"]]
    poor = f"Generated music is far from real: {best['score']:.0f} of 100 points."
    return [poor] * (best["tier"] == "poor") + generators["warnings"]


def _warn_of_emotions(emotions: dict) -> list[str]:
    return [f"{name}: nothing to hear." for name, x in emotions.items() if x["level"] is None]


def _warn_of_predictor(predictor: dict) -> list[str]:
    told, songs = [], count(predictor["songs"], "test song")
    for axis, gains in predictor["gains"].items():
        rivals = {who: f"the {words}" for who, words in RIVALS.items()}
        worse = [words for who, words in rivals.items() if gains[who] and gains[who][1] < 0]
        better = [words for who, words in rivals.items() if gains[who] and gains[who][0] > 0]
        even = [words for words in rivals.values() if words not in worse + better]
        if worse:
            told.append(f"{axis.capitalize()}: the model does worse than {join_words(worse)}.")
        if even:
            told.append(
                f"{axis.capitalize()}: {songs} cannot tell the model from {join_words(even)}."
            )
    told += [words for words in predictor["words"] if "too few" in words]
    return told + predictor["warnings"]


_WARNINGS = {
    "data": _warn_of_data,
    "generators": _warn_of_generators,
    "emotions": _warn_of_emotions,
    "predictor": _warn_of_predictor,
}
