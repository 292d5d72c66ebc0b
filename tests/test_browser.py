"""
The page of a run in a real browser: a headless Chromium without a network, driven by selenium. All tests are slow.

Without Chromium, its driver or selenium they are skipped; .ci/run installs what it can. test_page.py checks the file.
"""
import csv
import re
from pathlib import Path

import pytest
from pages import FEW, read_page, standing_in
from test_page import NOTE, each_token, models_of, shown_pairs

from study import screenshot
from support import layout

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("here")]
PAGES = {"dpo": ("dpo",), "kept": ("kept",), "hostile": ("hostile",), "ppo": ("ppo",), "sft": ("out/toy/sft",),
         "several": ("adapter", "kept", "simpo")}    # name -> the runs on the page

@pytest.fixture
def here(paged):
    """The folder with the runs as the current one."""
    with standing_in(paged):
        yield paged

@pytest.fixture(scope="module")
def window():
    """One browser for all tests of this file."""
    try:
        driver = screenshot.browser()
    except SystemExit as e:
        pytest.skip(str(e))
    except Exception as e:    # a browser that does not start here, for example in a sandbox
        pytest.skip(f"Chromium does not start: {str(e).splitlines()[0]}")
    yield driver
    driver.quit()

@pytest.fixture(scope="module")
def files(paged, pageless, tmp_path_factory):
    """{name: the file of a page}, 8 pairs and samples of 4 prompts each."""
    folder = tmp_path_factory.mktemp("browser")
    with standing_in(paged):
        return {name: pageless(["--run", *runs, "--out", str(folder / f"{name}.html"), *FEW])
                for name, runs in PAGES.items()}

@pytest.fixture
def opened(window, files):
    """opened(name, ...): opens a page. It must have written nothing to the console when the test ends."""
    def look(name, *, width=1000, height=800, dark=False, script=True):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        window.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
        window.get(Path(files[name]).as_uri())
        return read_page(Path(files[name]).read_text(encoding="utf-8"))
    window.get_log("browser")
    yield look
    assert window.get_log("browser") == []
    window.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})

def choose(window, control, value):
    """Chooses an option or a position, as a click does."""
    window.execute_script(
        "const c = document.getElementById(arguments[0]); c.value = arguments[1];"
        "for (const kind of ['input', 'change']) c.dispatchEvent(new Event(kind, {bubbles: true}))", control, value)

def seen_cards(window):
    """The data-at of all pairs that can be seen, from top to bottom."""
    return window.execute_script(
        "return [...document.querySelectorAll('.pair')].filter(c => c.checkVisibility()).sort((a, b) =>"
        "a.getBoundingClientRect().top - b.getBoundingClientRect().top).map(c => Number(c.dataset.at))")

def visible(window, selector):
    """Whether each element of a selector can be seen."""
    return window.execute_script("return [...document.querySelectorAll(arguments[0])].map(e => e.checkVisibility() &&"
                                 "e.getBoundingClientRect().height > 0)", selector)

def unquoted(content):
    """The text of a computed `content`: in quotes, with a line break as \\a."""
    assert content[0] == content[-1] == '"', content
    return re.sub(r"\\(a |.)", lambda m: "\n" if m[1] == "a " else m[1], content[1:-1])

# ---------------------------------------------------------------------------------------------------------------------
# the file

@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_without_a_request_or_an_error(window, opened, name):
    """From file://, without a network. The fixture checks the console, where a blocked request would be an error."""
    tree = opened(name)
    assert window.title == tree.all("title")[0].text
    assert window.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert window.execute_script("return document.compatMode") == "CSS1Compat"
    assert all(visible(window, "h1, h2, .verdict, table, .curve, article"))
    assert not window.execute_script("return [...document.querySelectorAll('.controls')].some(c => c.hidden)")

def test_no_other_script_can_run(window, opened):
    """The policy (CSP) holds in the browser: a script that gets into the page all the same is not run."""
    opened("dpo")
    window.execute_script("const s = document.createElement('script'); s.textContent = 'window.seen = 1';"
                          "document.body.append(s); document.body.setAttribute('onclick', 'window.seen = 1');"
                          "document.body.click()")
    assert window.execute_script("return window.seen") is None
    refusals = [entry["message"] for entry in window.get_log("browser")]
    assert len(refusals) == 2 and all("Content Security Policy" in one for one in refusals)

def test_hostile_text_runs_nothing(window, opened):
    """Not when the page opens, nor when its pairs are sorted, or a token shows its note."""
    tree = opened("hostile")
    choose(window, "sort", "-margin")
    notes = window.execute_script(
        "return [...document.querySelectorAll('b[data-t]')].map(b => { b.focus({preventScroll: true});"
        "return [b.dataset.t, getComputedStyle(b, '::after').content] })")
    assert len(notes) == len(tree.all("b", having="data-t")) > 200
    assert [unquoted(shown) for _, shown in notes] == [note for note, _ in notes]
    assert window.execute_script("return window.seen") is None and window.title == "hostile"
    assert window.execute_script("return document.scripts.length") == 1
    injected = "main script, main style, [onclick], [onload], [onmouseover]"
    assert window.execute_script("return document.querySelectorAll(arguments[0]).length", injected) == 0

# ---------------------------------------------------------------------------------------------------------------------
# controls

def in_order(cards, key):
    """The data-at of cards sorted by a key of the menu, "-margin" from large to small; equal ones as in the data."""
    sign = -1 if key.startswith("-") else 1
    value = lambda card: (sign * float(card[f"data-{key.removeprefix('-')}"]), int(card["data-at"]))
    return [int(card["data-at"]) for card in sorted(cards, key=value)]

@pytest.mark.parametrize("name", ["dpo", "kept", "hostile", "several"])
def test_sorting(window, opened, name):
    """Every order of the menu, one after the other, is that of the pairs' numbers, and not of their text."""
    cards = opened(name).all("article", cls="pair")
    assert seen_cards(window) == list(range(8))
    orders = set()
    for key, _ in layout.SORTS:
        choose(window, "sort", key)
        assert seen_cards(window) == in_order(cards, key), key
        orders.add(tuple(in_order(cards, key)))
    assert len(orders) > 3
    choose(window, "sort", "at")
    assert seen_cards(window) == list(range(8))

@pytest.mark.parametrize("name", ["dpo", "several"])
def test_filters(window, opened, name):
    """A filter leaves the pairs with its mark, in the order that was chosen, and says how many."""
    tree = opened(name)
    cards = tree.all("article", cls="pair")
    choose(window, "sort", "margin")
    options = [option["value"] for option in tree.all("select")[1].all("option")]
    assert len(options) > 2
    for mark in (*options, "", options[1]):
        choose(window, "filter", mark)
        want = [card for card in cards if not mark or mark in card["data-marks"].split()]
        assert seen_cards(window) == in_order(want, "margin"), mark
        assert window.execute_script("return document.getElementById('shown').textContent") == f"{len(want)} of 8 pairs"

def test_a_token_shows_its_note_when_it_has_the_focus(window, opened):
    """The numbers of the two models at this token stand at the bottom of the window, and go when the focus goes."""
    opened("dpo")
    prompt, chosen, _ = shown_pairs("dpo")[0]
    policy, reference = (each_token(model, prompt, chosen) for model in models_of("dpo"))
    look = ("const b = document.querySelectorAll('.pair .text b')[arguments[0]];"
            "const before = getComputedStyle(b, '::after').content;"
            "b.focus(); const s = getComputedStyle(b, '::after');"
            "return [before, s.content, s.position, s.bottom, b.textContent]")
    for t, token in enumerate(chosen):
        before, content, position, bottom, text = window.execute_script(look, t)
        said = NOTE.fullmatch(unquoted(content))
        assert before == "none" and (position, bottom) == ("fixed", "0px")
        assert said[1] == text.strip() and int(said[2]) == t + 1
        assert float(said[4]) == pytest.approx(policy[t, token].item(), abs=6e-4)
        assert float(said[7]) == pytest.approx(reference[t, token].item(), abs=6e-4)
    window.execute_script("document.activeElement.blur()")
    assert window.execute_script(look.split("b.focus")[0] + "return before", 0) == "none"

def test_a_token_shows_its_note_under_the_mouse_and_by_the_keyboard(window, opened):
    """Without a mouse, Tab goes from token to token."""
    from selenium.webdriver import ActionChains, Keys
    opened("dpo")
    tokens = window.find_elements("css selector", ".pair .text b")[:3]
    content = lambda token: window.execute_script("return getComputedStyle(arguments[0], '::after').content", token)
    window.execute_script("arguments[0].scrollIntoView({block: 'center'})", tokens[0])
    ActionChains(window).move_to_element(tokens[1]).perform()
    assert unquoted(content(tokens[1])) == tokens[1].get_attribute("data-t") and content(tokens[0]) == "none"
    window.execute_script("arguments[0].focus()", tokens[0])
    ActionChains(window).send_keys(Keys.TAB).send_keys(Keys.TAB).perform()
    assert window.switch_to.active_element == tokens[2]
    assert unquoted(content(tokens[2])) == tokens[2].get_attribute("data-t")

@pytest.mark.parametrize("name", ["kept", "several"])
def test_the_slider_shows_one_step_of_each_run(window, opened, name):
    """At each position every card has one view of each run: that of the step, or the run's only one."""
    from selenium.webdriver import Keys
    opened(name)
    titles = lambda: window.execute_script(
        "return [...document.querySelectorAll('article')].map(c => [...c.querySelectorAll('h4')]"
        ".filter(h => h.checkVisibility()).map(h => h.textContent.replace(' (best)', '')))")
    step = lambda: window.execute_script("return document.getElementById('step-name').textContent")
    steps = ["0", "2", "4"]
    def check(at):
        rows = titles()
        assert step() == steps[at] and len(rows) == 12
        for row in rows:
            assert f"kept, step {steps[at]}" in row and [title.split(",")[0] for title in row] == list(PAGES[name])
    check(2)
    for at in (0, 1, 2, 0):
        choose(window, "step", at)
        check(at)
    slider = window.find_element("id", "step")
    slider.send_keys(Keys.ARROW_RIGHT)
    check(1)

@pytest.mark.parametrize("name", ["dpo", "several", "ppo"])
def test_the_mouse_over_a_curve_reads_all_curves(window, opened, name):
    """At the step below the mouse, each line of each figure shows its last value up to there, as in log.csv."""
    from selenium.webdriver import ActionChains
    opened(name)
    logs = {run: list(csv.DictReader(open(f"{run}/log.csv"))) for run in PAGES[name]}
    last = max(int(row["step"]) for rows in logs.values() for row in rows)
    panels = dict(layout.PANELS)
    curve = window.find_elements("css selector", ".curve")[1]
    window.execute_script("arguments[0].scrollIntoView({block: 'center'})", curve)
    width = curve.rect["width"]
    for step in (0, 1, last // 2, last):
        at = (40 + 250 * step / last) / 300 * width - width / 2
        ActionChains(window).move_to_element_with_offset(curve, at, 0).perform()
        figures = window.execute_script("return [...document.querySelectorAll('figure')].map(f =>"
                                        "['strong', 'output'].map(part => f.querySelector(part).textContent))")
        assert len(figures) > 2
        for title, said in figures:
            head, _, rest = said.partition(": ")
            assert head == f"step {step}"
            found = {one.rpartition(" ")[0]: float(one.rpartition(" ")[2]) for one in rest.split(", ") if one}
            assert found == want_at(step, panels[title], logs)

def want_at(step, metrics, logs):
    """{name of a line: its value} at a step, from the rows of log.csv of each run."""
    want = {}
    for run, rows in logs.items():
        for row in rows:
            if row["metric"] in metrics and int(row["step"]) <= step:
                words = [run] * (len(logs) > 1) + [row["metric"].rpartition("/")[2]] * (len(metrics) > 1)
                want[" ".join([*words, row["split"]])] = float(f"{float(row['value']):.6g}")
    return want

# ---------------------------------------------------------------------------------------------------------------------
# where it is read

@pytest.mark.parametrize("name", ["dpo", "kept", "several"])
def test_without_javascript_everything_is_there(window, opened, name):
    """All pairs, samples and views can be seen, and no control that does nothing."""
    opened(name, script=False)
    assert all(visible(window, "article, section, .text, .curve")) and len(visible(window, "article")) == 12
    assert not any(visible(window, ".controls"))

@pytest.mark.parametrize("name", PAGES)
def test_a_narrow_window_needs_no_scrolling_sideways(window, opened, name):
    """On a telephone, with a note shown as well. The table scrolls within itself."""
    opened(name, width=400)
    window.execute_script("document.querySelector('details').open = true;"
                          "document.querySelectorAll('b[data-t]')[5].focus()")
    assert window.execute_script("return document.documentElement.clientWidth") == 400
    assert window.execute_script("return document.documentElement.scrollWidth") <= 400
    wide = window.execute_script(
        "return [...document.querySelectorAll('main *')].filter(e => !e.closest('.wide'))"
        ".filter(e => e.getBoundingClientRect().right > 401).map(e => e.outerHTML.slice(0, 80))")
    assert wide == []

@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_blue_is_more_and_orange_is_less(window, opened, dark):
    """The legend's 17 steps: orange fades to nothing and blue grows from it. Bars of true credit have the same hues."""
    tree = opened("dpo", dark=dark)
    shades = window.execute_script("return [...document.querySelectorAll('.legend b')].map(b =>"
                                   "getComputedStyle(b).backgroundColor)")
    values = [list(map(float, re.findall(r"[\d.]+", shade))) for shade in shades]
    assert [tuple(v[:3]) for v in values] == [(213, 94, 0)] * 8 + [(0, 0, 0)] + [(0, 114, 178)] * 8
    strength = [v[3] for v in values]
    assert strength[8] == 0 and strength == strength[::-1] and strength[8:] == sorted(set(strength))
    bars = window.execute_script("return [...document.querySelectorAll('.text b')].map(b =>"
                                 "[b.className, getComputedStyle(b).borderBottomColor])")
    assert len(bars) == len([b for p in tree.all("p", cls="text") for b in p.all("b")])
    for classes, color in bars:
        credit = [name[0] for name in classes.split() if name[0] in "tf"]
        hue = {"t": (0, 114, 178), "f": (213, 94, 0)}[credit[0]] if credit else (0, 0, 0)
        assert tuple(map(float, re.findall(r"[\d.]+", color)[:3])) == hue, classes

COVERED = """const box = arguments[0].getClientRects()[0];
    const there = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
    return there !== arguments[0] && !arguments[0].contains(there)"""

@pytest.mark.parametrize("width", [400, 1000])
def test_nothing_covers_the_token_that_has_the_focus(window, opened, width):
    """Who goes through the tokens with Tab, or back, sees each above its note and below the controls."""
    from selenium.webdriver import ActionChains, Keys
    opened("kept", width=width, height=600)
    forward = ActionChains(window).send_keys(Keys.TAB)
    backward = ActionChains(window).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT)
    for start, step in ((0, forward), (4, backward)):
        first = "document.querySelectorAll('.pair')[arguments[0]].querySelector('section:not([hidden]) b')"
        window.execute_script(f"{first}.focus()", start)
        for _ in range(50):
            step.perform()
            token = window.switch_to.active_element
            assert token.get_attribute("data-t") and not window.execute_script(COVERED, token)

@pytest.mark.parametrize("width", [400, 1000])
def test_all_controls_can_be_reached_beside_the_pairs(window, opened, width):
    """The slider and the menus stay at the top of the window when the pairs are scrolled, one below the other."""
    opened("kept", width=width)
    window.execute_script("document.querySelectorAll('.pair')[3].scrollIntoView({block: 'start'})")
    for name in ("step", "sort", "filter"):
        assert not window.execute_script(COVERED, window.find_element("id", name)), name

def lightness(color):
    """The mean of an rgb() color, from 0 to 255."""
    return sum(map(float, re.findall(r"[\d.]+", color)[:3])) / 3

@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_can_be_read_in_light_and_dark_mode(window, opened, dark):
    """Light text on dark, and the other way round; the page has no border of the other color."""
    opened("dpo", dark=dark)
    window.execute_script("document.querySelector('b[data-t]').focus()")
    for selector in ("main", ".text", ".prompt", "th", "figcaption", "b[data-t]::after"):
        ink, paper, body = window.execute_script(
            "const e = document.querySelector(arguments[0]), s = getComputedStyle(e, arguments[1]);"
            "let at = e, paper = s.backgroundColor;"
            "while (/, 0\\)/.test(paper)) { at = at.parentElement; paper = getComputedStyle(at).backgroundColor; }"
            "return [s.color, paper, getComputedStyle(document.body).backgroundColor]",
            selector.split("::")[0], "::after" if "::" in selector else None)
        assert (lightness(ink) > lightness(paper)) == dark, selector
        assert abs(lightness(ink) - lightness(paper)) > 90, selector
        assert not dark or lightness(body) < 60
