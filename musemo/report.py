"""The pages that people read: a report for each executed notebook, and the index of a run."""

import html
from pathlib import Path

import nbformat
from jinja2 import DictLoader
from nbconvert import HTMLExporter

from musemo.config import Config
from musemo.core import MusemoError, Run, write_atomic


def notebook_path(name: str) -> Path:
    "Find a section's notebook: in the installed package, or in the clone beside it."
    package = Path(__file__).parent
    for folder in (package / "notebooks", package.parent / "nbs"):
        if (folder / f"{name}.ipynb").exists():
            return folder / f"{name}.ipynb"
    raise MusemoError(f"the notebook {name}.ipynb is missing; install musemo again")


_REPORT = """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_css -%}{{ super() }}
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { max-width: 64rem; margin: 0 auto !important; }
details.code > summary { cursor: pointer; opacity: .6; font-size: .8rem; }
.jp-InputPrompt, .jp-OutputPrompt { display: none !important; }
.jp-OutputArea-output { overflow-x: auto; }
.jp-RenderedText pre { word-break: normal !important; overflow-wrap: anywhere; }
img, audio { max-width: 100%; }
</style>
{%- endblock -%}
{%- block input_group -%}
{%- if cell.cell_type == 'code' -%}
<details class="code"><summary>code</summary>{{ super() }}</details>
{%- else -%}{{ super() }}{%- endif -%}
{%- endblock -%}"""


_WIDGET = "application/vnd.jupyter.widget-view+json"


def _result_first(cells: list) -> list:
    "Put the section's result behind its title, and how it works behind the result."
    on_run = next(i for i, cell in enumerate(cells) if cell.source.startswith("## On the run"))
    title = next(i for i, cell in enumerate(cells) if cell.source.startswith("# "))
    behind = nbformat.v4.new_markdown_cell("## How it works")
    return [cells[title], *cells[on_run:], behind, *cells[:title], *cells[title + 1 : on_run]]


def write_report(notebook: Path) -> Path:
    "Turn an executed notebook into a page that needs no network, code folded."
    content = nbformat.read(notebook, as_version=4)
    # A widget needs a kernel and scripts from the net: a page has its static twin instead.
    content.metadata.pop("widgets", None)
    for cell in content.cells:
        cell["outputs"] = [
            out
            for out in cell.get("outputs", [])
            if out.get("name") != "stderr" and _WIDGET not in out.get("data", {})
        ]
    content.cells = _result_first(content.cells)
    template = DictLoader({"report.html.j2": _REPORT})
    exporter = HTMLExporter(
        embed_images=True,
        exclude_anchor_links=True,
        extra_loaders=[template],
        template_file="report.html.j2",
    )
    for url in ("mathjax_url", "require_js_url", "jquery_url", "mermaid_js_url"):
        setattr(exporter, url, "")
    resources = {"metadata": {"name": notebook.stem}}
    page = exporter.from_notebook_node(content, resources)[0]
    return write_atomic(notebook.with_suffix(".html"), page)


_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
main { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); }
article { border: 1px solid #8886; border-radius: .5rem; padding: .75rem 1rem; }
h2 { font-size: 1.05rem; margin: 0; }
img { width: 100%; max-height: 16rem; object-fit: contain; background: #fff; }
p { margin: .3rem 0; } .quiet { opacity: .75; font-size: .9rem; }
@media (max-width: 24rem) { main { grid-template-columns: 1fr; } }
"""


def _promise(name: str) -> tuple[str, str]:
    "Read a notebook's title and its one-line promise."
    lines = nbformat.read(notebook_path(name), as_version=4).cells[1].source.splitlines()
    promise = next((line[1:].strip() for line in lines if line.startswith(">")), "")
    return lines[0].lstrip("# "), promise


def _card(run: Run, name: str, seconds: float | None) -> str:
    "Make a section's card: link, promise, main number, main figure, duration."
    title, promise = map(html.escape, _promise(name))
    if seconds is None:
        return f"<article><h2>{name[:2]} {title}</h2><p class=quiet>not run yet</p></article>"
    number = html.escape(run.load(f"figures/{name}.json")["number"])
    heading = f"{name[:2]} {title}"
    if run.has(f"reports/{name}.html"):  # a run fetched from Kaggle has its pages there
        heading = f'<a href="reports/{name}.html">{heading}</a>'
    return (
        f"<article><h2>{heading}</h2>"
        f"<p>{promise}</p><p><strong>{number}</strong></p>"
        f'<img src="figures/{name}.png" alt="{title}: {number}">'
        f"<p class=quiet>{seconds:.0f} s</p></article>"
    )


def index_page(
    run: Run,
    config: Config,
    sections: dict[str, float | None],  # name -> seconds it took; None: not run yet
) -> str:
    "Make the page that links the twelve reports."
    cards = "\n".join(_card(run, name, seconds) for name, seconds in sections.items())
    done = [seconds for seconds in sections.values() if seconds is not None]
    name = html.escape(run.folder.resolve().name)
    data = Path(config.data.path)
    about = data / "README.txt"
    says = about.read_text().partition("\n\n")[0] if about.is_file() else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>musemo: {name}</title><style>{_STYLE}</style></head><body>"
        f"<h1>musemo: {name}</h1><p>Data: {html.escape(data.name)}. Preset: {config.preset}. Seed: {config.seed}. "
        f"{len(done)} of {len(sections)} sections in {sum(done):.0f} s.</p>"
        f"<p>{html.escape(says)}</p>"
        f"<main>{cards}</main></body></html>"
    )
