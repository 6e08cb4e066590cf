"""How a notebook shows a page: a picture of its graph, and a frame with the page inside."""

import html.parser
import sys

import numpy as np
import pytest

import minigrad as mg

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from minigrad.viz.graph_picture import MOST, picture_of


def diamond():
    x = mg.tensor(3.0, requires_grad=True)
    h = 2 * x
    y = h + h
    return mg.viz.explore(y)


def network(layers=2):
    model = mg.nn.MLP([2, *[8] * (layers - 1), 1], activation=mg.tanh)
    with mg.viz.record() as tape:
        loss = mg.square(model(mg.randn(16, 2)) - mg.randn(16, 1)).mean()
    return mg.viz.explore(loss, tape=tape, model=model)


def long_edges():
    """A graph with an edge that passes the layers in between, and another of two at once."""
    x = mg.tensor(0.5, requires_grad=True)
    y = mg.tanh(mg.exp(mg.sin(x))) * x
    return mg.viz.explore(y * y)


def texts(picture):
    return [text.get_text() for text in picture.axes[0].texts]


def cards(picture):
    """The boxes of the cards: left, low, right, top."""
    boxes = [x for x in picture.axes[0].patches if isinstance(x, FancyBboxPatch)]
    bounds = [(b.get_x(), b.get_y(), b.get_width(), b.get_height()) for b in boxes]
    return np.array([(x, y, x + w, y + h) for x, y, w, h in bounds])


def test_values_and_gradients_are_in_the_picture():
    written = texts(picture_of(diamond().data))
    assert written[0] == "Backward pass of y"
    for text in ("x", "h", "y", "leaf", "multiply", "add", "→ 3", "→ 6", "→ 12", "no gradient"):
        assert text in written
    assert written.count("← 4") == 2  # at x, and on the way to it
    assert written.count("← 2") == 1  # at h, where two gradients of 1 add up
    assert written.count("← 1") == 3  # these two, and that of y by itself


@pytest.mark.parametrize("page", [diamond, network, long_edges, lambda: network(8)])
def test_nothing_lies_on_a_card_and_all_is_in_the_picture(page):
    picture = picture_of(page().data)
    boxes, axes = cards(picture), picture.axes[0]
    left, low, right, top = boxes.T
    apart = (right[:, None] <= left) | (right <= left[:, None])
    apart |= (top[:, None] <= low) | (top <= low[:, None])
    assert (apart | np.eye(len(boxes), dtype=bool)).all()
    assert axes.get_xlim()[0] < left.min()
    assert axes.get_xlim()[1] > right.max()
    inside = 0
    for patch in axes.patches:
        if isinstance(patch, FancyArrowPatch):
            for points in patch.get_path().to_polygons(closed_only=False):
                x, y = points[:, :1], points[:, 1:]
                inside += (
                    (x > left + 0.01) & (x < right - 0.01) & (y > low + 0.01) & (y < top - 0.01)
                ).sum()
    assert inside == 0
    size = picture.get_size_inches()
    np.testing.assert_allclose(size, [np.ptp(axes.get_xlim()), np.ptp(axes.get_ylim())])
    assert size[0] <= 9.4  # so that letters are not small where it is 900 pixels wide


def tiny_numbers():
    x = mg.tensor(-1.23456e-12, requires_grad=True, dtype=np.float64)
    a_very_long_name_of_a_variable = x * -7.65432e-111
    return mg.viz.explore(a_very_long_name_of_a_variable * 1.0)


@pytest.mark.parametrize("page", [diamond, network, long_edges, tiny_numbers])
def test_no_text_lies_on_another_or_stands_out_of_its_card(page):
    picture = picture_of(page().data)
    picture.draw_without_rendering()
    to_inches = picture.axes[0].transData.inverted()
    written = [text for text in picture.axes[0].texts if text.get_text()]
    boxes = [to_inches.transform(x.get_window_extent()).ravel() for x in written]
    left, low, right, top = np.array(boxes).T
    apart = (right[:, None] <= left) | (right <= left[:, None])
    apart |= (top[:, None] <= low) | (top <= low[:, None])
    assert (apart | np.eye(len(boxes), dtype=bool)).all()
    cards_ = cards(picture)
    for text, box in zip(written, boxes, strict=True):
        at = np.array(text.get_position())
        for card in cards_[((at > cards_[:, :2]) & (at < cards_[:, 2:])).all(axis=1)]:
            assert (box[:2] >= card[:2]).all(), text
            assert (box[2:] <= card[2:]).all(), text


def test_what_is_not_finite_not_saved_or_empty():
    x = mg.tensor([1.0, np.nan], requires_grad=True)
    infinite = mg.tensor(np.inf, requires_grad=True)
    nothing = mg.zeros((0, 3), requires_grad=True)
    y = (mg.exp(x * 2.0) * 3.0).sum() + infinite + nothing.sum()
    written = texts(picture_of(mg.viz.explore(y).data))
    assert "↓ inf" in written
    assert {"empty", "not saved", "↓ nan"} <= set(written)


def test_dollar_signs_are_no_formula():
    x = mg.tensor(1.0, requires_grad=True)
    picture = picture_of(mg.viz.explore(x * 2, title="$_$ costs $2").data)
    assert picture.rendered("png").startswith(b"\x89PNG")
    assert texts(picture)[0] == "$_$ costs $2"


def test_the_same_page_has_the_same_picture():
    pictures = {picture_of(diamond().data).rendered("png") for _ in range(2)}
    assert len(pictures) == 1


def test_a_graph_of_many_nodes_has_no_picture():
    def chain(steps):
        y = mg.tensor(0.5, requires_grad=True)
        for _ in range(steps):
            y = mg.sin(y)
        return mg.viz.explore(y).data

    assert picture_of(chain(MOST - 1)) is not None
    assert picture_of(chain(MOST)) is None
    xs = [mg.tensor(1.0, requires_grad=True) for _ in range(8)]
    wide = mg.sin(mg.sin(mg.sin(mg.sin(mg.sin(mg.stack(xs).sum())))))
    assert picture_of(mg.viz.explore(wide).data) is None


class Frames(html.parser.HTMLParser):
    """The attributes of the frames in a text."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "iframe":
            self.found.append(dict(attributes))


def test_the_frame_has_the_page_inside(tmp_path):
    x = mg.tensor(1.0, requires_grad=True)
    page = mg.viz.explore(x * 2, tmp_path / "page.html", title="It's <b>\"mine\"</b> & 'yours'")
    (frame,) = Frames(page.frame()).found
    assert frame["srcdoc"] == page.html == (tmp_path / "page.html").read_text("utf-8")
    assert frame["title"] == page.title
    assert "src" not in frame
    assert repr(page).startswith("<page 'It")


def shown(page):
    """The outputs of a cell that ends with the page."""
    capture = pytest.importorskip("IPython.utils.capture", reason="IPython is not installed")
    from IPython.core.interactiveshell import InteractiveShell

    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    try:
        with capture.capture_output() as captured:
            shell.user_ns["page"] = page
            shell.run_cell("page")
    finally:
        InteractiveShell.clear_instance()
    return [output.data for output in captured.outputs]


def test_a_notebook_shows_a_picture_and_below_it_the_page():
    page = diamond()
    picture, frame = shown(page)
    assert "image/png" in picture
    assert "text/html" not in picture
    assert frame == {"text/html": page.frame(), "text/plain": repr(page)}


def test_without_matplotlib_a_notebook_shows_the_page_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "minigrad.viz.graph_picture", None)
    (frame,) = shown(diamond())
    assert "text/html" in frame
