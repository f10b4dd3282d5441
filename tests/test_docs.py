"The website: it builds without a warning, its links lead somewhere, it shows what it should, and a browser opens it without an error and without a network."
import ast, os, re, shutil, subprocess, sys, threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell
from playwright.sync_api import Error, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/"tools"))
import website
from test_docstrings import methods, read

CHAPTERS = sorted(path.stem for path in (ROOT/"nbs").glob("[0-9]*.ipynb"))
OURS = re.compile(r"https://(?:github\.com|colab\.research\.google\.com/github)/prdp-nb/prdp_nb/blob/main/([^#]+)(?:#L(\d+)-L(\d+))?")

class Page(HTMLParser):
    "What a page holds: its tags with their attributes, its anchors, its text."
    def __init__(self, path: Path):
        super().__init__()
        self.path, self.tags, self.shown, self.hidden = path, [], [], 0
        self.feed(path.read_text(encoding="utf-8"))
        self.text = "".join(self.shown)
        self.ids = {given["id"] for _, given in self.tags if "id" in given}
    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.hidden += tag in ("script", "style")
    def handle_endtag(self, tag): self.hidden -= tag in ("script", "style")
    def handle_data(self, data): self.shown.append(data*(not self.hidden))
    def links(self) -> Iterator[tuple[str, str]]: # (tag, target)
        for tag, given in self.tags:
            for name in ("href", "src"):
                if name in given: yield tag, given[name]

@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    done = subprocess.run([sys.executable, ROOT/"tools/website.py", "--folder", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder/"html"

@pytest.fixture(scope="module")
def pages(site) -> dict[str, Page]: return {str(path.relative_to(site)): Page(path) for path in [*site.glob("*.html"), *site.glob("api/*.html")]}

def broken(page: Page, site: Path, pages: dict[str, Page]) -> Iterator[str]:
    "Targets of a page that are not there; of other sites, those that a page would load."
    for tag, link in page.links():
        target, _, anchor = link.partition("#")
        ours = OURS.fullmatch(link)
        if ours:
            file = ROOT/unquote(ours[1])
            if not file.is_file() or ours[3] and int(ours[3]) > len(file.read_text(encoding="utf-8").splitlines()): yield link
        elif re.match(r"[a-z]+:", link):
            if tag not in ("a", "link") or not link.startswith("https://"): yield link
        else:
            path = (page.path.parent/unquote(target.split("?")[0])).resolve() if target else page.path
            other = pages.get(str(path.relative_to(site))) if path.is_relative_to(site) else None
            if not path.is_file() or anchor and (not other or unquote(anchor) not in other.ids): yield link

def test_every_link_leads_somewhere(site, pages):
    assert sum(len(list(page.links())) for page in pages.values()) > 1000
    found = {name: sorted({*broken(page, site, pages)}) for name, page in pages.items()}
    assert not {name: links for name, links in found.items() if links}

def test_a_broken_link_is_found(tmp_path):
    (tmp_path/"a.html").write_text('<p id="here"><a href="#here"></a><a href="b.html"></a><a href="#there"></a><img src="https://x.org/y.png">'
                                   '<a href="https://github.com/prdp-nb/prdp_nb/blob/main/gone.md"></a><a href="https://x.org"></a>')
    page = Page(tmp_path/"a.html")
    assert [*broken(page, tmp_path, {"a.html": page})] == ["b.html", "#there", "https://x.org/y.png", "https://github.com/prdp-nb/prdp_nb/blob/main/gone.md"]

def test_pages_follow_in_the_book_s_order(pages):
    order, name = ["index.html"], "index.html"
    while following := [given["href"] for tag, given in pages[name].tags if tag == "link" and given.get("rel") == "next"]:
        name = os.path.normpath(os.path.join(os.path.dirname(name), following[0]))
        order.append(name)
    assert order[1:len(CHAPTERS) + 1] == [f"{chapter}.html" for chapter in CHAPTERS]
    assert sorted(order[len(CHAPTERS) + 1:]) == sorted(name for name in pages if name.startswith("api/"))

def test_the_sidebar_names_every_chapter_by_its_heading(pages):
    for chapter in CHAPTERS:
        heading = next(line for cell in website.read(chapter).cells for line in cell.source.splitlines() if line.startswith("# "))
        assert website.title(chapter) == f"{chapter[:2]} {heading[2:]}" and website.title(chapter) in pages["index.html"].text

def test_directives_hidden_cells_and_controls_do_not_show(pages):
    hidden = 0
    for chapter in CHAPTERS:
        text = pages[f"{chapter}.html"].text
        assert "What you will learn." in text and "Open in Colab" in text and "#|" not in text and "VBox(children" not in text, chapter
        for cell in website.read(chapter).cells:
            directive, _, code = cell.source.partition("\n")
            if directive != "#| hide": continue
            assert code not in text, chapter
            hidden += 1
    assert hidden > 40

def test_every_image_has_an_alternative_text(pages):
    images = [(name, given) for name, page in pages.items() for tag, given in page.tags if tag == "img"]
    assert len(images) > 100
    assert not [(name, given["src"]) for name, given in images if len(given.get("alt") or "") < 20 or "/" in given["alt"].split()[0]]

@pytest.mark.parametrize("source, after, expected", [
    ("#| alt: A fox\nshow()", "*Six foxes.* The first is clean.", "A fox"),
    ("show()", "*Six `foxes` of [02](02_b.ipynb),\nall $x$.* The first is clean.", "Six foxes of 02, all x."),
    ("show()", "**Not a caption.** Text", ""), ("show()", "Text", "")])
def test_alternative_text_is_the_caption_or_what_the_cell_says(source, after, expected):
    assert website.alternative(new_code_cell(source), [new_markdown_cell(after)]) == expected

@pytest.mark.parametrize("module", website.MODULES, ids=lambda module: module.path.stem)
def test_api_page_has_all_that_a_module_exports(pages, module):
    text, source = pages[f"api/{module.path.stem}.html"].text, module.path.read_text(encoding="utf-8")
    headings = [name for name in re.findall(r"(?<=\n)(\S+)#(?=\n)", text) if "." not in name]
    names = ast.literal_eval(re.search(r"^__all__ = (\[.*?\])", source, flags=re.M | re.S)[1])
    assert sorted(headings) == sorted(names)
    shown, (tree, comments), lines = " ".join(text.replace("`", "").split()), read(source), source.splitlines()
    for owner, function in methods(tree):
        if (owner or function).name not in names: continue
        for number in comments & {*range(function.lineno, max(function.body[0].lineno, function.lineno + 1))}:
            comment = lines[number - 1].rpartition("# ")[2]
            assert " ".join(comment.replace("`", "").split()) in shown, f"{function.name}: {comment}"

def test_api_page_of_a_loss(pages):
    page = pages["api/objectives.html"]
    shown = " ".join(page.text.split())
    for expected in ("def prdp_loss(log_probs, log_probs_old, log_probs_ref, rewards, *, clip_range, kl_weight)", "rewards Tensor (B,) or (N, B)",
                     "clip_range float ε, in units of log-probability", "return Tensor scalar, mean over prompts",
                     "Raises ValueError for shapes that disagree, B < 2, β ≤ 0 or ε ≤ 0.", "Explained in 05 Objectives."):
        assert expected in shown
    lines = (ROOT/"prdp_nb/objectives.py").read_text(encoding="utf-8").splitlines()
    places = [tuple(map(int, re.search(r"objectives\.py#L(\d+)-L(\d+)$", link).groups())) for _, link in page.links() if "objectives.py#" in link]
    assert ["def prdp_loss(", "    return pair_mean(errors, reward).to(log_probs)"] in [[lines[first - 1], lines[last - 1]] for first, last in places]

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPENED = """() => ({
    formulas: document.querySelectorAll(".math").length, errors: document.querySelectorAll("[data-mml-node=merror]").length,
    wider: document.documentElement.scrollWidth - innerWidth, images: [...document.images].filter(image => !image.naturalWidth).length})"""
TYPESET = "document.querySelectorAll('.math').length == document.querySelectorAll('mjx-container').length"

@pytest.fixture(scope="module")
def browser():
    "Chromium; on GitHub there must be one."
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        try: chromium = playwright.chromium.launch(executable_path=found)
        except Error as error:
            if "GITHUB_ACTIONS" in os.environ: raise
            pytest.skip(f"no Chromium, which `.venv/bin/playwright install --with-deps chromium` brings: {str(error).splitlines()[0]}")
        yield chromium
        chromium.close()

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *said): pass

@pytest.fixture(scope="module")
def address(site):
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()

@pytest.fixture
def tab(browser, address): # opens a page of the site; fails where that page complains, or asks for anything from elsewhere
    said = []
    def open_page(name: str, width: int):
        page = browser.new_page(viewport=dict(width=width, height=900))
        page.route(lambda url: not url.startswith(address), lambda route: route.abort())
        page.on("console", lambda message: message.type in ("error", "warning") and said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("requestfailed", lambda request: said.append(f"not loaded: {request.url}"))
        page.goto(address + name)
        return page
    yield open_page
    assert not said

@pytest.mark.parametrize("width", (1280, 390))
@pytest.mark.parametrize("name", ("index", "00_derivation", "07_algorithm", "30_stability", "api/objectives"))
def test_browser_opens_a_page(tab, name, width):
    page = tab(f"{name}.html", width)
    page.wait_for_function(TYPESET)
    found = page.evaluate(OPENED)
    assert (found.pop("formulas") > 0) == (name in ("00_derivation", "07_algorithm"))
    assert found == dict(errors=0, wider=0, images=0)

def test_search_finds_a_chapter(tab):
    page = tab("search.html?q=normalising", 1280)
    page.wait_for_selector("ul.search a[href*='00_derivation']")
    page.wait_for_load_state("networkidle")
