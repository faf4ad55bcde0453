"""The four forms agree, and the house keeps to its plan."""

import ast
import importlib
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "nbs"))

# Who may import whom, in exported code.
MAY_IMPORT = {
    "allocator": set(),
    "core": {"allocator"},
    "environment": {"core"},
    "tracking": {"core"},
    "memory": {"core"},
    "widgets": {"core"},
    "settings": set(),
    "vit_settings": {"settings"},
    "config": {"settings", "vit_settings"},
    "presets": {"config"},
    "form": {"config", "presets"},
    "annotations": {"core"},
    "spectrum": {"config", "sound_files"},
    "jobs": {"core"},
    "sound_files": {"core"},
    "splitting": {"core"},
    "data": {"core", "config", "annotations", "jobs", "sound_files", "spectrum", "splitting"},
    "song_browser": {"core", "config", "data", "spectrum", "widgets"},
    "pieces": set(),
    "gan": {"config", "pieces"},
    "residual": {"config", "gan"},
    "flow": {"config", "pieces"},
    "drawing": {"core", "config", "gan", "flow"},
    "movers": {"core"},
    "fitted": {"core", "config", "drawing", "memory"},
    "generator_training": {
        *("core", "config", "drawing", "fitted", "movers", "tracking", "memory")
    },
    "training_cost": {"core", "config", "generator_training"},
    "gan_training": {"core", "config", "gan", "generator_training"},
    "residual_training": {"core", "config", "residual", "gan_training", "generator_training"},
    "flow_training": {"core", "config", "flow", "generator_training"},
    "distance": {"core", "config"},
    "embeddings": {"core"},
    "obedience": {"distance"},
    "score_parts": set(),
    "judge": {"core", "distance", "embeddings", "obedience", "score_parts"},
    "attempts": {"distance", "judge"},
    "quality_record": {"core", "config", "distance", "judge", "obedience", "score_parts"},
    "gan_quality": {
        *("core", "config", "audio", "distance", "embeddings", "judge"),
        *("attempts", "quality_record"),
        *("vit", "dataset"),  # quality.embedding=vit: the run's own predictor as the judge's ear
    },
    "quality_plots": {"core", "config"},
    "synthesis": {"core", "config", "data", "drawing", "memory", "pieces"},
    "audio": {"core", "config", "spectrum"},
    "listening": {"core", "config", "audio", "gan_quality", "widgets"},
    "plane": {"core", "config", "audio", "listening", "widgets"},
    "augmentation": {"config"},
    "dataset": {"core", "config", "data", "augmentation"},
    "descriptors": {"config"},
    "readout": {"config"},
    "weights": {"core", "config"},
    "backbone": {"weights"},
    "vit": {"config", "backbone", "descriptors", "readout", "weights"},
    "processes": {"core", "config", "jobs"},
    "pretext": {"core", "config", "descriptors", "readout", "vit", "processes", "tracking"},
    "activation_cache": {"core", "config", "vit", "processes"},
    "small_training": {
        *("core", "config", "readout", "vit", "dataset"),
        *("processes", "activation_cache", "pretext"),
    },
    "vit_training": {
        *("core", "config", "vit", "dataset"),
        *("augmentation", "processes", "activation_cache", "small_training", "tracking", "memory"),
    },
    "metrics": set(),
    "verdict": {"core", "config", "presets", "metrics"},
    "intervals": {"readout"},
    "evaluation_plots": {"core"},
    "explanation": {"core", "config", "readout", "vit", "dataset", "metrics"},
    "hearing": {"core", "config", "sound_files", "spectrum"},
    "model_card": {"core", "config", "data", "verdict"},
    "answers": {"core", "config", "batches", "hearing"},
    "batches": {"dataset", "hearing", "vit"},
    "prediction": {
        *("core", "config", "presets", "weights", "vit"),
        *("answers", "batches", "hearing", "model_card"),
    },
    "drop_zone": set(),
    "drop_song": {
        *("core", "config", "song_browser", "audio", "listening", "widgets", "drop_zone"),
        *("answers", "explanation", "hearing", "prediction"),
    },
    "evaluation": {
        *("core", "config", "presets", "data", "audio"),
        *("descriptors", "readout", "vit", "dataset", "metrics", "verdict", "intervals"),
    },
}
BY_HAND = {
    *("__init__", "__main__", "_modidx"),
    *("cli", "cli_kaggle", "cli_models", "cli_options", "cli_runs", "composer"),
    *("demo", "doctor", "execution", "folds", "kaggle_client", "keeping", "kernel", "opening"),
    *("peak_memory", "pipeline", "protocol"),
    *("records", "report", "pages", "facts", "index", "compare", "sections"),
}
SECOND = {
    "allocator",
    "environment",
    "tracking",
    "memory",
    "jobs",
    "drop_song",
    "drop_zone",
    "song_browser",
    "form",
    "widgets",
    "settings",
    "vit_settings",
    "presets",
    "annotations",
    "pieces",
    "residual",
    "residual_training",
    "flow",
    "drawing",
    "movers",
    "fitted",
    "generator_training",
    "training_cost",
    "flow_training",
    "distance",
    "embeddings",
    "obedience",
    "score_parts",
    "judge",
    "attempts",
    "quality_record",
    "quality_plots",
    "listening",
    "plane",
    "sound_files",
    "splitting",
    "spectrum",
    "augmentation",
    "processes",
    "activation_cache",
    "metrics",
    "verdict",
    "hearing",
    "batches",
    "model_card",
    "answers",
    "prediction",
    "descriptors",
    "intervals",
    "evaluation_plots",
    "explanation",
    "readout",
    "backbone",
    "weights",
    "pretext",
    "small_training",
}  # exported beside a notebook's own module


def own_imports(path: Path) -> set[str]:
    "Name the modules of musemo that a file imports, relative or absolute."
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                found |= {module} if module else {alias.name for alias in node.names}
            elif module.split(".")[0] == "musemo":
                found |= {module.partition(".")[2]} if "." in module else {"musemo"}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("musemo")}
    return found


def test_modules_are_those_of_the_notebooks():
    notebooks = {path.stem[3:] for path in (ROOT / "nbs").glob("[0-9]*.ipynb")}
    modules = {path.stem for path in (ROOT / "musemo").glob("*.py")} - BY_HAND - SECOND
    assert len(notebooks) == 12
    assert modules == notebooks


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_imports_keep_to_the_table(module):
    assert own_imports(ROOT / f"musemo/{module}.py") <= MAY_IMPORT[module]


def test_nothing_of_ours_imports_development_tools():
    for path in (ROOT / "musemo").glob("*.py"):
        text = path.read_text()
        assert "import nbdev" not in text and "fastcore" not in text, path.name


@pytest.mark.parametrize("path", sorted((ROOT / "musemo").glob("*.py")), ids=lambda p: p.stem)
def test_modules_stay_under_300_lines(path):
    assert path.stem == "_modidx" or len(path.read_text().splitlines()) < 300


def test_no_name_is_left_undefined():
    "A name of an unexported cell would be undefined in the module: ruff's F821 finds it."
    command = [sys.executable, "-m", "ruff", "check", "--select", "F821,F401", "musemo"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def top_level_names() -> Counter:
    "Count the names that the modules define."
    names = Counter()
    for module in MAY_IMPORT:
        for node in ast.parse((ROOT / f"musemo/{module}.py").read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names[node.name] += 1
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names.update(t.id for t in targets if isinstance(t, ast.Name))
    return names


def test_top_level_names_are_unique():
    "The Kaggle kernel has all modules in one namespace."
    assert [x for x, n in top_level_names().items() if n > 1 and x != "__all__"] == []


@pytest.mark.parametrize("path", sorted((ROOT / "nbs").glob("[0-9]*.ipynb")), ids=lambda p: p.stem)
def test_stages_hide_no_exported_name(path):
    "In the kernel, a section's own variables must not take the name of another's function."
    cells, on_run, own = nbformat.read(path, as_version=4).cells, False, set()
    for cell in cells:
        on_run = on_run or "parameters" in cell.metadata.get("tags", [])
        if on_run and cell.cell_type == "code":
            nodes = [x for x in ast.walk(ast.parse(cell.source)) if isinstance(x, ast.Name)]
            own |= {node.id for node in nodes if isinstance(node.ctx, ast.Store)}
    assert own & set(top_level_names()) == set()


def test_modules_import_alone():
    "Each in any order: nothing relies on what another module imported before."
    code = """
import importlib, sys
for module in sys.argv[1:]:
    for name in [name for name in sys.modules if name.startswith("musemo")]:
        del sys.modules[name]
    importlib.import_module(f"musemo.{module}")
"""
    command = [sys.executable, "-c", code, *MAY_IMPORT]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "module", ["core", "listening", "evaluation", "prediction", "gan_quality", "cli"]
)
def test_importing_costs_little_beside_torch(module):
    "Processor time up to here against torch's own: how fast the machine is does not matter."
    code = "import time; import torch; usual = time.process_time(); "
    code += f"import musemo.{module}; print(time.process_time() / usual)"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    assert float(result.stdout) < 3.3


def test_a_notebook_loads_nothing_that_executes_notebooks():
    code = "import sys, musemo.opening; print(*{'papermill', 'nbconvert'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == ""


def copy_forms(folder: Path) -> None:
    "Copy the sources and all that is built from them."
    for name in ("nbs", "musemo", "kaggle", "settings.ini", "setup.py", ".ruff.toml"):
        subprocess.run(["cp", "-r", ROOT / name, folder / name], check=True)


def test_a_drifted_form_is_noticed(tmp_path):
    build = importlib.import_module("_build")
    copy_forms(tmp_path)
    module = tmp_path / "musemo/core.py"
    module.write_text(module.read_text() + "\nx = 1\n")
    (tmp_path / "nbs/13_old.ipynb").write_text("{}")
    assert build.check(tmp_path) == ["musemo/core.py", "nbs/13_old.ipynb"]


def test_an_edited_notebook_comes_back_to_its_source(tmp_path):
    build = importlib.import_module("_build")
    copy_forms(tmp_path)
    before = {path.name: path.read_text() for path in (tmp_path / "nbs/_src").glob("[0-9]*.py")}
    build.pull(tmp_path)
    after = {path.name: path.read_text() for path in (tmp_path / "nbs/_src").glob("[0-9]*.py")}
    assert before == after
    path = tmp_path / "nbs/01_core.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].source += "\n\nAn edit made in Jupyter."
    code = next(cell for cell in notebook.cells if "def seed_for(" in cell.source)
    code.source = code.source.replace("Derive the seed", "Find the seed")
    code.outputs = [nbformat.v4.new_output("stream", text="what Jupyter leaves")]
    nbformat.write(notebook, path)
    build.pull(tmp_path)
    source = (tmp_path / "nbs/_src/01_core.py").read_text()
    assert "# An edit made in Jupyter." in source and '"Find the seed of one use' in source
    build.build(tmp_path)
    built = nbformat.read(path, as_version=4)
    pairs = [[(x.cell_type, x.source) for x in book.cells] for book in (built, notebook)]
    assert pairs[0] == pairs[1]
    assert '"Find the seed of one use' in (tmp_path / "musemo/core.py").read_text()
    assert build.check(tmp_path) == []


def test_a_notebook_installs_the_package_only_where_it_is_missing(monkeypatch):
    install, calls = importlib.import_module("_build").INSTALL, []
    code = TransformerManager().transform_cell(install)  # as a notebook reads %pip
    shell = SimpleNamespace(run_line_magic=lambda *words: calls.append(words))
    exec(code, {"get_ipython": lambda: shell})
    assert calls == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    exec(code, {"get_ipython": lambda: shell})
    assert calls == [("pip", 'install -q "musemo[demo] @ git+https://github.com/musemo/musemo"')]
    for path in (ROOT / "nbs").glob("[0-9]*.ipynb"):
        cells = [x.source for x in nbformat.read(path, as_version=4).cells if x.cell_type == "code"]
        assert cells[0].startswith("#| default_exp") and cells[1] == install.strip()
        assert install.strip() not in cells[2:]
    assert "%pip" not in (ROOT / "kaggle/musemo.ipynb").read_text()


def test_the_readme_opens_each_notebook_in_colab_and_on_kaggle():
    text, page = (ROOT / "README.md").read_text(), "github.com/musemo/musemo/blob/main/nbs/"
    for path in (ROOT / "nbs").glob("[0-9]*.ipynb"):
        colab = f"https://colab.research.google.com/{page.replace('.com', '')}{path.name}"
        assert f"colab-badge.svg)]({colab})" in text
        kaggle = f"https://kaggle.com/kernels/welcome?src=https://{page}{path.name}"
        assert f"open-in-kaggle.svg)]({kaggle})" in text


NEXT_STEP = re.compile(  # a verb that asks, the rule itself, or a text that tells ways out
    r"\b(must|needed|add|attach|choose|convert|delete|export|free|give|install|launch|leave|look"
    r"|lower|make|mend|name|raise|remove|replace|resample|run|save|say|set|start|train|transpose"
    r"|try|use|wait|log in|login|ways out)\b"
)
# Errors whose own words name no step: it stands in what they pass on.
PASSES_ON = {
    "cli_models: '\\n  '.join(lines)": "the error of each song",
    "data: f'{error}; data.path = {data.path!r} has {counts}'": "the error of split_songs",
    "execution: f'{name}: {error.evalue}'": "a MusemoError of the section",
    "execution: f'{name}: memory ran out; {_smaller(name)}'": "_smaller says what to lower",
    "execution: f'{name}: the kernel died, most likely for want of memory; {_smaller(name)}; "
    "musemo doctor looks for other causes'": "_smaller says what to lower",
    "kernel: f'{field} = {place!r}: is a path of this machine; {way_out}'": "_ON_KAGGLE says it",
    "prediction: f'{name}: {error}'": "a MusemoError of the model",
    "prediction: str(error)": "a MusemoError of the song",
    "records: f\"{run.path('config.json')} cannot be read by this version ({error}): {way_out}\"": (
        "way_out says what to do"
    ),
}


def own_words(code: ast.AST, constants: dict[str, str]) -> str:
    "Join the texts that stand in a piece of code, and those of the constants that it names."
    found = []
    for node in ast.walk(code):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
        elif isinstance(node, ast.Name):
            found.append(constants.get(node.id, ""))
    return " ".join(found)


def test_every_error_says_what_to_do():
    "In its own words: a variable's name tells nobody what to do."
    trees = {path.stem: ast.parse(path.read_text()) for path in (ROOT / "musemo").glob("*.py")}
    constants, silent = {}, []
    for node in [node for tree in trees.values() for node in tree.body]:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "").isupper():
            constants[node.targets[0].id] = own_words(node.value, {})
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and node.args:
                raised = getattr(node.func, "id", "") in ("MusemoError", "WeightsError")
                if raised and not NEXT_STEP.search(own_words(node.args[0], constants)):
                    silent.append(f"{module}: {ast.unparse(node.args[0])}")
    assert set(silent) == set(PASSES_ON)


def test_what_is_made_once_for_several_tests_is_made_in_one_process(request):
    "Workers that ignored the groups would each make the smoke run, and say nothing."
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("only with several workers: -n 2 --dist loadgroup")
    assert request.node.nodeid.endswith("@test_forms")
