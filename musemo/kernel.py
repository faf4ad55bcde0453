"""The Kaggle kernel, written for a user: his name, his settings, what is attached."""

import json
import re
from pathlib import Path

import nbformat

from musemo.config import Config
from musemo.core import MusemoError
from musemo.kaggle_client import client_needed
from musemo.presets import changed_values

NOTEBOOK, METADATA = "musemo.ipynb", "kernel-metadata.json"


def kernel_name(user: str, title: str) -> str:
    "Make a kernel's name, OWNER/SLUG; raises MusemoError where Kaggle would refuse a part of it."
    if not re.fullmatch(r"[A-Za-z0-9_-]+", user):
        raise MusemoError(
            f"--user {user!r}: must be letters, digits, - and _, as in your page's address "
            "kaggle.com/NAME"
        )
    with client_needed():
        from slugify import slugify  # the client's own: title and address must agree
    slug = slugify(title)
    if min(len(title), len(slug)) < 5:
        raise MusemoError(
            f"--title {title!r}: makes the address {slug!r}; give at least five letters or digits"
        )
    return f"{user}/{slug}"


def kernel_file(name: str) -> Path:
    "Find a file of the kernel: in the installed package, or in the clone beside it."
    package = Path(__file__).parent
    for folder in (package / "kaggle_kernel", package.parent / "kaggle"):
        if (folder / name).exists():
            return folder / name
    raise MusemoError(f"the kernel's {name} is missing; install musemo again")


_SET = r"[\w-]+/[\w-]+"


def _sources(data: list[str], weights: list[str]) -> dict[str, list[str]]:
    "Sort what is attached into Kaggle's data sets and models; raises MusemoError for neither."
    for name in data:
        if not re.fullmatch(_SET, name, re.ASCII):
            raise MusemoError(f"--data {name!r}: must be OWNER/NAME of a data set of Kaggle's")
    for name in weights:
        if not re.fullmatch(rf"{_SET}(/[\w.-]+/[\w.-]+/\d+)?", name, re.ASCII):
            raise MusemoError(
                f"--weights {name!r}: must be OWNER/MODEL/FRAMEWORK/VARIATION/VERSION of a model, "
                "or OWNER/NAME of a data set of Kaggle's"
            )
    models = [name for name in weights if name.count("/") == 4]
    sets = dict.fromkeys([*data, *(name for name in weights if name not in models)])
    return {
        "dataset_sources": [*sets],
        "model_sources": models,
    }


_WORDS = ("scratch", "statistics", "vit")
_ON_KAGGLE = {  # field that may hold a path -> what to do where it is one of this machine
    "data.path": "make it a data set of Kaggle's and name that by --data",
    "data.cache": "leave it out, a kernel's home is its own",
    "vit.weights": "make it a model or data set of Kaggle's and name that by --weights",
    "quality.embedding": "attach it as a model or data set by --weights, and set "
    "quality.embedding to its folder below /kaggle/input",
}


def write_kernel(
    folder: Path,  # new or empty
    kernel: str,  # as kernel_name gives it
    title: str,
    config: Config,
    *,
    public: bool = False,
    gpu: bool = True,
    internet: bool = True,
    data: list[str] = (),  # data sets OWNER/NAME in place of DEAM
    weights: list[str] = (),  # models or data sets that hold a ViT
) -> Path:
    "Write what is pushed: the notebook with its parameters, and its metadata."
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MusemoError(f"{folder}: is there already; name a folder that is new or empty")
    chosen = changed_values(config)
    for field, way_out in _ON_KAGGLE.items():
        place = chosen.get(field, "/kaggle")
        # A path is made whole here; the other two may be names of the hub.
        here = field.startswith("data.") or Path(place).expanduser().exists()
        if here and not place.startswith("/kaggle") and place not in _WORDS:
            raise MusemoError(f"{field} = {place!r}: is a path of this machine; {way_out}")
    if not (internet or weights or config.vit.weights == "scratch"):
        raise MusemoError(
            "--no-internet: the ViT's weights cannot come from the hub; attach some with "
            "--weights, or train without: --set vit.weights=scratch"
        )
    ears = config.quality.embedding
    if not (internet or ears in _WORDS or ears.startswith("/kaggle")):
        raise MusemoError(
            f"--no-internet: quality.embedding = {ears!r} cannot come from the hub; "
            f"{_ON_KAGGLE['quality.embedding']}"
        )
    facts = json.loads(kernel_file(METADATA).read_text())
    facts |= {"id": kernel, "title": title, "is_private": not public}
    facts |= {"enable_gpu": gpu, "enable_internet": internet}
    facts["machine_shape"] = facts["machine_shape"] if gpu else ""
    facts |= _sources(data or facts["dataset_sources"], weights)
    cell = f"# chosen for this push\npreset = {config.preset!r}\nvalues = {chosen!r}"
    notebook = nbformat.read(kernel_file(NOTEBOOK), as_version=4)
    tagged = [i for i, x in enumerate(notebook.cells) if "parameters" in x.metadata.get("tags", [])]
    notebook.cells.insert(tagged[0] + 1, nbformat.v4.new_code_cell(cell))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / METADATA).write_text(json.dumps(facts, indent=2) + "\n")
    nbformat.write(notebook, folder / NOTEBOOK)
    return folder
