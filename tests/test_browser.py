"""Every page of a run in a real browser: what a reader sees, hears and can reach by keyboard."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from musemo.compare import compare_runs
from musemo.core import Run
from musemo.pipeline import write_index
from musemo.records import load_config
from musemo.report import LARGEST, read_promise
from musemo.sections import SECTIONS
from tests.conftest import CHROMIUM, ROOT, in_chromium

pytestmark = in_chromium
REPORTS = [f"reports/{section.name}" for section in SECTIONS]
NAMES = ["index", *REPORTS, "../a part/index", "../compare"]


@pytest.fixture(scope="module")
def pages(smoke_run):
    "The folder of a run; beside it one of which little is done, and both compared."
    part = Run(smoke_run.parent / "a part")
    part.save("config.json", Run(smoke_run).load("config.json"))
    write_index(part, load_config(part))
    compare_runs([smoke_run, part.folder])
    return smoke_run


@pytest.fixture(scope="module")
def browser():
    "Debian's Chromium; playwright brings none of its own here."
    from playwright.sync_api import sync_playwright

    # The sandbox wants rights that a container's root has not.
    flags = ["--disable-gpu"] + ["--no-sandbox"] * (os.geteuid() == 0)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, pages):
    "Open a page of the run; the test fails where anything goes wrong on it or leaves this machine."
    opened, faults = [], []

    def note(kind):
        return lambda event: faults.append(f"{kind}: {getattr(event, 'text', event)}")

    def ask(request):
        if not request.url.startswith(("file:", "data:")):
            faults.append(f"asks for {request.url}")

    def open_page(name: str, width: int = 1200, scheme: str = "light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        opened.append(context)
        page = context.new_page()
        page.on("console", lambda message: message.type == "error" and note("console")(message))
        page.on("pageerror", note("error"))
        page.on("request", ask)
        page.on("requestfailed", lambda request: faults.append(f"failed: {request.url[:200]}"))
        page.goto((pages / f"{name}.html").resolve().as_uri())
        return page

    yield open_page
    for context in opened:
        context.close()
    assert faults == []


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_whole(name, visit, pages):
    page = visit(name)
    assert (pages / f"{name}.html").stat().st_size < LARGEST
    assert page.locator("html").get_attribute("lang") == "en" and page.title()
    assert page.locator("h1").count() == 1 and page.locator("main").count() == 1
    broken = "pictures => pictures.filter(x => !x.complete || !x.naturalWidth).map(x => x.alt)"
    assert page.locator("img").evaluate_all(broken) == []
    # A picture in a button is a picture of what the button's own label says.
    told = "pictures => pictures.filter(x => !x.closest('button')).map(x => [x.alt.trim(), x.src])"
    alts = {tuple(pair) for pair in page.locator("img").evaluate_all(told)}
    assert all(alt for alt, _ in alts) and len({alt for alt, _ in alts}) == len(alts)
    dead = """links => links.map(x => x.getAttribute('href'))
        .filter(x => x.startsWith('#') && !document.getElementById(x.slice(1)))"""
    assert page.locator("a").evaluate_all(dead) == []
    text = page.locator("body").inner_text()
    if name in REPORTS:
        number = Run(pages).load(f"figures/{Path(name).name}.json")["number"]
        assert page.locator("p.number").all_inner_texts() == [number]
        assert page.locator("h1 + blockquote").inner_text() == read_promise(Path(name).name)[1]
        assert page.locator("img").count() >= 1
    for debris in ("Warning:", "%|", "it/s]", "Traceback", "[Text(", "dtype:", "<Figure"):
        assert debris not in text, debris


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_pages_that_are_there(name, visit, pages):
    links = visit(name).locator("a").evaluate_all("links => links.map(x => x.href)")
    files = {link.partition("#")[0] for link in links}
    there = {path.resolve().as_uri() for path in pages.parent.rglob("*") if path.is_file()}
    assert files - there == set()
    if name.startswith("reports/"):
        assert any(file.endswith("/index.html") for file in files)
    if name == "index":
        reports = {(pages / report).resolve().as_uri() for report in REPORTS}
        assert {f"{report}{end}" for report in reports for end in (".html", ".ipynb")} <= files


@pytest.mark.parametrize("name", NAMES)
def test_every_player_has_a_length_a_name_and_plays(name, visit):
    page = visit(name)
    players = page.locator("audio")
    for i in range(players.count()):
        player = players.nth(i)
        heard = player.evaluate("""async player => {
            player.muted = true;
            await player.play();
            const begun = Date.now();
            while (!player.currentTime && Date.now() - begun < 5000)
                await new Promise(done => setTimeout(done, 10));
            player.pause();
            return [player.duration, player.currentTime];
        }""")
        assert 0 < heard[0] < float("inf") and heard[1] > 0, player.get_attribute("aria-label")
        assert player.get_attribute("aria-label")


def test_players_are_where_they_belong(visit):
    counts = {name: visit(name).locator("audio").count() for name in NAMES}
    assert counts["index"] == 10 and counts["../compare"] == 5
    assert counts["reports/03_data"] >= 3 and counts["reports/08_audio"] >= 10 + 25
    assert counts["reports/09_dataset"] == 6


def test_the_plane_plays_by_key_and_stops_for_another(visit):
    page = visit("reports/08_audio")
    one, other = (
        page.locator(f'button[aria-label="play valence {valence}, arousal +0.00"]').first
        for valence in ("+0.00", "+0.40")
    )
    sound = one.locator("xpath=following-sibling::audio").element_handle()
    one.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("x => !x.paused && x.currentTime > 0", arg=sound)
    other.click()
    assert sound.evaluate("x => x.paused")


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_wider_than_a_phone(name, visit):
    page = visit(name, width=390)
    page.locator("details").evaluate_all("all => all.forEach(x => (x.open = true))")
    assert page.locator("details:not([open])").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    # What the page cuts off without a way to scroll there would not widen it.
    assert page.evaluate("getComputedStyle(document.body).overflowX") == "visible"


@pytest.mark.parametrize("name", REPORTS)
def test_code_is_folded_and_opens_by_keyboard(name, visit):
    page = visit(name)
    code = page.locator("details.code .highlight")
    assert code.count() >= 3 and not any(x.is_visible() for x in code.all())
    summary = page.locator("details.code > summary").first
    assert summary.inner_text().startswith("Code, ")
    for _ in range(8 * page.locator(REACHABLE).count()):
        page.keyboard.press("Tab")
        if summary.evaluate("x => x === document.activeElement"):
            break
    page.keyboard.press("Enter")
    assert code.first.is_visible() and len(code.first.inner_text()) > 20
    summary.click()
    assert not code.first.is_visible()


REACHABLE = "a[href], audio[controls], summary, button, .scroll"


@pytest.mark.parametrize("name", NAMES)
def test_the_keyboard_reaches_everything(name, visit):
    page = visit(name)
    wanted = page.evaluate(
        """what => {
            window.left = new Set([...document.querySelectorAll(what)]);
            for (const x of left) if (!x.checkVisibility()) left.delete(x);
            window.dim = [];
            document.addEventListener("focusin", event => {
                left.delete(event.target);
                if (getComputedStyle(event.target).outlineStyle === "none") dim.push(event.target);
            });
            return left.size;
        }""",
        REACHABLE,
    )
    assert wanted >= 3
    for _ in range(8 * wanted):  # a player has some buttons of its own
        page.keyboard.press("Tab")
        if not page.evaluate("left.size"):
            break
    names = "[...{}].map(x => x.outerHTML.slice(0, 200))"
    assert page.evaluate(names.format("left")) == []
    assert page.evaluate(names.format("dim")) == []  # where one is can be seen
    unnamed = "boxes => boxes.filter(x => x.role !== 'region' || !x.ariaLabel).length"
    assert page.locator(".scroll").evaluate_all(unnamed) == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_dark_scheme_is_dark(name, visit):
    def brightness(scheme: str) -> tuple[int, int]:
        body = visit(name, scheme=scheme).locator("body")
        style = body.evaluate(
            "x => [getComputedStyle(x).color, getComputedStyle(x).backgroundColor]"
        )
        return tuple(sum(map(int, color.strip("rgb()").split(","))) for color in style)

    (ink, paper), (dark_ink, dark_paper) = brightness("light"), brightness("dark")
    assert paper - ink > 450 and dark_ink - dark_paper > 450


TEXTS = (
    "p, li, th, td, a, summary, blockquote, figcaption, code, .warnings *, .quiet, .highlight span"
)
FAINT = """what => {
    const read = color => color.match(/[\\d.]+/g).map(Number);
    const light = color => {
        const [r, g, b] = read(color).map(x => x / 255)
            .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const paper = x => {
        const color = getComputedStyle(x).backgroundColor;
        return read(color)[3] === 0 ? paper(x.parentElement) : color;
    };
    const texts = [...document.querySelectorAll(what)].filter(x => x.textContent.trim());
    const ratios = texts.map(x => {
        const both = [light(getComputedStyle(x).color), light(paper(x))].sort((a, b) => a - b);
        return (both[1] + 0.05) / (both[0] + 0.05);
    });
    const faint = texts.filter((_, i) => ratios[i] < 4.5).map(x => x.outerHTML.slice(0, 100));
    return [texts.length, [...new Set(faint)]];
}"""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_their_paper(name, scheme, visit):
    "By the ratio of WCAG 2: 4.5 for text of any size."
    page = visit(name, scheme=scheme)
    count, faint = page.evaluate(FAINT, TEXTS)
    assert count and faint == []


def test_a_section_leads_to_the_next_and_back_to_the_run(visit):
    page = visit("index")
    page.get_by_role("link", name="03 Data", exact=True).click()
    assert page.title().startswith("Data")
    page.locator("nav.sections [rel=next]").first.click()
    assert page.title().startswith("Generators")
    page.locator("nav.sections .home").last.click()
    assert page.locator("h1").inner_text() == "a smoke run"


def test_all_settings_unfold(visit, pages):
    page = visit("index")
    field = page.get_by_role("row", name="judgement.coverage")
    assert not field.is_visible()
    page.get_by_text("All ", exact=False).filter(has_text="fields").click()
    assert field.is_visible()
    assert Path(pages / "index.html").read_text().count("<tr><th>gan.") > 10


def test_without_chromium_tests_in_it_are_skipped_with_a_clear_word():
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
    command += ["tests/test_browser.py::test_a_page_is_whole", "tests/test_widgets.py"]
    environment = os.environ | {"PATH": ""}
    options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
    told = subprocess.run([*command, "-k", "whole or jupyterlab"], **options).stdout
    assert f"{len(NAMES) + 2} skipped" in told and "passed" not in told and "failed" not in told
    assert "Chromium is not installed: apt-get install chromium" in told
