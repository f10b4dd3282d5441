"Sphinx's settings. tools/website.py writes the pages, and calls Sphinx."
from configparser import ConfigParser
from pathlib import Path

settings = ConfigParser(delimiters=["="])
settings.read(Path(__file__).parents[1]/"settings.ini", encoding="utf-8")
about = settings["DEFAULT"]

project, author, release = about["lib_name"], about["author"], about["version"]
copyright = about["copyright"]
html_title = project
extensions = ["myst_nb"]
nb_execution_mode = "off" # outputs are committed
nb_merge_streams = True
nb_render_markdown_format = "myst" # tables that a cell prints
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
smartquotes = False # "(..., B)" stays as it is written

html_theme = "sphinx_book_theme"
html_theme_options = dict(
    repository_url=about["git_url"], use_repository_button=True, use_issues_button=True,
    use_download_button=False, show_toc_level=2, home_page_in_toc=True,
    navbar_persistent=[])
html_context = dict(default_mode="auto")
html_static_path, html_css_files = ["static"], ["style.css"]
html_copy_source = html_show_sourcelink = False
mathjax_path = "tex-svg.js" # MathJax 3.2.2 beside the pages: mathematics needs no network
