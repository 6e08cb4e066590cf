"""Pages with sliders: their values are those of our optimisers, and the sliders show them."""

import base64
import html
import json
import re

import numpy as np
import pytest

import minigrad as mg
from examples.walkthroughs import momentum_plane
from examples.walkthroughs.sliders import page


@pytest.fixture(scope="module")
def plane():
    return momentum_plane.computed()


@pytest.fixture(scope="module")
def explorer(plane):
    return momentum_plane.explorer(plane)


def data_of(made):
    """The values that a page carries."""
    return json.loads(re.search(r"^const DATA = (.*);$", made.source, re.MULTILINE).group(1))


def test_a_page_is_shown_in_a_frame_that_holds_all_of_it():
    made = page("A <title>", {"a": "</script>"}, ".x {}", '<p id="x">"&</p>', "void 0;\n", 100)
    shown = made._repr_html_()
    assert shown.startswith('<iframe title="A &lt;title&gt;" srcdoc="')
    (source,) = re.findall(r'srcdoc="([^"]*)"', shown)
    assert html.unescape(source) == made.source
    assert made.source.count("</script>") == 1  # the text in the data does not end the script
    assert data_of(made) == {"a": "</script>"}
    assert repr(made) == "<a page with sliders: A <title>>"


def test_a_page_refuses_numbers_that_json_has_not():
    with pytest.raises(ValueError, match="JSON compliant"):
        page("title", [float("nan")], "", "", "", 100)


@pytest.mark.full
def test_a_page_asks_for_nothing_from_the_net(explorer):
    text = explorer.source.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    assert not re.search(r"https?:|src=|@import|url\((?!#)", text)


@pytest.mark.full
def test_each_run_of_the_plane_is_one_of_sgd(plane):
    rng = np.random.default_rng(0)
    for _ in range(5):
        row, column = rng.integers(len(plane.momenta)), rng.integers(len(plane.rates))
        x = mg.tensor([10.0, 1.0], dtype="float64", requires_grad=True)
        optimizer = mg.optim.SGD([x], lr=plane.rates[column], momentum=plane.momenta[row])
        for point in plane.paths[row, column]:
            np.testing.assert_allclose(point, x.data, rtol=1e-12)
            optimizer.zero_grad()
            (0.5 * x[0] * x[0] + 12.5 * x[1] * x[1]).backward()
            optimizer.step()


@pytest.mark.full
def test_the_runs_diverge_beyond_the_limit_of_theory_and_only_there(plane):
    limits = momentum_plane.limit(plane.momenta)[:, None]
    grown = plane.exponents > np.log10(momentum_plane.height(10.0, 1.0))
    assert grown[plane.rates > limits + 0.003].all()
    assert not grown[plane.rates < limits - 1e-9].any()


@pytest.mark.full
def test_the_lowest_run_is_next_to_the_optimum_of_theory(plane):
    row, column = np.unravel_index(plane.exponents.argmin(), plane.exponents.shape)
    lr, momentum = momentum_plane.optimum()
    assert abs(plane.rates[column] - lr) < 0.005
    assert abs(plane.momenta[row] - momentum) < 0.05


@pytest.mark.full
def test_the_page_carries_these_runs(plane, explorer):
    data = data_of(explorer)
    np.testing.assert_allclose(data["exponents"], plane.exponents, atol=0.051)
    numbers = np.frombuffer(base64.b64decode(data["paths"]), "<u2") / 65535
    shape = len(data["momenta"]), len(data["rates"]), data["points"], 2
    low, high = np.transpose([data["x"], data["y"]])
    paths = low + (high - low) * numbers.reshape(shape)
    inside = np.clip(plane.paths[:, :, : data["points"]], low, high)
    np.testing.assert_allclose(paths, inside, atol=2e-4)


# In a browser


@pytest.fixture
def framed(browser, explorer, tmp_path):
    """Open the page in a frame, and check in the end that the console is empty."""
    contexts, said, fetched = [], [], []
    path = tmp_path / "notebook.html"
    title = "<!doctype html><html lang=en><title>A notebook</title>"
    path.write_text(title + explorer._repr_html_(), encoding="utf-8")

    def open_frame(width=1000, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: fetched.append(request.url))
        tab.goto(path.as_uri())
        frame = tab.frames[1]
        frame.wait_for_selector("html[data-ready]")
        return tab, frame

    yield open_frame
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in fetched if not url.startswith(("file:", "about:"))] == []


def drawn_path(frame):
    """The points of the path on the page, in x and y of the valley."""
    text = frame.locator("polyline").get_attribute("points")
    points = np.array([pair.split(",") for pair in text.split()], float)
    share = (points - [50, 10]) / [340, 270]
    share[:, 1] = 1 - share[:, 1]
    low, high = np.transpose([momentum_plane.X, momentum_plane.Y])
    return low + share * (high - low)


@pytest.mark.full
def test_keys_move_the_sliders_and_the_page_shows_the_run(framed, plane):
    _, frame = framed()
    frame.focus("#rate")
    for _ in range(3):
        frame.page.keyboard.press("ArrowRight")
    frame.focus("#momentum")
    frame.page.keyboard.press("Home")
    column, row = int(frame.input_value("#rate")), int(frame.input_value("#momentum"))
    assert row == 0
    assert frame.inner_text("#rate-said") == f"{plane.rates[column]:.3f}"
    assert frame.get_attribute("#rate", "aria-valuetext") == f"{plane.rates[column]:.3f}"
    expected = momentum_plane.descent(plane.rates[column], 0.0, momentum_plane.SHOWN)
    np.testing.assert_allclose(drawn_path(frame), expected, atol=1e-3)
    assert "does not converge" not in frame.inner_text("#said")
    frame.focus("#rate")
    frame.page.keyboard.press("End")
    assert "does not converge" in frame.inner_text("#said")
    assert "limit of the learning rate is 0.080" in frame.inner_text("#said")


@pytest.mark.full
def test_a_click_on_the_map_chooses_its_run(framed, plane):
    _, frame = framed()
    rings = frame.locator("#map circle")
    box = frame.locator("#map").bounding_box()
    lr, momentum = plane.rates[21], plane.momenta[9]
    x = (50 + 340 * (21 + 0.5) / len(plane.rates)) / 400 * box["width"]
    y = (280 - 270 * (9 + 0.5) / len(plane.momenta)) / 330 * box["height"]
    frame.click("#map", position={"x": x, "y": y})
    assert frame.inner_text("#rate-said") == f"{lr:.3f}"
    assert frame.inner_text("#momentum-said") == f"{momentum:.2f}"
    assert float(rings.last.get_attribute("cx")) == pytest.approx(x / box["width"] * 400, abs=0.1)


@pytest.mark.full
@pytest.mark.parametrize("width", [360, 1000])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_a_desk_in_light_and_dark(framed, width, scheme):
    tab, frame = framed(width, color_scheme=scheme)
    tab.wait_for_timeout(100)  # the frame follows the height of the page
    inner = frame.evaluate("[document.body.scrollWidth, document.body.scrollHeight, innerWidth]")
    assert inner[0] <= inner[2]
    assert abs(tab.locator("iframe").bounding_box()["height"] - inner[1]) <= 2
    paper = frame.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 27)"}[scheme]
    for slider in ("learning rate", "momentum"):
        assert frame.get_by_role("slider", name=slider, exact=True).is_visible()
    assert frame.locator("h1").inner_text() == "The plane of learning rate and momentum"


@pytest.mark.full
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_around_the_page_can_say_whether_it_is_dark(framed, scheme):
    _, frame = framed(color_scheme={"light": "dark", "dark": "light"}[scheme])
    frame.evaluate(f"document.documentElement.dataset.theme = '{scheme}'")
    paper = frame.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 27)"}[scheme]


@pytest.mark.full
def test_it_is_printed_light(framed):
    tab, frame = framed()
    frame.evaluate("document.documentElement.dataset.theme = 'dark'")
    tab.emulate_media(media="print")
    paper = frame.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == "rgb(255, 255, 255)"
