"""What this machine has for musemo, what is missing, and what to do about it."""

import importlib.util
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil
import soundfile
import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from joblib import cpu_count
from packaging.requirements import Requirement

from musemo import __version__
from musemo.core import MusemoError, pick_device, pick_precision
from musemo.data import list_songs
from musemo.presets import make_config
from musemo.weights import WeightsError, find_kaggle_weights, is_vit_folder

# Where people keep DEAM; anywhere else is told by --data.
_places = ("DEAM", "deam", "data", "~/DEAM", "~/deam", "/kaggle/input")


@dataclass(frozen=True)
class Finding:
    "One thing that was looked at; `needed`: nothing runs until the advice is followed."

    topic: str
    found: str
    advice: str = ""
    needed: bool = False


def _is_met(requirement: Requirement) -> bool:
    "Say whether a package is installed in a version that will do."
    try:
        installed = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return False
    return requirement.specifier.contains(installed, prereleases=True)


def check_packages() -> Iterator[Finding]:
    "Compare what is installed with what musemo asks for, the extras apart."
    try:
        asked = metadata.requires("musemo") or []
    except metadata.PackageNotFoundError:
        advice = "pip install -e . in its folder"
        yield Finding("packages for everything", "musemo is not installed", advice, needed=True)
        return
    wanted = defaultdict(list)
    for text in asked:
        requirement = Requirement(text)
        extra = str(requirement.marker).partition("extra ==")[2].strip(" \"'")
        wanted[extra].append(requirement)
    uses = {
        "": "everything",
        "demo": "demo music",
        "kaggle": "musemo kaggle",
        "log": "--log",
        "dev": "make test",
    }
    for extra, requirements in wanted.items():
        lacking = [str(r).partition(";")[0] for r in requirements if not _is_met(r)]
        have = f"{len(requirements) - len(lacking)} of {len(requirements)}"
        name = f"musemo[{extra}]" if extra else "musemo"
        advice = f"pip install '{name}' brings {', '.join(lacking)}" if lacking else ""
        topic = f"packages for {uses.get(extra, extra)}"
        yield Finding(topic, have, advice, needed=bool(lacking) and not extra)


def check_machine() -> Iterator[Finding]:
    "Look at Python, cores, memory, disk, and the device that models would run on."
    memory = psutil.virtual_memory().total / 1e9
    free = shutil.disk_usage(".").free / 1e9
    yield Finding("Python", f"{platform.python_version()}, musemo {__version__}")
    advice = "the demo needs 4 GB; lower dataset.batch_size" if memory < 4 else ""
    yield Finding("cores and memory", f"{cpu_count()} cores, {memory:.0f} GB", advice)
    advice = "a run of DEAM takes some 5 GB: name another --out" if free < 5 else ""
    yield Finding("free disk here", f"{free:.0f} GB", advice)
    device = pick_device()
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    precision = str(pick_precision(device)).removeprefix("torch.")
    advice = "enough for presets smoke and demo; full and kaggle want a GPU"
    found = f"{', '.join(names) or device.type}, {precision}, torch {torch.__version__}"
    yield Finding("device", found, "" if names else advice)


def check_browser() -> Iterator[Finding]:
    "Look for the browser in which tests open pages."
    found = shutil.which("chromium")
    advice = "" if found else "only make test wants it, for the pages: apt-get install chromium"
    yield Finding("Chromium", found or "none", advice)


def check_sound() -> Iterator[Finding]:
    "Ask libsndfile what it reads."
    lacking = {"MP3", "WAV", "FLAC", "OGG"} - set(soundfile.available_formats())
    version = soundfile.__libsndfile_version__
    advice = f"{', '.join(sorted(lacking))} cannot be read: pip install -U soundfile"
    yield Finding("sound files", f"libsndfile {version}", advice if lacking else "")


def check_librosa() -> Iterator[Finding]:
    "Find onsets in a process of its own, for numba's cache may be broken and end it."
    wave = "numpy.eye(99, dtype='f')[9].repeat(99)"  # 32 bits, as musemo's waves are
    code = f"import librosa, numpy; librosa.onset.onset_detect(y={wave})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode == 0:
        yield Finding("librosa", "works")
    elif done.returncode == -signal.SIGSEGV:
        folder = Path(importlib.util.find_spec("librosa").origin).parent
        advice = (
            "two processes compiled at once, and what numba kept does not fit together: "
            f"find {folder} -name '*.nb[ci]' -delete"
        )
        yield Finding("librosa", "crashes", advice, needed=True)
    else:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        yield Finding("librosa", last, "pip install --force-reinstall librosa numba", needed=True)


def _look_at_data(place: Path, scale: str | None) -> Finding:
    "Count songs and sound files; raises MusemoError where a run could not read them."
    scales = {"data.scale": scale} if scale else {}
    songs, _, files = list_songs(make_config("full", {"data.path": str(place)} | scales))
    rated = songs["valence"].notna().sum()
    found = f"{place}: {rated} rated songs, {sum(map(bool, files))} sound files"
    advice = "put the songs' sound below this folder, or where the table says"
    command = f"musemo run --data {shlex.quote(str(place))}" + (
        f" --scale {scale}" if scale else ""
    )
    return Finding("data", found, command if any(files) else advice)


def check_data(data: str = "", scale: str | None = None) -> Iterator[Finding]:
    "Look for songs where they were said to be, or for DEAM where people keep it."
    places = [Path(p).expanduser() for p in ((data,) if data else _places)]
    reasons = []
    for place in places:
        if not place.exists():
            continue
        try:
            yield _look_at_data(place, scale)
            return
        except MusemoError as error:
            reasons.append(str(error))
    advice = (
        "fetch DEAM (cvml.unige.ch/databases/DEAM) and name its folder by --data, or a table of "
        "your own songs; without either musemo composes demo music"
    )
    nowhere = f"{data}: no such folder or table" if data else "DEAM is in none of the usual places"
    yield Finding("data", reasons[0] if reasons else nowhere, advice, needed=bool(data))


def _what_the_hub_said(fault: Exception | None) -> tuple[str, str]:
    "Tell a name that the hub does not know from a hub that refuses or is out of reach."
    status = getattr(getattr(fault, "response", None), "status_code", 0)
    gated = isinstance(fault, GatedRepoError)
    if status == 404 or isinstance(fault, RepositoryNotFoundError) and not gated:
        return "the hub shows no model of this name", "name one that it shows"
    if status:
        return f"the hub refuses it ({status})", "log in to it (hf auth login) or try again later"
    return "the hub does not answer", "let this machine reach the hub"


def check_weights(name: str = "") -> Iterator[Finding]:
    "Look for the pretrained ViT: among Kaggle's inputs, in the hub's cache, on the hub."
    name = name or make_config("full").vit.weights
    ways: dict[str, Callable[[], object]] = {
        "a Kaggle input": lambda: find_kaggle_weights(name),
        "the hub's cache": lambda: is_vit_folder(
            Path(snapshot_download(name, local_files_only=True))
        ),
        "the hub, to be fetched once": lambda: HfApi().model_info(name, timeout=5),
    }
    fault = None
    for where, look in ways.items():
        try:
            if look():
                yield Finding("pretrained ViT", f"{name}: {where}")
                return
        except WeightsError as error:
            yield Finding("pretrained ViT", name, str(error))
            return
        except Exception as error:  # they fail in many manners: each means that it is not there
            fault = error  # the hub's is the last
    told, step = _what_the_hub_said(fault)
    advice = (
        "presets smoke and demo need none; for full, set vit.weights to a folder, attach a ViT "
        f"on Kaggle, or {step}"
    )
    yield Finding("pretrained ViT", f"{name}: not here, and {told}", advice)


def check_kaggle() -> Iterator[Finding]:
    "Say whether credentials for Kaggle are there; what they are is nobody's business."
    home = Path("~/.kaggle").expanduser()
    files = [home / x for x in ("access_token", "access_token.txt", "credentials.json")]
    old = os.environ.get("KAGGLE_CONFIG_DIR")  # of the older file alone, as the client has it
    places = [Path(old)] if old else [home, Path("~/.config/kaggle").expanduser()]
    files += [place / "kaggle.json" for place in places]
    named = {"KAGGLE_USERNAME", "KAGGLE_KEY"} <= set(os.environ) or "KAGGLE_API_TOKEN" in os.environ
    there = named or any(file.is_file() for file in files)
    advice = f"only for musemo kaggle: a token from kaggle.com/settings goes to {files[0]}"
    yield Finding("Kaggle credentials", "there" if there else "none", "" if there else advice)


def check_jupyter() -> Iterator[Finding]:
    "Say whether the notebooks can be opened here."
    there = [name for name in ("jupyterlab", "notebook") if importlib.util.find_spec(name)]
    advice = "only to open the notebooks: pip install jupyterlab"
    yield Finding("Jupyter", ", ".join(there) or "none", "" if there else advice)


def examine(data: str = "", scale: str | None = None) -> list[Finding]:
    "Look at everything that musemo uses; nothing is written."
    checks = (check_packages(), check_machine(), check_browser(), check_sound(), check_librosa())
    checks += (check_data(data, scale), check_weights(), check_kaggle(), check_jupyter())
    return [finding for check in checks for finding in check]


def show_findings(findings: list[Finding]) -> str:
    "Lay out what was found, each thing with what to do about it below."
    width = max(len(finding.topic) for finding in findings)
    lines = []
    for finding in findings:
        mark = "missing" if finding.needed else "note" if finding.advice else "ok"
        lines.append(f"{mark:8}{finding.topic:{width}}  {finding.found}")
        if finding.advice:
            lines.append(f"{'':{width + 10}}{finding.advice}")
    return "\n".join(lines)
