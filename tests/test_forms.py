"""The four forms agree, and the house keeps to its plan."""

import ast
import importlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "nbs"))

# Who may import whom, in exported code.
MAY_IMPORT = {
    "core": set(),
    "settings": set(),
    "vit_settings": {"settings"},
    "config": {"settings", "vit_settings"},
    "presets": {"config"},
    "annotations": {"core"},
    "spectrum": {"config"},
    "data": {"core", "config", "annotations", "spectrum"},
    "pieces": set(),
    "gan": {"config", "pieces"},
    "residual": {"config", "gan", "pieces"},
    "flow": {"config", "pieces"},
    "drawing": {"core", "config", "gan", "residual", "flow"},
    "movers": {"core"},
    "generator_training": {"core", "config", "drawing", "movers"},
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
    "synthesis": {"core", "config", "data", "drawing", "pieces"},
    "audio": {"core", "config", "spectrum"},
    "listening": {"core", "config", "audio"},
    "plane": {"core", "config", "audio", "listening"},
    "augmentation": {"config"},
    "dataset": {"core", "config", "data", "augmentation"},
    "descriptors": {"config"},
    "readout": {"config"},
    "weights": set(),
    "vit": {"config", "descriptors", "readout", "weights"},
    "processes": {"core", "config"},
    "pretext": {"core", "config", "descriptors", "readout", "vit", "processes"},
    "activation_cache": {"core", "config", "vit", "processes"},
    "small_training": {
        *("core", "config", "readout", "vit", "dataset"),
        *("processes", "activation_cache", "pretext"),
    },
    "vit_training": {
        *("core", "config", "vit", "dataset"),
        *("augmentation", "processes", "activation_cache", "small_training"),
    },
    "metrics": set(),
    "verdict": {"metrics"},
    "intervals": {"readout"},
    "evaluation_plots": {"core"},
    "explanation": {"core", "config", "readout", "vit", "dataset", "metrics"},
    "hearing": {"core", "config", "spectrum"},
    "model_card": {"core", "config", "verdict"},
    "answers": {"core", "config"},
    "prediction": {
        *("core", "config", "presets", "vit", "dataset"),
        *("answers", "hearing", "model_card"),
    },
    "evaluation": {
        *("core", "config", "presets", "data", "audio"),
        *("descriptors", "readout", "vit", "dataset", "metrics", "verdict", "intervals"),
    },
}
BY_HAND = {
    *("__init__", "__main__", "_modidx", "cli", "cli_models", "cli_options", "cli_runs"),
    *("demo", "pipeline", "protocol", "report"),
}
SECOND = {
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
    "spectrum",
    "augmentation",
    "processes",
    "activation_cache",
    "metrics",
    "verdict",
    "hearing",
    "model_card",
    "answers",
    "prediction",
    "descriptors",
    "intervals",
    "evaluation_plots",
    "explanation",
    "readout",
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
def test_importing_takes_under_five_seconds(module):
    # Processor seconds: what else the machine does is not the module's fault.
    code = f"import time; import musemo.{module}; print(time.process_time())"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    assert float(result.stdout) < 5


def test_a_drifted_form_is_noticed(tmp_path):
    build = importlib.import_module("_build")
    for name in ("nbs", "musemo", "kaggle"):
        subprocess.run(["cp", "-r", ROOT / name, tmp_path / name], check=True)
    for name in ("settings.ini", "setup.py"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    module = tmp_path / "musemo/core.py"
    module.write_text(module.read_text() + "\nx = 1\n")
    (tmp_path / "nbs/13_old.ipynb").write_text("{}")
    assert build.check(tmp_path) == ["musemo/core.py", "nbs/13_old.ipynb"]


def test_an_edited_notebook_comes_back_to_its_source(tmp_path):
    build = importlib.import_module("_build")
    subprocess.run(["cp", "-r", ROOT / "nbs", ROOT / ".ruff.toml", tmp_path], check=True)
    before = {path.name: path.read_text() for path in (tmp_path / "nbs/_src").glob("[0-9]*.py")}
    build.pull(tmp_path)
    after = {path.name: path.read_text() for path in (tmp_path / "nbs/_src").glob("[0-9]*.py")}
    assert [name for name in before if before[name].strip() != after[name].strip()] == []
    path = tmp_path / "nbs/01_core.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].source += "\n\nAn edit made in Jupyter."
    nbformat.write(notebook, path)
    build.pull(tmp_path)
    assert "# An edit made in Jupyter." in (tmp_path / "nbs/_src/01_core.py").read_text()
