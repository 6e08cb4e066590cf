"""The page in a browser: headless Chromium steps through it as a reader would."""

import itertools

import numpy as np
import pytest

import lora
import minigrad as mg
from tests.browser import wait_until

pytestmark = pytest.mark.full


class Reader:
    """Someone who has opened a page, and notes what the console says and what is fetched."""

    def __init__(self, browser, path, width=1280, height=800, **options):
        options = {"color_scheme": "light", "reduced_motion": "reduce", **options}
        self.context = browser.new_context(viewport={"width": width, "height": height}, **options)
        self.page = self.context.new_page()
        self.said, self.fetched = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.fetched.append(request.url))
        self.page.goto(path.as_uri())
        frame = self.page.query_selector("iframe")
        self.frame = self.page.main_frame if frame is None else frame.content_frame()
        self.frame.wait_for_selector("html[data-ready]")

    def resize(self, width, height=800):
        self.page.set_viewport_size({"width": width, "height": height})

    def press(self, key, times=1):
        for _ in range(times):
            self.page.keyboard.press(key)

    def text(self, selector):
        return self.page.locator(selector).first.inner_text()

    def card(self, name):
        return self.page.locator(f'.card[aria-label^="{name},"]')

    def numbers(self, selector):
        cells = self.page.locator(f"{selector} td[data-value]").all()
        return [float(cell.get_attribute("data-value")) for cell in cells]

    def gradient(self, name):
        """What the panel says of the gradient of a node, to the last digit."""
        self.card(name).click()
        return self.numbers("#node .numbers.grad")


@pytest.fixture
def opened(browser, tmp_path):
    """Opens pages, and checks in the end that the console is empty and nothing was fetched."""
    readers = []

    def open_page(explore, **options):
        path = tmp_path / "page.html"
        explore(path)
        readers.append(Reader(browser, path, **options))
        return readers[-1]

    yield open_page
    for reader in readers:
        assert reader.said == []
        assert [url for url in reader.fetched if not url.startswith(("file:", "data:"))] == []
        reader.context.close()


def diamond(path):
    x = mg.tensor(3.0, requires_grad=True)
    h = 2 * x
    y = h + h
    mg.viz.explore(y, path)


def network(path, size=(3, 4, 2), targets=("layers.0",)):
    """An MLP with an adapter, small enough for its numbers to be written out."""
    model = mg.nn.MLP(list(size), activation=mg.tanh)
    lora.attach(model, lora.LoRAConfig(rank=1, alpha=2, targets=list(targets)))
    model.layers[0].lora_b = mg.randn(size[1], 1).data
    with mg.viz.record() as tape:
        loss = mg.mse(model(mg.randn(5, size[0])), mg.randn(5, size[-1]))
    mg.viz.explore(loss, path, tape=tape)
    loss.backward()
    return model


def test_keys_and_buttons_go_from_step_to_step(opened):
    reader = opened(diamond)
    counter, heading = "#counter", "#step h2"
    assert (reader.text(counter), reader.text(heading)) == ("1 / 5", "Start at y")
    reader.press("ArrowRight")
    assert (reader.text(counter), reader.text(heading)) == ("2 / 5", "y → h")
    reader.page.click("#next")
    reader.page.click("#next")
    assert (reader.text(counter), reader.text(heading)) == ("4 / 5", "h → x")
    assert reader.text(".formula") == "g * a"
    assert reader.text(".filled") == "2 * 2 = 4"
    reader.press("ArrowLeft")
    assert reader.text(heading) == "y → h"
    reader.press("End")
    assert reader.text(heading) == "x gets its gradient"
    reader.press("ArrowRight")
    assert reader.text(counter) == "5 / 5"
    reader.press("Home")
    assert reader.text(counter) == "1 / 5"
    reader.page.locator("#position").fill("2")
    assert reader.text(counter) == "3 / 5"


def test_empty_arrays_are_shown_as_such(opened):
    def explore(path):
        x = mg.zeros((0, 3), requires_grad=True)
        mg.viz.explore((x * 2).sum(), path)

    reader = opened(explore)
    reader.press("End")
    assert reader.text("#step h2") == "x gets its gradient"
    assert "empty" in reader.text("#step")


def test_numbers_have_four_digits_or_all_before_the_point(opened):
    written_as = {
        1.2345e-5: "1.234e-5",
        -2e-5: "-2e-5",
        4e9: "4e+9",
        123_456: "123456",
        0.5: "0.5",
        -1 / 3: "-0.3333",
    }

    def explore(path):
        y = mg.tensor(0.0, dtype=np.float64)
        for factor in written_as:
            y = y + mg.tensor(1.0, requires_grad=True, dtype=np.float64) * factor
        mg.viz.explore(y, path)

    reader = opened(explore)
    gradients = []
    while len(gradients) < len(written_as):
        reader.press("ArrowRight")
        if "gets its gradient" in reader.text("#step h2"):
            gradients.append(reader.text("#step .result").replace("\N{MINUS SIGN}", "-"))
        step, _, last = reader.text("#counter").partition(" / ")
        if step == last:
            break
    assert sorted(gradients) == sorted(written_as.values())


def test_sums_of_large_numbers_add_up_as_written(opened):
    def explore(path):
        x = mg.tensor(1.0, requires_grad=True)
        mg.viz.explore(x * 145_742 + x * 7_658, path)

    reader = opened(explore)
    reader.press("End")
    assert reader.text("#step .result") == "153400"
    reader.press("ArrowLeft")
    written = " ".join(reader.text("#step").split())
    assert "145742" in written
    assert "7658" in written


def test_a_gradient_is_shown_when_it_arrives(opened):
    reader = opened(diamond)
    assert "no gradient yet" in reader.card("h").get_attribute("aria-label")
    reader.press("ArrowRight")
    assert "gradient 1" in reader.card("h").get_attribute("aria-label")
    reader.press("ArrowRight")
    assert "gradient 2" in reader.card("h").get_attribute("aria-label")
    assert reader.card("h").locator(".grad .number").text_content() == "2"
    assert "active" in reader.card("y").get_attribute("class")
    assert "active" not in reader.card("x").get_attribute("class")
    reader.press("ArrowLeft")
    assert reader.card("h").locator(".grad .number").text_content() == "1"


def test_a_screen_reader_hears_what_a_step_does(opened):
    reader = opened(diamond)
    reader.press("ArrowRight", 3)
    assert reader.page.locator("[aria-live]").text_content() == (
        "Step 4 of 5. At h, 2 has arrived. 4 goes to x."
    )


def test_it_plays_by_itself_and_stops_at_the_end(opened):
    reader = opened(diamond)
    reader.page.clock.install()
    reader.press(" ")
    assert reader.page.locator("#play").get_attribute("aria-label") == "Pause"
    reader.page.clock.run_for(1200)
    assert reader.text("#counter") == "2 / 5"
    reader.press(" ")
    reader.page.clock.run_for(5000)
    assert reader.text("#counter") == "2 / 5"
    reader.press(" ")
    reader.page.clock.run_for(20000)
    assert reader.text("#counter") == "5 / 5"
    assert reader.page.locator("#play").get_attribute("aria-label") == "Play"


def test_numbers_on_the_page_are_those_of_grad(opened):
    models = []
    reader = opened(lambda path: models.append(network(path)))
    reader.press("End")
    (model,) = models
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert reader.card(name).count() == 0
            continue
        shown = np.array(reader.gradient(name), np.float32).reshape(parameter.shape)
        np.testing.assert_array_equal(shown, parameter.grad.data)


def test_the_wrong_order_is_shown_where_it_goes_wrong(opened):
    reader = opened(diamond)
    assert reader.page.locator("#to-fault").is_hidden()
    reader.page.click("#pass-depth")
    assert "4 VJPs; 3 are enough" in reader.text("#about")
    reader.press("ArrowRight", 2)
    assert "does not wait" in reader.text("#step .note")
    reader.page.click("#to-fault")
    said = reader.text(".fault.first")
    assert "Here the number goes wrong" in said
    assert "4 goes to x, where 2 would be right" in said
    assert reader.gradient("x") == [6.0]
    reader.press("End")
    assert reader.numbers("#step .ends") == [6.0, 4.0]
    assert reader.page.locator(".ends .wrong").count() == 1


def test_second_passes(opened):
    reader = opened(diamond)
    reader.page.click("#pass-again")
    reader.press("End")
    assert reader.numbers("#step dl") == [4.0, 4.0, 8.0]
    reader.page.click("#pass-uncleared")
    assert "gradient 2" in reader.card("h").get_attribute("aria-label")  # left by the first pass
    reader.press("End")
    assert reader.numbers("#step .ends") == [12.0, 8.0]


def test_a_frozen_input_says_why_no_gradient_goes_there(opened):
    reader = opened(network)
    reader.page.locator('.card.frozen[aria-label^="layers.0.base_weight"]').click()
    assert "No gradient goes here. A frozen parameter: requires_grad=False." in reader.text("#node")


def test_modules_open_and_close(opened):
    reader = opened(network)
    count = reader.page.locator(".card.node").count()
    layer = reader.page.locator('.card.group[aria-label^="Module layers.0"]')
    assert layer.get_attribute("aria-expanded") == "true"
    layer.locator(".head").click()
    layer = reader.page.locator('.card.group[aria-label^="Module layers.0"]')
    assert layer.get_attribute("aria-expanded") == "false"
    assert reader.page.locator(".card.node").count() == count - 3
    reader.press("End")  # steps inside a closed module show on it
    assert "active" in layer.get_attribute("class")
    reader.page.click("#fold")
    assert reader.page.locator(".card.node").count() == count


def test_everything_can_be_done_with_the_keyboard(opened):
    reader = opened(network)
    reader.page.locator('.card[tabindex="0"]').focus()
    focused = "document.activeElement.getAttribute('aria-label')"
    assert reader.page.evaluate(focused).startswith("loss,")
    seen = set()
    for _ in range(20):
        reader.press("ArrowUp")
        seen.add(reader.page.evaluate(focused).split(",")[0])
    assert {"layers.0.lora_a", "tanh", "Module model: MLP"} <= seen
    while not reader.page.evaluate(focused).startswith("Module layers.0"):
        reader.press("ArrowDown")
    reader.press("Enter")
    assert reader.page.evaluate(focused) == "Module layers.0: LoRALayer, closed"
    assert reader.text("#counter").startswith("1 /")
    reader.press("ArrowRight")
    assert reader.text("#counter").startswith("2 /")


def test_every_control_has_a_name_and_can_be_seen_when_focused(opened):
    reader = opened(network)
    for element in reader.page.locator("button, input, [role=button], svg[role], img").all():
        name = element.get_attribute("aria-label") or element.get_attribute("alt")
        assert name or element.text_content().strip()
    reader.press("Tab")
    style = "getComputedStyle(document.activeElement).outlineStyle"
    assert reader.page.evaluate(style) == "solid"
    assert reader.page.locator("html").get_attribute("lang") == "en"


LUMINANCE = """() => {
  const parse = (c) => c.match(/[0-9.]+/g).slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  const light = (c) => { const [r, g, b] = parse(c); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const [body, panel] = [document.body, document.getElementById("panel")].map(getComputedStyle);
  const grad = getComputedStyle(document.querySelector(".numbers.grad"));
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const soft = getComputedStyle(document.getElementById("about"));
  return {
    paper: light(body.backgroundColor),
    text: ratio(light(body.color), light(body.backgroundColor)),
    soft: ratio(light(soft.color), light(body.backgroundColor)),
    accent: ratio(light(grad.color), light(panel.backgroundColor)),
  };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_have_contrast(opened, scheme):
    reader = opened(diamond, color_scheme=scheme)
    reader.press("ArrowRight")
    for dark in (scheme == "dark", scheme != "dark"):
        seen = reader.page.evaluate(LUMINANCE)
        assert (seen["paper"] < 0.2) == dark
        assert min(seen["text"], seen["soft"], seen["accent"]) > 4.5  # WCAG 2, level AA
        reader.page.click("#theme")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_printed_light(opened, scheme):
    reader = opened(diamond, color_scheme=scheme)
    if scheme == "light":
        reader.page.click("#theme")
    assert reader.page.evaluate(LUMINANCE)["paper"] < 0.2
    reader.page.emulate_media(media="print")
    assert reader.page.evaluate(LUMINANCE)["paper"] > 0.8


BOXES = """() => [...document.querySelectorAll(".card:not(.group), .group.closed")].map((card) => {
  const box = card.querySelector("rect").getBoundingClientRect();
  return [box.left, box.top, box.right, box.bottom];
})"""


def transformer(path):
    model = mg.nn.Sequential(mg.nn.TransformerBlock(8, 2), mg.nn.TransformerBlock(8, 2))
    with mg.viz.record() as tape:
        loss = mg.mse(model(mg.randn(2, 5, 8)), mg.randn(2, 5, 8))
    mg.viz.explore(loss, path, tape=tape)


@pytest.mark.parametrize("explore", [network, transformer])
def test_no_card_lies_on_another_open_or_closed(opened, explore):
    reader = opened(explore)
    for _ in range(3):
        boxes = np.array(reader.page.evaluate(BOXES))
        assert len(boxes) > 0
        left, top, right, low = boxes.T
        apart = (
            (right[:, None] <= left + 0.01)
            | (right <= left[:, None] + 0.01)
            | (low[:, None] <= top + 0.01)
            | (low <= top[:, None] + 0.01)
        )
        assert (apart | np.eye(len(boxes), dtype=bool)).all()
        reader.page.click("#fold")


def test_nothing_stands_out_of_the_window(opened):
    reader = opened(network, width=400)
    for width in (400, 1280):
        reader.resize(width)
        assert reader.page.evaluate("document.documentElement.scrollWidth") <= width
        for button in reader.page.locator("#controls button:visible, #zoom button:visible").all():
            box = button.bounding_box()
            assert box["x"] >= 0, width
            assert box["x"] + box["width"] <= width


def test_zoom_by_wheel_button_and_key(opened):
    reader = opened(diamond)

    def wide():
        return reader.card("h").bounding_box()["width"]

    first = wide()
    reader.page.click("#closer")
    assert wide() > first
    reader.press("0")
    assert wide() == pytest.approx(first, rel=0.01)
    reader.press("-")
    assert wide() < first
    reader.page.mouse.move(400, 400)
    reader.page.mouse.wheel(0, -600)
    wider = "width => document.querySelector('.card').getBoundingClientRect().width > width"
    wait_until(reader.page, wider, first)


def test_names_are_shown_as_text(opened):
    def explore(path):
        x = mg.tensor(1.0, requires_grad=True)
        mg.viz.explore(x * 2, path, title="<img src=x onerror=alert(1)> </script>")

    reader = opened(explore)
    assert reader.text("h1") == "<img src=x onerror=alert(1)> </script>"
    assert reader.page.title() == "<img src=x onerror=alert(1)> </script>"


def test_a_long_title_leaves_room_for_the_passes(opened):
    def explore(path):
        x = mg.tensor(1.0, requires_grad=True)
        mg.viz.explore(x * 2, path, title="A very long title " * 20)

    reader = opened(explore)
    for button in reader.page.locator("#passes button").all():
        box = button.bounding_box()
        assert box["x"] + box["width"] <= 1280
    reader.page.click("#pass-depth")
    assert reader.page.locator("#pass-depth").get_attribute("aria-pressed") == "true"


def test_on_a_phone_every_pass_is_in_sight(opened):
    reader = opened(diamond, width=360, height=740)
    for button in reader.page.locator("#passes button").all():
        box = button.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
        assert button.evaluate("b => b.scrollWidth <= b.clientWidth && b.scrollHeight <= 30")


APART = """(a, b) =>
  a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top"""

# Of each card that takes part in the step, whether it is in sight, and its scale.
IN_SIGHT = f"""() => {{
  const apart = {APART};
  const box = (element) => element.getBoundingClientRect();
  const [canvas, zoom] = ["canvas", "zoom"].map((id) => box(document.getElementById(id)));
  return [...document.querySelectorAll(".card.active > rect")].map((rect) => {{
    const at = box(rect);
    const across = at.left >= canvas.left && at.right <= canvas.right;
    const upright = at.top >= canvas.top && at.bottom <= canvas.bottom;
    return [across && upright && apart(at, zoom), at.width / Number(rect.getAttribute("width"))];
  }});
}}"""


def staircase(path):
    x = mg.tensor(0.5, requires_grad=True)
    loss = mg.tensor(0.0)
    for i in range(12):
        loss = loss + x * float(i)
    mg.viz.explore(loss, path)


@pytest.mark.parametrize("explore", [network, staircase])
@pytest.mark.parametrize("size", [(1280, 720), (390, 844)])
def test_each_step_is_in_sight_and_can_be_read(opened, explore, size):
    reader = opened(explore, width=size[0], height=size[1])
    steps = int(reader.text("#counter").split("/")[1])
    for _ in range(steps):
        seen = reader.page.evaluate(IN_SIGHT)
        assert any(inside for inside, _ in seen)
        assert all(inside for inside, _ in seen) or explore is staircase  # which is very wide
        assert min(scale for _, scale in seen) >= 0.4
        reader.press("ArrowRight")
    if size[0] > 1000:
        assert min(scale for _, scale in reader.page.evaluate(IN_SIGHT)) >= 0.6


def branches(path):
    x = mg.tensor([0.5, 1.0], requires_grad=True)
    mg.viz.explore(mg.concatenate([mg.tanh(x * float(i)) for i in range(60)]).sum(), path)


def test_of_a_step_too_large_for_the_window_the_end_is_in_sight(opened):
    reader = opened(branches)
    reader.press("ArrowRight", 2)
    assert reader.text("#step h2") == "concatenate → tanh #1"
    assert reader.page.evaluate(IN_SIGHT)[0][0]  # tanh #1, which is left of the other
    assert reader.page.evaluate(IN_SIGHT)[0][1] >= 0.6


def test_a_call_with_many_inputs_takes_few_lines(opened):
    reader = opened(branches)
    reader.press("ArrowRight", 30)
    call = reader.text("#step .which")
    assert call == (
        "concatenate(arrays[0] = tanh #1, arrays[1] = tanh #2, arrays[2] = tanh #3, … 57 more)"
    )
    assert reader.page.locator("#node dt").count() < 12
    assert "57 more" in reader.text("#node")


def test_the_scale_that_a_reader_has_chosen_is_kept(opened):
    reader = opened(transformer)

    def wide():
        return reader.card("loss").locator("rect").first.bounding_box()["width"]

    reader.press("0")
    assert reader.page.locator("#entire").get_attribute("aria-pressed") == "true"
    whole = wide()
    reader.press("ArrowRight", 5)
    assert wide() == pytest.approx(whole, rel=0.03)  # the width of a border apart
    reader.press("0")  # and back to where the step is
    assert reader.page.locator("#entire").get_attribute("aria-pressed") == "false"
    assert wide() > whole
    reader.press("-")
    small = wide()
    reader.press("ArrowRight", 5)
    assert wide() == pytest.approx(small, rel=0.03)


# Of each number on an edge, its text and whether it lies on a card.
OVERLAPS = f"""() => {{
  const apart = {APART};
  const all = (what) => [...document.querySelectorAll(what)];
  const boxes = (what) => all(what).map((element) => element.getBoundingClientRect());
  const texts = all(".flow > text").map((text) => text.textContent);
  const cards = boxes(".card.node > rect");
  const isClear = (box) => cards.every((card) => apart(box, card));
  return boxes(".flow > text").map((box, i) => [texts[i], !isClear(box)]);
}}"""


def test_a_number_on_its_way_lies_on_no_card(opened):
    def explore(path):
        x = mg.tensor(0.123456, requires_grad=True)
        y = x * -1.23456e-5
        z = y * -123_456.0
        mg.viz.explore(z * -0.98765, path)

    reader = opened(explore)
    texts = []
    for _ in range(3):
        reader.press("ArrowRight")
        (written,) = reader.page.evaluate(OVERLAPS)
        texts.append(written)
    assert [overlaps for _, overlaps in texts] == [False] * 3
    assert texts[0][0] == "\N{MINUS SIGN}0.9877"


def test_a_screen_reader_hears_what_another_pass_is(opened):
    reader = opened(diamond)
    reader.page.click("#pass-depth")
    said = reader.page.locator("[aria-live]").text_content()
    assert said.startswith("Depth first. The pass that does not sort the nodes")
    assert said.endswith(
        "Step 1 of 6. The pass starts at y. The derivative of a number with respect to itself is 1."
    )


def test_arrow_keys_scroll_source_that_is_wider_than_its_box(opened):
    reader = opened(network)
    while not reader.page.locator("#step pre[tabindex]").count():
        reader.press("ArrowRight")
    source = reader.page.locator("#step pre[tabindex]").first
    if not source.is_visible():
        reader.page.locator("#step summary").first.click()
    at = reader.text("#counter")
    source.focus()
    reader.press("ArrowRight")
    assert reader.text("#counter") == at
    wait_until(reader.page, "document.activeElement.scrollLeft > 0")


def test_with_forced_colours_the_pass_that_is_shown_stands_out(opened):
    reader = opened(diamond, forced_colors="active")
    colours = "button => getComputedStyle(button).backgroundColor"
    shown, *others = (b.evaluate(colours) for b in reader.page.locator("#passes button").all())
    assert shown not in others


def test_the_keyboard_stays_in_the_panel_when_that_changes(opened):
    reader = opened(network)
    where = "document.activeElement.closest('#step, #node').id"
    reader.press("ArrowRight")
    reader.page.locator("#step [data-to]").last.focus()
    reader.press("Enter")
    assert reader.page.evaluate(where) == "node"
    assert reader.page.evaluate("document.activeElement.textContent").startswith(
        reader.text("#node h2").split()[0]
    )
    reader.press("ArrowRight")
    assert reader.text("#counter").startswith("3 /")
    assert reader.page.evaluate(where) == "step"


def test_source_that_was_opened_stays_open(opened):
    reader = opened(network)
    while "forward: tanh" not in reader.text("#node"):
        reader.press("ArrowRight")
    assert not reader.page.locator("#node details[open]").count()
    reader.page.locator("#node summary").first.click()
    reader.press("ArrowRight", 2)
    assert reader.text("#node h2").endswith("leaf")  # which has no source
    reader.press("ArrowLeft")
    assert "forward: lora_linear" in reader.text("#node details[open]")
    assert reader.page.locator("details[open]").count() == 1


COLLISIONS = """() => [...document.querySelectorAll(".card.node")].map((card) => {
  const [name, sub] = [".name", ".sub"].map((what) => card.querySelector(what).getBBox());
  const right = card.querySelector("rect").getBBox().width;
  const isWrong = name.x + name.width > (sub.width ? sub.x : right);
  return isWrong ? card.textContent : "";
}).filter(Boolean)"""


def heads(path):
    this_is_a_VERY_WIDE_NAME = mg.randn(6, 4, 8, 8, requires_grad=True)
    x = mg.reshape(mg.reshape(this_is_a_VERY_WIDE_NAME, (3, 8, 4, 16)), (3, 128, 2, 2))
    mg.viz.explore(mg.transpose(x, (3, 2, 1, 0)).sum(), path)


@pytest.mark.parametrize("explore", [heads, transformer])
def test_the_name_of_a_card_does_not_lie_on_its_shape(opened, explore):
    reader = opened(explore)
    assert reader.page.evaluate(COLLISIONS) == []


def test_a_long_formula_is_not_wider_than_the_panel(opened):
    reader = opened(transformer)
    while "fused_attention.joint_vjp" not in reader.text("#step"):
        reader.press("ArrowRight")
    assert reader.page.locator("#step .formula").evaluate("e => e.scrollWidth <= e.clientWidth")


def test_every_control_is_whole_in_a_narrow_window(opened):
    reader = opened(diamond, width=390)
    reader.page.click("#pass-depth")
    for width in (390, 800, 1000):
        reader.resize(width)
        stage = reader.page.locator("#stage").bounding_box()
        for control in reader.page.locator("#controls > :visible").all():
            box = control.bounding_box()
            assert box["x"] + box["width"] <= stage["x"] + stage["width"], width
            assert control.evaluate("e => e.scrollWidth <= e.clientWidth"), width
        assert reader.page.locator("#track").bounding_box()["width"] > 120, width


def test_a_drag_that_begins_on_a_card_does_not_choose_it(opened):
    reader = opened(diamond)
    box = reader.card("x").bounding_box()
    mouse = reader.page.mouse
    mouse.move(box["x"] + 20, box["y"] + 20)
    mouse.down()
    mouse.move(box["x"] + 60, box["y"] + 50, steps=4)
    mouse.up()
    assert reader.card("x").bounding_box()["x"] == pytest.approx(box["x"] + 40, abs=1)
    assert reader.text("#node h2") == "y add"
    reader.card("x").click()
    assert reader.text("#node h2") == "x leaf"


def program(path):
    """A network as above, and the program of a step of it."""
    model = mg.nn.MLP([3, 4, 2], activation=mg.tanh)
    optimizer = mg.optim.Adam(model.parameters())
    x, y = mg.randn(5, 3), mg.randn(5, 2)

    @mg.capture
    def step(x, y):
        optimizer.zero_grad()
        loss = mg.mse(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    step(x, y)
    step(x, y)
    mg.viz.explore(mg.mse(model(x), y), path, program=step)


def test_without_a_program_there_is_none(opened):
    assert opened(diamond).page.locator("#program").is_hidden()


@pytest.mark.parametrize("width", [390, 1280])
def test_the_line_of_a_program_that_runs_is_marked_and_in_sight(opened, width):
    reader = opened(program, width=width)
    assert "6 lines forward" not in reader.text("#program .note")
    assert "1 line update" in reader.text("#program .note")
    current = reader.page.locator("#program [aria-current]")
    assert current.count() == 0
    seen = []
    for _ in range(12):
        reader.press("ArrowRight")
        assert current.count() <= 1
        if current.count():
            seen.append(current.inner_text().split(" = ")[1].partition("(")[0])
            line, box = current.bounding_box(), reader.page.locator("#program pre").bounding_box()
            assert box["y"] <= line["y"]
            assert line["y"] + line["height"] <= box["y"] + box["height"]
    assert seen[-2:] == ["tanh_vjp_x", "linear_vjp_weight"]
    assert reader.page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_closed_program_leaves_its_room_to_the_graph(opened):
    reader = opened(program)
    height = reader.page.locator("#canvas").bounding_box()["height"]
    reader.press("ArrowRight", 2)
    reader.page.locator("#program summary").press(" ")
    assert reader.text("#counter").startswith("3 /")  # it does not play
    assert reader.page.locator("#canvas").bounding_box()["height"] > height + 100


LINES = """() => {
  const parse = (c) => c.match(/[0-9.]+/g).slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  const light = (c) => { const [r, g, b] = parse(c); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const pre = document.querySelector("#program pre");
  const grounds = [pre, pre.querySelector("[aria-current]")]
    .map((e) => light(getComputedStyle(e).backgroundColor));
  const inks = [".line", ".gradient", ".array", ".freed", ".remark"]
    .map((name) => light(getComputedStyle(pre.querySelector(name)).color));
  return grounds.flatMap((a) => inks.map((b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)));
}"""


def in_light_and_dark(reader, script):
    """What a script finds on a light page, and then on a dark one."""
    found = []
    for dark in (False, True):
        assert (reader.page.evaluate(LUMINANCE)["paper"] < 0.2) == dark
        found.append(reader.page.evaluate(script))
        reader.page.click("#theme")
    return found


def test_a_program_has_contrast_in_light_and_dark(opened):
    reader = opened(program)
    reader.press("End")
    reader.press("ArrowLeft", 5)
    light, dark = in_light_and_dark(reader, LINES)
    assert len(light) == len(dark) == 10
    assert min(light) > 4.5  # WCAG 2, level AA
    assert min(dark) > 4.5


def test_a_page_inside_a_notebook_is_alive(opened):
    def explore(path):
        x = mg.tensor(3.0, requires_grad=True)
        h = 2 * x
        page = mg.viz.explore(h + h, title='It\'s "a diamond" & more')
        path.write_text(f"<!doctype html><body>{page.frame()}<p>{'below ' * 9000}", "utf-8")

    reader = opened(explore)
    frame = reader.frame
    assert frame != reader.page.main_frame
    assert frame.locator("h1").inner_text() == 'It\'s "a diamond" & more'
    frame.click("#next")
    reader.press("ArrowRight", 3)
    assert frame.locator("#counter").inner_text() == "5 / 5"
    assert frame.locator("#step h2").inner_text() == "x gets its gradient"
    frame.click("#theme")
    box = frame.locator("#canvas").bounding_box()
    wide = frame.locator(".card").first.bounding_box()["width"]
    reader.page.mouse.move(box["x"] + 200, box["y"] + 100)
    reader.page.mouse.wheel(0, 200)  # scrolls the notebook
    wait_until(reader.page, "scrollY > 0")
    assert frame.locator(".card").first.bounding_box()["width"] == wide
    assert "ctrl + wheel" in frame.locator("#legend").inner_text()


def curved(path):
    a = mg.tensor(0.5, dtype="float64", requires_grad=True)
    b = mg.tensor([2.0, 0.25], dtype="float64", requires_grad=True)
    y = (a * b).sum() + mg.exp(a)
    mg.viz.explore(y, path)


def nudged_words(reader):
    """What is said beside the slider: of the leaf, the prediction, the truth, the difference."""
    words = reader.page.locator(".try dd").all_inner_texts()
    return [word.replace("\N{MINUS SIGN}", "-") for word in words]


def nudged(reader):
    """The numbers of the prediction and of the truth, and what is said of the difference."""
    _, predicted, true, off = nudged_words(reader)
    return float(predicted.split(" = ")[-1]), float(true.split(" = ")[-1]), off


@pytest.mark.parametrize("width", [360, 1280])
def test_a_nudge_shows_what_the_gradient_predicts_and_what_is_true(opened, width):
    reader = opened(curved, width=width)
    reader.page.locator("#nudge summary").press("Enter")
    reader.press("Tab")
    reader.page.locator("#nudge-by").focus()
    position = reader.text("#counter")
    reader.press("End")
    gradient = 2.25 + np.exp(0.5)
    true = 2.25 + np.exp(1.5) - np.exp(0.5)
    assert nudged(reader)[:2] == pytest.approx((gradient, true), rel=1e-3)
    far = float(nudged(reader)[2].split(",")[0])
    assert far == pytest.approx(true - gradient, rel=1e-3)
    assert "23 % of the true change" in nudged(reader)[2]
    said = reader.page.locator("#nudge-by").get_attribute("aria-valuetext")
    assert said == "nudge 1, predicted 3.899, true 5.083"
    reader.press("ArrowLeft", 15)  # to the smallest nudge above 0
    assert nudged(reader)[:2] == pytest.approx((gradient / 256, gradient / 256), rel=1e-3)
    reader.press("ArrowLeft")
    assert nudged(reader)[:2] == (0, 0)
    assert reader.text("#counter") == position  # the keys of the slider take no step
    assert reader.page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_leaf_and_an_element_can_be_chosen(opened):
    reader = opened(curved)
    reader.page.click("#nudge summary")
    assert reader.page.locator("#nudge-element").is_hidden()  # a is one number
    reader.page.select_option("#nudge-leaf", "b")
    assert reader.page.locator("#nudge-element option").all_inner_texts() == ["[0]", "[1]"]
    reader.page.select_option("#nudge-element", "[1]")
    assert reader.text(".try dd") == "0.25 + 1.25 = 1.5"
    assert nudged(reader)[:2] == (0.625, 0.625)
    assert nudged(reader)[2] == "0"
    reader.card("a").click()  # a leaf in the graph is taken
    assert nudged_words(reader)[0] == "0.5 + 0.25 = 0.75"
    reader.page.locator("#nudge-leaf").press("ArrowRight")  # chooses a leaf, and takes no step
    assert reader.text("#counter").startswith("1 /")


PLOT = """() => {
  const svg = document.querySelector(".try > svg");
  const box = (element) => element.getBoundingClientRect();
  const within = (from, to, a, b) => from >= a - 1 && to <= b + 1;
  const inside = (a, b) =>
    within(a.left, a.right, b.left, b.right) && within(a.top, a.bottom, b.top, b.bottom);
  const texts = [...svg.querySelectorAll("text")].map(box);
  const beside = (a, b) => a.right <= b.left || a.bottom <= b.top + 2;
  const apart = (a, b) => beside(a, b) || beside(b, a);
  return {
    inside: texts.every((text) => inside(text, box(svg))),
    apart: texts.every((a, i) => texts.every((b, j) => i === j || apart(a, b))),
    dots: [...svg.querySelectorAll("circle")].map((dot) => dot.getAttribute("class")),
    lines: [...svg.querySelectorAll("path.true")].length,
  };
}"""


def tiny(path):
    a_variable_with_a_long_name = mg.tensor(-1.2345e-9, dtype="float64", requires_grad=True)
    y = mg.square(a_variable_with_a_long_name) * -1e-30
    mg.viz.explore(y, path)


@pytest.mark.parametrize("explore", [curved, tiny, diamond])
def test_the_plot_of_a_nudge_is_whole(opened, explore):
    reader = opened(explore, width=360)
    reader.page.click("#nudge summary")
    for width, key in itertools.product((360, 1280), ("Home", "ArrowRight", "End")):
        reader.resize(width)
        reader.page.locator("#nudge-by").press(key)
        seen = reader.page.evaluate(PLOT)
        dots = seen.pop("dots")  # a prediction that is far from the truth is out of the plot
        assert seen == {"inside": True, "apart": True, "lines": 1}, (width, key)
        assert dots in (["true", "predicted"], ["true"])
        assert "predicted" in dots or explore is tiny


def test_where_a_nudge_leads_to_no_number_the_page_says_so(opened):
    def explore(path):
        x = mg.tensor(0.5, dtype="float64", requires_grad=True)
        y = mg.log(x) + mg.exp(x * x * 600.0)
        mg.viz.explore(y, path)

    reader = opened(explore)
    reader.page.click("#nudge summary")
    slider = reader.page.locator("#nudge-by")
    for key, word in (("Home", "nan"), ("End", "inf")):
        slider.press(key)
        assert nudged_words(reader)[2] == word
        assert nudged_words(reader)[3] == "unknown: a number is not finite"
        assert reader.page.evaluate(PLOT)["dots"] == ["predicted"]


def test_a_gradient_that_is_not_finite_predicts_nothing(opened):
    def explore(path):
        x = mg.tensor(0.0, dtype="float64", requires_grad=True)
        y = mg.sqrt(x) * 1.0
        mg.viz.explore(y, path)

    with np.errstate(divide="ignore"):
        reader = opened(explore)
    reader.page.click("#nudge summary")
    assert nudged_words(reader)[1].startswith("inf ")
    assert reader.page.evaluate(PLOT)["dots"] == ["true"]
    assert nudged_words(reader)[3] == "unknown: a number is not finite"


def test_without_nudges_the_page_says_why(opened):
    def explore(path):
        x = mg.tensor(1.0, requires_grad=True)
        mg.viz.explore(x + 1, path)

    reader = opened(explore)
    reader.page.click("#nudge summary")
    assert "Input b of add is not saved. A tape keeps it" in reader.text("#nudge .note")
    assert reader.page.locator(".try").is_hidden()


@pytest.mark.parametrize("size", [(1280, 800), (940, 720)])
def test_an_open_slider_leaves_room_for_the_graph(opened, size):
    reader = opened(network, width=size[0], height=size[1])
    reader.page.click("#nudge summary")
    assert reader.page.locator("#canvas").bounding_box()["height"] > 180
    assert "Of the 9 numbers in leaves" not in reader.text("#nudge .note")
    assert reader.page.evaluate("document.documentElement.scrollHeight") <= size[1]


def test_an_open_slider_leaves_the_whole_graph_in_sight(opened):
    reader = opened(curved)
    reader.page.click("#nudge summary")
    canvas = reader.page.locator("#canvas").bounding_box()
    boxes = [card.bounding_box() for card in reader.page.locator(".card").all()]
    above = min(box["y"] for box in boxes) - canvas["y"]
    below = canvas["y"] + canvas["height"] - max(box["y"] + box["height"] for box in boxes)
    assert above > 0
    assert abs(above - below) < 60  # the buttons and the legend take a part


NUDGE_COLOURS = """() => {
  const parse = (c) => c.match(/[0-9.]+/g).slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  const light = (c) => { const [r, g, b] = parse(c); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const box = document.querySelector("#nudge");
  const ground = light(getComputedStyle(box).backgroundColor);
  const style = (what) => getComputedStyle(box.querySelector(what));
  const inks = [style("dt").color, style("dd").color, style(".note").color, style("text").fill];
  inks.push(style("path.true").stroke, style("path.predicted").stroke);
  return inks.map(light).map((b) => (Math.max(ground, b) + 0.05) / (Math.min(ground, b) + 0.05));
}"""


def test_what_is_said_of_a_nudge_has_contrast(opened):
    reader = opened(curved)
    reader.page.click("#nudge summary")
    light, dark = in_light_and_dark(reader, NUDGE_COLOURS)
    assert min(light) > 4.5  # WCAG 2, level AA
    assert min(dark) > 4.5
