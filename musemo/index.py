"""The page that tells a run at a glance."""

from musemo.config import Config
from musemo.core import Run
from musemo.facts import changed_settings, command_line, read_facts, warn
from musemo.pages import page_style, render
from musemo.presets import field_table
from musemo.report import read_promise
from musemo.sections import SECTIONS
from musemo.verdict import ARMS, RIVALS


def read_section(run: Run, name: str, record: dict) -> dict:
    "Read what a section's card shows; number and cost only where it is done."
    title, promise = read_promise(name)
    card = {"name": name, "title": f"{name[:2]} {title}", "promise": promise, "number": ""}
    if name in record["sections"]:
        shown = run.load(told) if run.has(told := f"figures/{name}.json") else {}
        card["number"] = shown.get("number", "made by musemo train, without a page")
        card["picture"], card["gpu_memory"] = bool(shown), shown.get("gpu_memory")
        card["seconds"] = record["sections"][name]
        card["memory"] = record["memory"].get(name)
        card["page"] = run.has(f"reports/{name}.html")  # a run fetched from Kaggle has them there
        card["notebook"] = run.has(f"reports/{name}.ipynb")
    return card


def index_page(
    run: Run,
    config: Config,
    names: list[str],  # of all sections
    record: dict,  # what is done, as load_record gives it
) -> str:
    "Make the page that tells the run and links the reports of its sections."
    facts = read_facts(run, config, record["sections"])
    sections = [read_section(run, name, record) for name in names]
    missing = [card["title"] for card in sections if "seconds" not in card]
    held = {card["title"]: card.get("memory") or 0 for card in sections}
    return render(
        "index.html.j2",
        style=page_style(),
        name=run.folder.resolve().name,
        config=config,
        facts=facts,
        warnings=warn(config, facts),
        sections=sections,
        missing=missing,
        pictures={section.name: section.picture for section in SECTIONS},
        seconds=sum(record["sections"].values()),
        most_memory=max(held.items(), key=lambda item: item[1]),
        rivals={"model": "this model"} | RIVALS,
        arms=ARMS,
        changed=changed_settings(config),
        fields=field_table(config).to_dict("records"),
        environment=run.load("environment.json") if run.has("environment.json") else None,
        go_on=command_line("run", run, config),
        evaluate=command_line("evaluate", run, config),
    )
