"""The page with the slider of the rank: its values are those of NumPy's SVD; keys move it."""

import base64

import numpy as np
import pytest

from examples.walkthroughs import rank_slider
from tests.browser import wait_until

ROWS, COLUMNS = 5, 7


@pytest.fixture
def delta():
    return np.random.default_rng(0).standard_normal((ROWS, COLUMNS))


def best(delta):
    """The best matrices of all ranks and their losses, as perfect training would find them."""
    u, s, vt = np.linalg.svd(delta, full_matrices=False)
    updates = [u[:, :rank] * s[:rank] @ vt[:rank] for rank in range(ROWS + 1)]
    return updates, [float(((delta - each) ** 2).sum()) / ROWS for each in updates]


def decoded(text, largest):
    levels = np.frombuffer(base64.b64decode(text), np.uint8).astype(float)
    return (levels.reshape(ROWS, COLUMNS) / rank_slider.LEVELS - 1) * largest


def test_the_least_error_is_that_of_the_best_matrix(delta):
    for row in rank_slider.values(delta, *best(delta))["ranks"]:
        assert row["least error"] == row["error"]


def test_the_rows_say_what_training_found_and_what_is_possible(delta):
    updates, losses = best(delta)
    updates[2], losses[2] = updates[1], losses[1]  # as if the training had missed a direction
    made = rank_slider.values(delta, updates, losses)
    assert made["shape"] == [ROWS, COLUMNS]
    s = np.linalg.svd(delta, compute_uv=False)
    np.testing.assert_allclose(made["singular"], s, atol=1e-4)
    assert [row["parameters"] for row in made["ranks"][:4]] == [
        "0 of 35 (0%)",
        "12 of 35 (34%)",
        "24 of 35 (69%)",
        "36 of 35 (103%)",
    ]
    for rank, row in enumerate(made["ranks"]):
        assert float(row["error"]) == pytest.approx(np.linalg.norm(delta - updates[rank]), abs=1e-4)
        assert float(row["least error"]) == pytest.approx(np.linalg.norm(s[rank:]), abs=1e-4)
        assert float(row["loss"]) == pytest.approx(losses[rank], abs=1e-6)
        assert float(row["least loss"]) == pytest.approx((s[rank:] ** 2).sum() / ROWS, abs=1e-6)
    assert made["ranks"][2]["error"] > made["ranks"][2]["least error"]
    assert made["ranks"][3]["error"] == made["ranks"][3]["least error"]


def test_the_maps_are_the_matrices_to_a_step_of_colour(delta):
    updates, losses = best(delta)
    made = rank_slider.values(delta, updates, losses)
    largest = np.abs(delta).max()
    step = largest / rank_slider.LEVELS
    np.testing.assert_allclose(decoded(made["delta"], largest), delta, atol=step)
    for row, update in zip(made["ranks"], updates, strict=True):
        shown = np.clip(update, -largest, largest)
        np.testing.assert_allclose(decoded(row["update"], largest), shown, atol=step)
        missing = np.clip(delta - update, -largest, largest)
        np.testing.assert_allclose(decoded(row["difference"], largest), missing, atol=step)


def test_each_rank_has_an_update_and_a_loss(delta):
    updates, losses = best(delta)
    with pytest.raises(
        ValueError, match="a 5 x 7 matrix has 6 ranks, from 0 to 5, and there are 5"
    ):
        rank_slider.values(delta, updates[1:], losses)


def test_the_picture_says_how_much_is_missing(delta):
    pytest.importorskip("matplotlib").use("agg")
    updates, _ = best(delta)
    figure = rank_slider.picture(delta, updates, ranks=(1, 5))
    s = np.linalg.svd(delta, compute_uv=False)
    titles = [axes.get_title() for axes in figure.axes]
    share = np.linalg.norm(s[1:]) / np.linalg.norm(s)
    assert f"missing: {share:.0%} of |Δ|" in titles
    assert "missing: 0% of |Δ|" in titles


# In a browser


PIXELS = """canvas => {
    const copy = new OffscreenCanvas(7, 5).getContext("2d", {willReadFrequently: true});
    copy.drawImage(canvas, 0, 0);
    return [...copy.getImageData(0, 0, 7, 5).data];
}"""


@pytest.mark.full
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_keys_move_the_slider_in_its_frame(delta, browser, tmp_path, scheme):
    updates, losses = best(delta)
    made = rank_slider.values(delta, updates, losses)
    path = tmp_path / "notebook.html"
    path.write_text(rank_slider.slider(delta, updates, losses)._repr_html_(), encoding="utf-8")
    context = browser.new_context(viewport={"width": 360, "height": 640}, color_scheme=scheme)
    page = context.new_page()
    said, fetched = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: fetched.append(request.url))
    page.goto(path.as_uri())
    frame = page.frame_locator("iframe")
    frame.locator("html[data-ready]").wait_for()
    slider = frame.get_by_role("slider", name="Rank")
    for keys, rank in (
        ([], 4),
        (["ArrowLeft"], 3),
        (["Home"], 0),
        (["ArrowRight"], 1),
        (["End"], 5),
    ):
        for key in keys:
            slider.press(key)
        row = made["ranks"][rank]
        assert frame.locator("#chosen").inner_text() == f"{rank} of 5"
        for name in ("parameters", "error", "least error", "loss", "least loss"):
            assert frame.locator(f"#{name.replace(' ', '-')}").inner_text() == row[name]
        assert frame.locator("rect.kept").count() == rank
        assert frame.locator("rect.dropped").count() == ROWS - rank
        pixels = frame.locator("#difference").evaluate(PIXELS)
        assert len({tuple(pixels[i : i + 4]) for i in range(0, len(pixels), 4)}) == (
            1 if rank == ROWS else len(set(base64.b64decode(row["difference"])))
        )
    inside = page.frames[1]
    inside.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.emulate_media(media="print", color_scheme="light")
    drawn_again = f"({PIXELS})(document.querySelector('#difference')).every(level => level === 255)"
    wait_until(inside, drawn_again)
    page.emulate_media(media="screen", color_scheme=scheme)
    assert inside.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert said == []
    assert [url for url in fetched if not url.startswith(("file:", "about:"))] == []
    context.close()
