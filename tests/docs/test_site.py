"""The built site: it needs nothing from the web, its links, pictures and search lead somewhere, and it reads well."""

import json
import shutil
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("mkdocstrings", reason="the site needs: pip install 'pwgf[docs]'")

import pwgf
from docs.tools import build, docstrings, pages

pytestmark = pytest.mark.slow
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LOADED = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src"}  # by a page, unasked
SHOWN = ("index", "docs/start", "docs/which-map", "docs/api/schemes", "docs/tutorials/aggregation", "docs/gallery")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built with warnings as errors."""
    return build.build(tmp_path_factory.mktemp("built"))


class Page(HTMLParser):
    """What a page links to, loads, and can be linked to, and its words."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.anchors, self.words = [], [], set(), []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors.add(given.get("id"))
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif given.get(LOADED.get(tag)) and given.get("rel") != "canonical":
            self.loads.append(given[LOADED[tag]])

    def handle_data(self, data):
        self.words.append(data)


def broken(site):
    """Links and pictures within the site that lead nowhere, and what is loaded from the web."""
    read = {path: Page(path) for path in site.rglob("*.html")}
    found = []
    for path, page in read.items():
        wanted = [link for link in page.links + page.loads if not urlsplit(link).scheme]
        found += [f"{path.name} loads {link}" for link in page.loads if urlsplit(link).scheme not in ("", "data")]
        for link in wanted:
            parts = urlsplit(link)
            start = site if parts.path.startswith("/") else path.parent  # 404.html
            target = (start / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            if not target.exists() or (anchor and target in read and anchor not in read[target].anchors):
                found.append(f"{path.relative_to(site)}: {link}")
    return len(read), found


def test_the_check_sees_what_is_broken(tmp_path):
    lines = '<a href="b.html">', '<img src="c.png">', '<a href="#d">', '<script src="https://e.org/f.js"></script>'
    (tmp_path / "a.html").write_text(f"{' '.join(lines)}<a href='#here' id='here'>", encoding="utf-8")
    loads = "a.html loads https://e.org/f.js"
    assert broken(tmp_path) == (1, [loads, "a.html: b.html", "a.html: #d", "a.html: c.png"])


def test_links_and_pictures_lead_somewhere_and_nothing_comes_from_the_web(site):
    count, found = broken(site)
    assert count > 50 and found == []


def test_a_warning_ends_the_build(tmp_path, monkeypatch, caplog):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("[a](none.md)", encoding="utf-8")
    plain = "site_name: x\nplugins: []\nvalidation: {links: {not_found: warn}}\n"
    (tmp_path / "mkdocs.yml").write_text(plain, encoding="utf-8")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    with pytest.raises(Exception, match="Aborted with 1 warnings in strict mode"):
        build.built(tmp_path / "docs", tmp_path / "site")


def test_the_search_knows_the_names(site):
    entries = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    found = {entry["location"] for entry in entries if "PWGF" in entry["title"]}
    assert "docs/api/schemes.html#pwgf.schemes.PWGF" in found
    assert any("pwgf.maps.ResidualMLP" in entry["location"] for entry in entries)


def test_all_public_names_are_documented(site):
    read = list((site / "docs" / "api").glob("*.html"))
    anchors = set().union(*(Page(path).anchors for path in read)) - {None}
    documented = {anchor.split(".")[-1] for anchor in anchors if anchor.startswith("pwgf.")} | {p.stem for p in read}
    assert set(pwgf.__all__) - documented == {"__version__"}


@pytest.mark.parametrize("name", ["schemes.PWGF", "energies.Local", "energies.Interaction", "linalg.CG"])
def test_formulas_of_docstrings_are_shown_as_written(site, name):
    folder, cls = name.split(".")
    text = getattr(getattr(pwgf, folder), cls).__doc__.partition("Args:")[0]
    shown = Page(site / "docs" / "api" / f"{folder}.html").text
    assert " ".join(text.replace("`", "").split()) in shown


def test_docstrings_become_sections():
    assert docstrings.one_a_line("Args:\n    a, b: two.\n    c: one.") == "Args:\n    a: two.\n    b: two.\n    c: one."


def test_tutorials_are_pages_with_pictures_and_notebooks(site):
    for script in pages.TUTORIALS:
        page = site / "docs" / "tutorials" / f"{script.stem}.html"
        assert any("docs/images" in str((page.parent / link).resolve()) for link in Page(page).loads)
        assert json.loads(page.with_suffix(".ipynb").read_text(encoding="utf-8"))["cells"][0]["cell_type"] == "markdown"


def test_the_gallery_shows_each_experiment_with_its_command(site):
    page = Page(site / "docs" / "gallery.html")
    scripts = [p for p in (pages.ROOT / "experiments").glob("*.py") if "__main__" in p.read_text(encoding="utf-8")]
    missing = [path.stem for path in scripts if f"python -m experiments.{path.stem}" not in page.text]
    assert missing == []
    assert sum(link.endswith(".png") for link in page.loads) >= 8


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="the browser is driven by: pip install 'pwgf[docs]'")
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no browser; install one: apt-get install chromium")
    with sync_api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=program)
        yield started
        started.close()


ABORTED = "net::ERR_ABORTED"  # the browser left the page before an icon had come


@pytest.fixture
def page(browser):
    """A page whose errors fail the test."""
    opened = browser.new_page()
    wrong = []
    opened.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("requestfailed", lambda request: wrong.append(request.url) if request.failure != ABORTED else None)
    yield opened
    opened.close()
    assert wrong == []


@pytest.mark.parametrize("width", [1300, 390])  # a screen and a telephone
def test_pages_load_their_pictures_and_fit(site, page, width):
    page.set_viewport_size({"width": width, "height": 800})
    for name in SHOWN:
        page.goto((site / f"{name}.html").as_uri())
        page.wait_for_load_state("load")
        broken_pictures = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
        assert page.evaluate(broken_pictures) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name


def test_the_search_of_a_page_opened_as_a_file_finds_a_name(site, page):
    page.set_viewport_size({"width": 1300, "height": 800})
    page.goto((site / "index.html").as_uri())
    page.locator(".md-search__input").fill("PWGF")
    found = page.locator(".md-search-result__link")
    found.first.wait_for(timeout=20_000)
    assert any("api/schemes.html" in link.get_attribute("href") for link in found.all())
