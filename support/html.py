"""
The parts of a page in HTML: tokens with their colors and notes, sparklines, curves, and the whole file.

    document("dpo", body)    # one file with its style (page.css) and its script (page.js), which requests nothing

All text goes through `escape`. The page's policy (CSP) allows no request and only our own script. page.py uses it.
"""
import base64
import hashlib
import html
import json
import math
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
LEVELS = 8          # steps of color from 0 to the end of a scale
# Control characters but the line feed, lone surrogates, and characters that reorder the text around them
UNSHOWN = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
MOST_POINTS = 400   # of a curve; a longer one is thinned

def escape(text):
    """Text as HTML, also within quotes. Characters that cannot be shown become a box; line breaks stay."""
    return html.escape(UNSHOWN.sub("\u25af", text)).replace("\n", "&#10;")

def tag(name, content, **attributes):
    """An element with escaped attributes. content is HTML. A name with _ has a - in HTML; class_ is class."""
    listed = "".join(f' {key.strip("_").replace("_", "-")}="{escape(str(value))}"' for key, value in attributes.items()
                     if value is not None)
    return f"<{name}{listed}>{content}</{name}>"

# ---------------------------------------------------------------------------------------------------------------------
# tokens

def level(value, scale):
    """The step of color of a value, -LEVELS to LEVELS. scale > 0 is the value of the last step."""
    share = max(-1.0, min(1.0, value / scale))
    return round(LEVELS * share)

def color(value, scale, up, down):
    """The CSS class of a value: up or down and its step, "" near zero."""
    step = level(value, scale)
    return f"{up if step > 0 else down}{abs(step)}" if step else ""

def token(piece, note, classes=""):
    """
    A token that shows its note when the mouse is over it or when it has the focus. See page.css: b::after. A space
    before a word is not colored.
    """
    space = " " if piece.startswith(" ") and piece.strip() else ""
    seen = piece[len(space):].replace("\n", "\u21b5\n")
    return space + tag("b", escape(seen), class_=classes.strip() or None, tabindex=0, data_t=note)

def legend(scale, unit):
    """The colors of the scale with their values, from the most negative to the most positive."""
    swatches = []
    for step in range(-LEVELS, LEVELS + 1):
        value = scale * step / LEVELS
        label = f"{value:+.2g}" if abs(step) == LEVELS else "\u00a0" if step else "0"
        swatches.append(tag("b", label, class_=color(value, scale, "p", "n") or None))
    return tag("p", f"{''.join(swatches)} {escape(unit)}", class_="legend")

def sparkline(sums, low, high):
    """A small line through running sums, from 0 on, with the zero line. low <= 0 <= high: the ends of its scale."""
    values = [0.0, *sums]
    y = lambda value: 2 + 20 * (high - value) / ((high - low) or 1.0)
    points = " ".join(f"{120 * i / (len(values) - 1):.1f},{y(v):.1f}" for i, v in enumerate(values))
    return (f'<svg class="spark" viewBox="-2 0 126 24" aria-hidden="true"><path d="M0 {y(0):.1f}H120"/>'
            f'<polyline points="{points}"/><circle cx="120" cy="{y(values[-1]):.1f}" r="2"/></svg>')

# ---------------------------------------------------------------------------------------------------------------------
# curves

def thinned(points):
    """At most MOST_POINTS of the points, evenly chosen, the last among them."""
    stride = math.ceil(len(points) / MOST_POINTS)
    return points[::-1][::stride][::-1]

def short(value):
    """A number in at most six signs."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"

def curve(title, unit, lines):
    """
    A figure of lines over steps. lines: [("chosen val", "val c0", [(step, value), ...])], values finite: a name and CSS
    classes, which both have the split.
    The script reads the points that stand in data-points, to show the values at the cursor.
    """
    lines = [(name, kind, thinned(points)) for name, kind, points in lines if points]
    steps = [step for *_, points in lines for step, _ in points]
    values = [value for *_, points in lines for _, value in points]
    first, last, low, high = min(steps), max(steps), min(values), max(values)
    x = lambda step: 40 + 250 * (step - first) / ((last - first) or 1)
    y = lambda value: 10 + 100 * (high - value) / ((high - low) or 1)
    drawn = []
    for name, kind, points in lines:
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
        exact = json.dumps([[step, float(f"{value:.6g}")] for step, value in points], separators=(",", ":"))
        drawn.append(tag("polyline", "", class_=kind, points=path, data_name=name, data_points=exact))
        if len(points) == 1:
            drawn.append(f'<circle class="{kind}" cx="{x(points[0][0]):.1f}" cy="{y(points[0][1]):.1f}" r="2"/>')
    ends = ((36, 14, "end", short(high)), (36, 112, "end", short(low)), (40, 126, "start", first),
            (290, 126, "end", f"step {last}"))
    labels = "".join(f'<text x="{at}" y="{top}" text-anchor="{anchor}">{text}</text>' for at, top, anchor, text in ends)
    picture = (f'<svg class="curve" viewBox="0 0 300 130" data-first="{first}" data-last="{last}"><path class="axis" '
               f'd="M40 10V110H290"/>{labels}{"".join(drawn)}<path class="cursor" d="M0 10V110" hidden/></svg>')
    names = {kind.partition(" ")[2]: name.rpartition(" ")[0] for name, kind, _ in lines}    # without train and val
    names = " ".join(tag("span", escape(name), class_=f"key {kind}") for kind, name in names.items())
    caption = f"{tag('strong', escape(title))} {escape(unit)}<br>{names}"
    return tag("figure", f"<figcaption>{caption}</figcaption>{picture}<output></output>")

# ---------------------------------------------------------------------------------------------------------------------
# the file

def document(title, body):
    """The whole file. body is HTML."""
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'; base-uri 'none'; " \
            "form-action 'none'"
    return (f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{rules}">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
            f"<style>\n{style}</style>\n</head>\n<body>\n<main class=\"nanopref\">\n{body}\n</main>\n"
            f"<script>{script}</script>\n</body>\n</html>\n")
