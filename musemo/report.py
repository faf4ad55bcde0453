"""The page of each section: an executed notebook, result first, code folded."""

import base64
import html
import logging
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import nbformat
from jinja2 import FileSystemLoader
from nbconvert import HTMLExporter

from musemo.core import MusemoError, Run, write_atomic
from musemo.pages import FOLDER, page_style, render
from musemo.sections import SECTIONS


def notebook_path(name: str) -> Path:
    "Find a section's notebook: in the installed package, or in the clone beside it."
    package = Path(__file__).parent
    for folder in (package / "notebooks", package.parent / "nbs"):
        if (folder / f"{name}.ipynb").exists():
            return folder / f"{name}.ipynb"
    raise MusemoError(f"the notebook {name}.ipynb is missing; install musemo again")


@cache
def read_promise(name: str) -> tuple[str, str]:
    "Read a section's title and its one-line promise."
    lines = nbformat.read(notebook_path(name), as_version=4).cells[1].source.splitlines()
    promise = next((line[1:].strip() for line in lines if line.startswith(">")), "")
    return lines[0].lstrip("# "), promise


_WIDGET = "application/vnd.jupyter.widget-view+json"
_DEBRIS = re.compile(r"[\[(<]*(Text\(|matplotlib\.|Axes|Figure size)")  # what plotting calls return


def _is_worth_reading(output: dict) -> bool:
    "Say whether an output is for readers: no warning, no bar, no widget, no plotting call's value."
    data = output.get("data", {})
    debris = set(data) == {"text/plain"} and _DEBRIS.match(data["text/plain"])
    # A widget needs a kernel and scripts from the net: a page has its static twin instead.
    return output.get("name") != "stderr" and _WIDGET not in data and not debris


def _is_aligned(text: str) -> bool:
    "Say whether printed text has columns, which need letters of one width."
    return bool(re.search(r"\S {2,}\S", text))


def _tidy_table(table: str) -> str:
    "Take out what only pandas asks for: bare row numbers, NaN, names with underscores."
    numbers = re.findall(r"<tr>\s*<th>(\d+)</th>", table)
    if numbers == [str(i) for i in range(table.count("<tr") - 1)]:
        table = re.sub(r"(<tr[^>]*>\s*)<th>\d*</th>", r"\1", table)
    table = re.sub(r"<td>(NaN|None)</td>", "<td>-</td>", table)
    table = re.sub(r"<th[^>]*>\w+</th>", lambda name: name[0].replace("_", " "), table)
    cells = re.findall(r"<td>([^<]*)</td>", table)
    if sum(cell[:1].isalpha() for cell in cells) > len(cells) / 3:
        table = table.replace('class="dataframe"', 'class="dataframe words"')
    return _box_table(table)


_PHONE = 40  # letters and gaps that a phone shows side by side


def _box_table(table: str) -> str:
    "Put a table that is too wide for a phone into a box that the keyboard reaches, named by its head."
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)", row) for row in table.split("<tr")[1:]]
    if max((len("  ".join(row)) for row in rows), default=0) <= _PHONE:
        return table
    head = html.escape(html.unescape(", ".join(filter(None, map(str.strip, rows[0])))))
    box = f'<div class="scroll" tabindex="0" role="region" aria-label="Table of {head}">'
    return table.replace("<table", f"{box}<table").replace("</table>", "</table></div>")


def _tidy(output: dict) -> dict:
    "Make what was printed readable on a page: lines flow, tables of words stand to the left."
    data = output.get("data", {})
    if output.get("name") == "stdout" and not _is_aligned(output["text"]):
        # Lines that were broken for a terminal; a list's items stay.
        output["text"] = re.sub(r"(.{70,}[^.:])\n(?=[ \t]*[^-\s])", r"\1 ", output["text"])
    if "text/html" in data:
        data["text/html"] = _tidy_table(data["text/html"])
    elif "text/plain" in data:
        data["text/plain"] = re.sub(r"\n(Name: .*)?dtype: \w+$", "", data["text/plain"])
    return output


def _result_first(cells: list, number: str) -> list:
    "Put the section's number and result behind its title, and how it works behind the result."
    on_run = next(i for i, cell in enumerate(cells) if cell.source.startswith("## On the run"))
    title = next(i for i, cell in enumerate(cells) if cell.source.startswith("# "))
    text = nbformat.v4.new_markdown_cell
    # What the letters of shapes stand for helps with the code alone.
    cells[title].source, shapes, letters = cells[title].source.partition("\n\nShapes")
    legend = [text(shapes.strip() + letters)] if shapes else []
    said = [text(f'<p class="number">{html.escape(number)}</p>')] if number else []
    rest = [*legend, *cells[:title], *cells[title + 1 : on_run]]
    behind = [text("## How it works"), *rest] if rest else []
    return [cells[title], *said, *cells[on_run:], *behind]


def _join_code(cells: list) -> list:
    "Join code that shows nothing with the code behind it: one fold instead of many."
    joined: list = []
    for cell in cells:
        if cell.cell_type == "code":
            cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M).strip()
            last = joined[-1] if joined else cell
            if last is not cell and last.cell_type == "code" and not last.outputs:
                last.source, last.outputs = f"{last.source}\n\n\n{cell.source}", cell.outputs
                continue
        joined.append(cell)
    return joined


WIDE = 560  # pixels: wider pictures are too small to read on a phone, if they were to fit


def _find_main(cells: list) -> int | None:
    "Find the cell that draws the picture which the section gives the run's page."
    for i, cell in enumerate(cells):
        if given := re.search(r"^run\.headline\(.*?(\w*figure)\b", cell.source, re.S | re.M):
            drawn = re.compile(rf"^{given[1]}\b.*=", re.M)
            return next((k for k in range(i, -1, -1) if drawn.search(cells[k].source)), None)
    return None


def _describe_pictures(cells: list, main: str) -> None:
    "Give each picture the words that introduce it, and the main one its own."
    heading, said, pictures, main_cell = "", "", [], _find_main(cells)
    for i, cell in enumerate(cells):
        if cell.cell_type == "markdown" and not cell.source.startswith("<"):
            heading = (re.findall(r"^#+ (.*)", cell.source, re.M) or [heading])[-1]
            said = re.sub(r"[`*#>]", "", cell.source.split("\n\n")[-1])
        drawn = [out for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
        words = [said] * len(drawn)
        if main and drawn and i == main_cell:
            words[-1] = main
        pictures += zip(drawn, [" ".join(f"{heading}: {x}".split()) for x in words], strict=True)
    told = [words for _, words in pictures]
    for i, (picture, alt) in enumerate(pictures):
        if told.count(alt) > 1:  # one paragraph introduces several
            alt = f"Picture {told[: i + 1].count(alt)} of {told.count(alt)}. {alt}"
        head = base64.b64decode(picture["data"]["image/png"][:32])
        wide = int.from_bytes(head[16:20]) > WIDE  # where a .png says its width
        picture.setdefault("metadata", {})["image/png"] = {"alt": alt, "unconfined": wide}


LARGEST = 15e6  # bytes of a page


def write_report(run: Run, name: str) -> Path:
    "Turn an executed notebook of a run into a page that needs no network."
    notebook = run.path(f"reports/{name}.ipynb")
    content = nbformat.read(notebook, as_version=4)
    content.metadata.pop("widgets", None)
    for cell in content.cells:
        cell["outputs"] = [_tidy(x) for x in cell.get("outputs", []) if _is_worth_reading(x)]
    headline = f"figures/{name}.json"
    number = run.load(headline)["number"] if run.has(headline) else ""
    # A page says what was done, not how the package came to where the notebook is opened.
    kept = [cell for cell in content.cells if "install" not in cell.metadata.get("tags", [])]
    content.cells = _result_first(kept, number)
    title = content.cells[0].source.splitlines()[0].lstrip("# ")
    shown = next((section.picture for section in SECTIONS if section.name == name), "")
    _describe_pictures(content.cells, "; ".join(filter(None, (shown, number))))
    content.cells = _join_code(content.cells)
    exporter = HTMLExporter(
        embed_images=True,
        exclude_anchor_links=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        extra_loaders=[FileSystemLoader(FOLDER)],
        template_file="report.html.j2",
        filters={"is_aligned": _is_aligned},
    )
    page = {"title": title, "run": run.folder.resolve().name, "style": page_style(), "nav": _NAV}
    text = exporter.from_notebook_node(content, {"page": page})[0]
    if (size := len(text.encode())) > LARGEST:
        told = "reports/%s.html has %.0f MB: more than %.0f, slow to open on a phone"
        logging.getLogger("musemo").warning(told, name, size / 1e6, LARGEST / 1e6)
    return write_atomic(notebook.with_suffix(".html"), text)


def split_kernel(run: Run, names: Iterable[str]) -> None:
    "Make the sections' pages of a kernel that was executed elsewhere, kernel.ipynb."
    kernel = nbformat.read(run.path("kernel.ipynb"), as_version=4)
    run.path("reports").mkdir(exist_ok=True)
    for name in names:
        cells = [cell for cell in kernel.cells if name in cell.metadata.get("tags", [])]
        notebook = nbformat.v4.new_notebook(cells=cells, metadata=kernel.metadata)
        nbformat.write(notebook, run.path(f"reports/{name}.ipynb"))
        write_report(run, name)


_NAV = '<nav class="sections"></nav>'  # link_reports fills it: neighbours come and go


def link_reports(run: Run) -> None:
    "Point each section's page to the neighbours that are there."
    pages = sorted(run.path("reports").glob("[0-9]*.html"))
    links = [{"name": p.name, "title": f"{p.stem[:2]} {read_promise(p.stem)[0]}"} for p in pages]
    for i, page in enumerate(pages):
        around = {"before": links[i - 1] if i else None, "after": (links[i + 1 :] or [None])[0]}
        nav = render("nav.html.j2", run=run.folder.resolve().name, **around).strip()
        text = page.read_text()
        linked = re.sub(r'<nav class="sections".*?</nav>', lambda _, nav=nav: nav, text, flags=re.S)
        if linked != text:
            write_atomic(page, linked)
