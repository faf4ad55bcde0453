"""Templates and one style: what every page of a run is made with. No page needs the network."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pygments.formatters import HtmlFormatter

FOLDER = Path(__file__).parent / "templates"


def page_style() -> str:
    "Join the style of all pages with the colours of code, for light and for dark."
    light, dark = (HtmlFormatter(style=name).get_style_defs(".highlight") for name in _CODE)
    style = (FOLDER / "style.css").read_text()
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n{style}"


_CODE = ("xcode", "github-dark")  # pygments' styles whose every colour stands out from ours


def interval(ends: list[float] | None, digits: int = 2) -> str:
    "Write an interval behind its figure, or nothing where there is none."
    return f"[{ends[0]:z.{digits}f}, {ends[1]:z.{digits}f}]" if ends else ""


def figure(value: float | None, digits: int = 2) -> str:
    "Write a figure; a dash where it is not defined."
    return "-" if value is None else f"{value:z.{digits}f}"


def duration(seconds: float) -> str:
    "Write a time as people say it."
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes < 10 else f"{minutes} min"


def hours(number: float) -> str:
    "Write an amount of sound as people say it."
    return count(round(60 * number), "minute") if number < 2 else f"{number:.1f} hours"


def memory(megabytes: float) -> str:
    "Write an amount of memory as people say it."
    return f"{megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"{megabytes:.0f} MB"


def count(number: int, one: str) -> str:
    "Count things by their name."
    return f"{number} {one}" if number == 1 else f"{number} {one}s"


_templates = Environment(
    loader=FileSystemLoader(FOLDER),
    autoescape=True,  # names of songs, files and folders are anybody's
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters |= {f.__name__: f for f in (interval, figure, duration, hours, memory, count)}


def render(template: str, **values: object) -> str:
    "Fill a template of musemo/templates."
    return _templates.get_template(template).render(**values)
