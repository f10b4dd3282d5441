"""Rooms 16 and 17: text from outside in figures and tables. A prompt, a scorer or a folder may have
any name; it is drawn as it stands, within its place, and what cannot be drawn is said."""
import re, warnings
import numpy as np, pandas as pd, pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from prdp_nb.comparison import Evaluation, as_markdown, before_after
from prdp_nb.figures import (
    draw_gains, draw_gallery, draw_grid, draw_metric, draw_tradeoff, font_families, font_family, fit)

LONG = ("a highly detailed matte painting of a fox on a hill under a full moon, trending on "
        "artstation, by a master of light, cinematic, 8k, ")*2
NAMES = {"one dollar": "a 5$ bill", "two dollars": "from 5$ to 10$", "broken mathematics": r"$\frac{$",
         "mathematics": "$x_1$", "backslash": r"\$5 and \alpha", "escaped": r"\$a\$", "long": LONG,
         "one word": "W"*200, "a path": "/data/" + "deep/"*40 + "prompts.txt", "empty": "",
         "lines": "one\ntwo\tthree", "braces": "{fox} %s <b>", "underscore": "_fox",
         "control": "a\x00b\x07c"}

@pytest.fixture(autouse=True)
def no_warnings(): # but where a test expects one
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield

@pytest.fixture
def drawn(monkeypatch):
    "The figures that were saved, with what their text said and where it stood."
    figures = []
    save = Figure.savefig
    def keep(figure, path, **options):
        save(figure, path, **options)
        renderer = FigureCanvasAgg(figure).get_renderer()
        figures.append([(text.get_text(), text.get_window_extent(renderer), text.get_parse_math())
                        for text in figure.findobj(Text) if text.get_text() and text.get_visible()])
    monkeypatch.setattr(Figure, "savefig", keep)
    return figures

def image(colour="teal"): return Image.new("RGB", (32, 32), colour)

def pixels_of(path):
    with Image.open(path) as file: return np.asarray(file.convert("RGB"))

def summary(**names): # as of `summarise`
    rows = [dict(scorer=scorer, prompt_set="set", method="prdp", gain=0.1, low=0.0, high=0.2)
            for scorer in ("one", "two")]
    return pd.DataFrame(rows).assign(**names)

def evaluation(prompts, scorer="x"):
    scores = {scorer: np.arange(len(prompts), dtype=float)[:, None]}
    return Evaluation(prompts, scores, [image()]*len(prompts))

def said_in(figure): return "".join(text for text, _, _ in figure).replace("\n", "").replace(" ", "")

@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_any_name_is_drawn_as_it_stands(name, drawn, tmp_path):
    warnings.filterwarnings("ignore", ".*shows boxes for") # of control characters
    prompts = [name, "a fox"]
    draw_gallery(evaluation(prompts, name), evaluation(prompts, name), name, tmp_path/"a.png")
    draw_grid({name or "row": [image()]*2}, [name, name], tmp_path/"b.png", {name: [name, name]})
    gains = summary(prompt_set=name, method=name)
    draw_gains(gains, tmp_path/"c.pdf")
    draw_tradeoff(summary(prompt_set=name, method=name), tmp_path/"d.png", "one", "two")
    draw_tradeoff(summary(scorer=[name, "two"]), tmp_path/"e.png", name, "two")
    metrics = pd.DataFrame(dict(method=name, seed=0, epoch=[1, 2], reward_queries=[1, 2],
                                reward_mean=[1., 2.]))
    draw_metric(metrics, tmp_path/"f.png")
    assert len(drawn) == 6
    for figure in drawn:
        assert not any(parse for text, _, parse in figure if not re.fullmatch("[0-9.−]+", text))
        if "" < name and len(name) < 20: assert "".join(name.split()) in said_in(figure)

@pytest.mark.parametrize("prompts", [[LONG]*6, ["W"*200]*6, ["a fox"]*5 + [LONG], [LONG.upper()]*2])
def test_titles_keep_to_their_columns_and_images_to_their_size(prompts, drawn, tmp_path):
    for rows in (1, 2):
        draw_grid({f"row {i}": [image()]*len(prompts) for i in range(rows)}, prompts, tmp_path/"a.png")
        titles = [box for text, box, _ in drawn[-1] if not text.startswith("row")]
        titles.sort(key=lambda box: box.x0)
        assert len(titles) == len(prompts)
        assert all(a.x1 < b.x0 for a, b in zip(titles, titles[1:]))
        pixels = pixels_of(tmp_path/"a.png")
        assert titles[0].x0 >= 0 and titles[-1].x1 <= pixels.shape[1] + 1
        assert (pixels[0] == 255).all() # nothing is cut off above
        colour = (pixels == image().getpixel((0, 0))).all(-1)
        assert colour.sum(1).max() > 60*len(prompts) # pixels of a row of images, at 72 an inch

def test_what_is_cut_ends_with_an_ellipsis_and_what_fits_does_not():
    assert fit("a painting of a fox", 500, 1) == "a painting of a fox"
    assert fit("a painting of a fox", 60, 3).split() == "a painting of a fox".split()
    assert fit(LONG, 88, 4).endswith("…") and len(fit(LONG, 88, 4).splitlines()) == 4
    assert fit("", 88, 2) == "" and fit(7, 88, 2) == "7"

def test_long_names_of_scorers_and_sets_leave_room_for_the_gains(drawn, tmp_path):
    url = "10*http://scores.example.org:8000/" + "path/"*20
    draw_gains(summary(scorer=[url + "1", url + "2"], prompt_set=NAMES["a path"]), tmp_path/"a.png")
    left, right = [box for text, box, _ in drawn[0] if text.startswith("10*http")]
    width = pixels_of(tmp_path/"a.png").shape[1]
    assert left.x1 < right.x0 and left.x0 > 0 and right.x1 < width
    assert right.x0 + right.x1 - left.x0 - left.x1 > width/2 # from middle to middle, twice

# Characters that the usual font lacks

@pytest.fixture
def install():
    "Adds a font to the machine that has a few characters, as squares or as nothing."
    added = []
    def build(path, characters, blank=False):
        pen = TTGlyphPen(None)
        if not blank:
            pen.moveTo((0, 0))
            for corner in ((0, 700), (700, 700), (700, 0)): pen.lineTo(corner)
            pen.closePath()
        names = [".notdef", *(f"g{i}" for i in range(len(characters)))]
        font = FontBuilder(1000)
        font.setupGlyphOrder(names)
        font.setupCharacterMap({ord(c): name for c, name in zip(characters, names[1:])})
        font.setupGlyf(dict.fromkeys(names, pen.glyph()))
        font.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
        font.setupHorizontalHeader(ascent=800, descent=-200)
        font.setupNameTable(dict(familyName=path.stem, styleName="Regular"))
        font.setupOS2()
        font.setupPost()
        font.save(path)
        font_manager.fontManager.addfont(path)
        added.append(path.stem)
        font_family.cache_clear()
    yield build
    fonts = font_manager.fontManager
    fonts.ttflist = [entry for entry in fonts.ttflist if entry.name not in added]
    fonts._findfont_cached.cache_clear() if hasattr(fonts, "_findfont_cached") else None
    font_family.cache_clear()

PRIVATE = "\ue123\ue124" # characters of no font, whatever the machine has

def test_characters_that_no_font_has_are_said_in_one_warning(tmp_path):
    with pytest.warns(UserWarning) as caught:
        draw_grid({"row": [image()]*2}, [f"a fox {PRIVATE}", f"{PRIVATE[0]} again"], tmp_path/"a.png")
    assert [str(w.message) for w in caught] == [
        f"{tmp_path/'a.png'} shows boxes for {PRIVATE!r}, which no font here has: install one that "
        "has, such as Noto Sans CJK or Noto Emoji, and draw it again"]

@pytest.mark.parametrize("where", ["set", "method", "scorer", "note", "row"])
def test_they_are_said_wherever_they_stand(where, tmp_path):
    name = f"fox {PRIVATE[0]}"
    with pytest.warns(UserWarning, match="shows boxes for") as caught:
        if where in ("note", "row"):
            row = name if where == "row" else "row"
            draw_grid({row: [image()]}, ["fox"], tmp_path/"a.png", {row: [name]})
        else:
            column = dict(set="prompt_set").get(where, where)
            given = [name, "two"] if where == "scorer" else name # two scorers of a name are refused
            draw_gains(summary(**{column: given}), tmp_path/"a.png")
    assert len(caught) == 1

def test_a_font_of_the_machine_that_has_them_is_used(install, tmp_path):
    install(tmp_path/"Squares.ttf", PRIVATE)
    assert font_family(PRIVATE[0]) == "Squares" and font_families(f"a {PRIVATE}")[-1] == "Squares"
    draw_grid({"row": [image("red")]}, [PRIVATE], tmp_path/"with.png") # and no warning
    pixels = pixels_of(tmp_path/"with.png")
    assert (pixels[:20] < 60).all(-1).sum() > 40 # two filled squares of the title

def test_a_font_of_blank_glyphs_does_not_count(install, tmp_path):
    install(tmp_path/"Blank.ttf", PRIVATE, blank=True)
    assert font_family(PRIVATE[0]) is None

# Tables as text

def test_a_table_keeps_its_columns_whatever_a_name_holds():
    frame = pd.DataFrame(dict(scorer=["a|b", "c\nd"], gain=[0.5, 1.0]))
    assert as_markdown(frame, 1).splitlines()[2:] == [r"| a\|b | 0.5 |", "| c d | 1.0 |"]

def test_the_table_of_a_run_is_aligned_for_long_names_too():
    rows = [dict(experiment="e", method="m", seed=0, prompt_set="s", scorer=scorer, prompt="p",
                 base=0.0, tuned=1.0) for scorer in ("x", "http://scores.example.org:8000/score")]
    lines = before_after(pd.DataFrame(rows)).splitlines()
    assert len({line.index("1.0000") for line in lines[1:]}) == 1
    assert lines[0].index("after") + 5 == lines[1].index("1.0000") + 6
