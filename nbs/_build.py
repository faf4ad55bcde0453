"""Build the other forms from the sources: notebooks, modules and the Kaggle kernel.

python nbs/_build.py build   nbs/_src/*.py -> nbs/*.ipynb -> musemo/*.py, kaggle/musemo.ipynb
python nbs/_build.py check   the same in a temporary copy; fails where a form has drifted
python nbs/_build.py pull    nbs/*.ipynb, edited in Jupyter, back to nbs/_src/*.py
"""

import ast
import filecmp
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import jupytext
import nbformat

ROOT = Path(__file__).resolve().parent.parent
KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
# Every notebook's first code, in no source: a notebook opened from GitHub has no package beside it.
INSTALL = """#| hide
# Colab and Kaggle do not have the package yet. Elsewhere this does nothing.
from importlib.util import find_spec

if not ((found := find_spec("musemo")) and found.origin):  # a clone's folder is no package
    %pip install -q "musemo[demo] @ git+https://github.com/musemo/musemo"
"""


def stamp(notebook: nbformat.NotebookNode, name: str) -> nbformat.NotebookNode:
    "Give each cell an id made from its content, so that building twice gives the same bytes."
    seen = Counter()
    for cell in notebook.cells:
        key = (name, cell.cell_type, cell.source)
        seen[key] += 1
        text = "\0".join((*key, str(seen[key])))
        cell.id = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata = {"kernelspec": KERNELSPEC, "language_info": {"name": "python"}}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    nbformat.validate(notebook)
    path.write_text(nbformat.writes(notebook, indent=1) + "\n")


def with_install(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    "Put the cell that installs the package behind the title."
    cell = nbformat.v4.new_code_cell(INSTALL.strip(), metadata={"tags": ["install"]})
    notebook.cells.insert(2, cell)
    return notebook


def directive(cell: nbformat.NotebookNode, name: str) -> bool:
    return bool(re.search(rf"^#\| *{name}\b", cell.source, re.M))


def without_own_imports(source: str) -> str:
    "Drop `from musemo... import ...`: in the kernel those names are already there."
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("musemo"):
            lines[node.lineno - 1 : node.end_lineno] = [None] * (node.end_lineno - node.lineno + 1)
    return "\n".join(line for line in lines if line is not None).strip()


def kernel_cells(notebook: nbformat.NotebookNode) -> list:
    "Keep what a run needs: exported code, the stage after `parameters`, and the prose on both."
    kept, prose, on_run = [], [], False
    for cell in notebook.cells:
        on_run = on_run or "parameters" in cell.metadata.get("tags", [])
        if cell.cell_type == "markdown":
            prose.append(cell)
        elif directive(cell, "export") or (on_run and not directive(cell, "hide")):
            source = without_own_imports(re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M))
            if source and "parameters" not in cell.metadata.get("tags", []):
                kept += [*prose, nbformat.v4.new_code_cell(source)]
                prose = []
        elif not on_run:
            prose = [cell for cell in prose if cell.source.startswith("# ")]
    return kept


def build_kernel(root: Path) -> None:
    "Concatenate the sections into one notebook that needs neither the package nor the network."
    intro = jupytext.read(root / "nbs/_src/_kernel.py")
    for cell in intro.cells:
        cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M)
    start, configure = (cell for cell in intro.cells if "later" in cell.metadata.get("tags", []))
    cells = [cell for cell in intro.cells if cell not in (start, configure)]
    paths, waiting = sorted((root / "nbs").glob("[0-9]*.ipynb")), []
    for path, following in zip(paths, [*paths[1:], None], strict=True):
        section = kernel_cells(nbformat.read(path, as_version=4))
        for cell in section:  # by the tag, an executed kernel becomes a page a section again
            cell.metadata = {"tags": [path.stem]}
        coming = following.stem if following else "nothing, all is done"
        section.append(nbformat.v4.new_code_cell(f'end_section("{path.stem}", "{coming}")'))
        stage = next(i for i, c in enumerate(section) if c.source.startswith("## On the run"))
        # The stages of 01 and 02 need the configuration, which 02 makes.
        if path.stem == "01_core":
            section, waiting = section[:stage], section[stage:]
        elif path.stem == "02_config":
            section[stage:stage] = [start, configure, *waiting]
        cells += section
    write(stamp(nbformat.v4.new_notebook(cells=cells), "kernel"), root / "kaggle/musemo.ipynb")


def open_second_module(source: Path, root: Path) -> None:
    "Begin the module that cells marked `#| export NAME` go to: nbdev only adds to it."
    for name in sorted(set(re.findall(r"^#\| export (\w+)$", source.read_text(), re.M))):
        head = f"# AUTOGENERATED! DO NOT EDIT! File to edit: ../nbs/{source.stem}.ipynb."
        (root / "musemo" / f"{name}.py").write_text(f"{head}\n\n# %% auto #0\n__all__ = []\n")


def build(root: Path) -> None:
    for source in sorted((root / "nbs/_src").glob("[0-9]*.py")):
        notebook = stamp(with_install(jupytext.read(source)), source.stem)
        write(notebook, root / "nbs" / f"{source.stem}.ipynb")
        open_second_module(source, root)
    subprocess.run([Path(sys.executable).parent / "nbdev_export"], cwd=root, check=True)
    build_kernel(root)


def pull(root: Path) -> None:
    for path in sorted((root / "nbs").glob("[0-9]*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        notebook.metadata = {}
        notebook.cells = [x for x in notebook.cells if "install" not in x.metadata.get("tags", [])]
        for cell in notebook.cells:
            tags = cell.metadata.get("tags")
            cell.metadata = {"tags": tags} if tags else {}
        text = jupytext.writes(notebook, fmt="py:percent")
        # The header names the jupytext version: it would change with every release.
        text = re.sub(r"\A# ---\n.*?# ---\n\n", "", text, flags=re.S)
        (root / "nbs/_src" / f"{path.stem}.py").write_text(text)
    subprocess.run([sys.executable, "-m", "ruff", "format", "-q", root / "nbs/_src"], check=True)


def written_by_hand(root: Path) -> list[Path]:
    "List the modules that no notebook exports: nbdev marks those that it writes."
    modules = (root / "musemo").glob("*.py")
    return [path for path in modules if "autogenerated" not in path.read_text().lower()]


def built_files(root: Path) -> set[str]:
    patterns = ("nbs/*.ipynb", "musemo/*.py", "kaggle/musemo.ipynb")
    return {str(p.relative_to(root)) for pattern in patterns for p in root.glob(pattern)}


def check(root: Path) -> list[str]:
    "Name the built files that are not what the sources give."
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        shutil.copytree(root / "nbs/_src", fresh / "nbs/_src")
        (fresh / "musemo").mkdir()
        (fresh / "kaggle").mkdir()
        for path in (root / "settings.ini", root / "setup.py", *written_by_hand(root)):
            shutil.copy(path, fresh / path.relative_to(root))
        build(fresh)
        names = built_files(root) | built_files(fresh)
        same = filecmp.cmpfiles(root, fresh, names, shallow=False)[0]
    return sorted(names - set(same))


def main() -> None:
    command = sys.argv[1] if len(sys.argv) == 2 else ""
    if command not in ("build", "check", "pull"):
        sys.exit(__doc__)
    if command == "check":
        drifted = check(ROOT)
        if drifted:
            sys.exit(
                f"drifted from nbs/_src: {', '.join(drifted)}; run `make nbs` (or `make pull`)"
            )
        print("sources, notebooks, modules and kernel agree")
    elif command == "build":
        build(ROOT)
        pull(ROOT)  # changes blank lines between cells at most: one spacing, whoever wrote last
    else:
        pull(ROOT)


if __name__ == "__main__":
    main()
