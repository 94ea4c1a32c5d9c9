"""The whole document: head, sections within their budgets, style and script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from segcore.reporting.gallery import MAX_TOGGLES
from segcore.reporting.html import Markup, element, join
from segcore.text import format_bytes
from segcore.visualize.overlays import COLOURS

MAX_BYTES = 10_000_000


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading of its own.

    Attributes:
        name: Its anchor.
        max_bytes: It is left out, with a line that says so, where it needs more.
    """

    name: str
    title: str
    content: Markup
    max_bytes: int

    def to_markup(self) -> Markup:
        """The section, or the line that stands for it."""
        content = self.content
        size = len(content.encode())
        if size > self.max_bytes:
            content = element(
                "p",
                f"Left out: it would take {format_bytes(size)} of the "
                f"{format_bytes(self.max_bytes)} that there is room for.",
                class_="note",
            )
        heading = element("h2", self.title, id=f"{self.name}-heading")
        return element(
            "section", heading, content, id=self.name, aria_labelledby=f"{self.name}-heading"
        )


def write_page(title: str, subtitle: str, sections: Sequence[Section]) -> bytes:
    """The bytes of the HTML file.

    Its policy allows the one style and the one script that are in it, and pictures that are in it,
    and nothing else: whatever a name says, no code of others runs and nothing is loaded.
    """
    style = _STYLE + "".join(_rules())
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; "
        f"script-src '{_hash(_SCRIPT)}'; base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="generator", content=_made_by()),
        element("title", title),
        Markup(f"<style>{style}</style>"),
    )
    links = [
        element("li", element("a", section.title, href=f"#{section.name}")) for section in sections
    ]
    body = element(
        "body",
        element("a", "Skip to the report", href="#main", class_="skip"),
        element("header", element("h1", title), element("p", subtitle)),
        element("nav", element("ul", *links), aria_label="Sections"),
        element("main", *(section.to_markup() for section in sections), id="main", tabindex=-1),
        element("footer", element("p", f"Made by {_made_by()}.")),
        Markup(f"<script>{_SCRIPT}</script>"),
    )
    return join(Markup("<!DOCTYPE html>\n"), element("html", head, body, lang="en")).encode()


def _made_by() -> str:
    try:
        return f"segcore {version('segcore')}"
    except PackageNotFoundError:  # a checkout that is not installed
        return "segcore"


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _rules() -> list[str]:
    """Colours of masks, and what the boxes and steps of the gallery hide."""
    rules = [f".k{number}{{color:rgb{colour}}}" for number, colour in enumerate(COLOURS)]
    rules += [
        f"body:has(#show-{layer}:not(:checked)) .{layer}{{display:none}}"
        for layer in ("masks", "known")
    ]
    rules += [
        f"body:has(#show-c{number}:not(:checked)) :is(.masks,.known) .c{number}{{display:none}}"
        for number in range(MAX_TOGGLES + 1)
    ]
    for step in range(1, 10):
        hidden = ",".join(f".s{lower}" for lower in range(step))
        rules.append(f"body:has(#score-{step}:checked) .masks :is({hidden}){{display:none}}")
    return rules


_STYLE = """
:root{--ink:#1b1b1f;--soft:#55565e;--paper:#fff;--panel:#f4f4f7;--line:#c9cad2;--accent:#0b57b7;
--bar:#3b6fb6;--warn:#9c2f12}
@media (prefers-color-scheme:dark){:root{--ink:#ececf1;--soft:#b3b5c0;--paper:#16171b;
--panel:#212329;--line:#454853;--accent:#8ab8ff;--bar:#7aa7e8;--warn:#ff9d80}}
*{box-sizing:border-box}[hidden]{display:none!important}
body{margin:0 auto;padding:0 1rem 3rem;max-width:80rem;font:16px/1.5 system-ui,sans-serif;
color:var(--ink);background:var(--paper)}
h1{font-size:1.7rem;line-height:1.25;margin:1.5rem 0 .25rem;overflow-wrap:anywhere}
h2{font-size:1.3rem;margin:2.5rem 0 .75rem;padding-top:.75rem;border-top:1px solid var(--line)}
h3{font-size:1.05rem;margin:1.25rem 0 .5rem}
p{max-width:70ch;margin:.5rem 0;overflow-wrap:anywhere}
a{color:var(--accent)}
:focus-visible{outline:3px solid var(--accent);outline-offset:2px}
main:focus{outline:none}
.skip{position:absolute;left:-99rem}.skip:focus{left:1rem;top:.5rem;background:var(--paper);
padding:.5rem;z-index:2}
nav ul{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;list-style:none;padding:0;margin:.75rem 0}
.note{color:var(--soft);font-size:.9rem}.warn{color:var(--warn);font-weight:600}
.hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);
white-space:nowrap}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(20rem,100%),1fr));
gap:.5rem 1.5rem;margin:.75rem 0}
dt{color:var(--soft);font-size:.85rem}dd{margin:0;overflow-wrap:anywhere}
.numbers dd{font-size:1.3rem;font-variant-numeric:tabular-nums}
.numbers dl{grid-template-columns:repeat(auto-fill,minmax(8rem,1fr))}
.scroll{overflow-x:auto;max-width:100%;position:relative}
table{border-collapse:collapse;margin:.5rem 0;font-size:.92rem}
caption{text-align:left;color:var(--soft);padding:.25rem 0}
th,td{padding:.3rem .8rem .3rem 0;text-align:left;border-bottom:1px solid var(--line);
vertical-align:middle;max-width:28rem;overflow-wrap:break-word}
tbody th{font-weight:400;min-width:7rem;overflow-wrap:anywhere}
.n{text-align:right;font-variant-numeric:tabular-nums}
thead th{vertical-align:bottom}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(24rem,100%),1fr));gap:1rem}
.chart{background:var(--panel);padding:.25rem 1rem 1rem;border-radius:.5rem;min-width:0}
.chart svg{width:100%;height:auto;display:block}
.bar{fill:var(--bar)}.axis{stroke:var(--line)}
.tick,.top{fill:var(--soft);font-size:12px}.tick{text-anchor:middle}
.line{fill:none;stroke:var(--bar);stroke-width:2.5}.l1{stroke-dasharray:9 4}
.l2{stroke-dasharray:2 4}.l3{stroke-dasharray:12 4 2 4}.l4{stroke:var(--warn)}
.l5{stroke:var(--warn);stroke-dasharray:9 4}.l6{stroke:var(--warn);stroke-dasharray:2 4}
.l7{stroke:var(--warn);stroke-dasharray:12 4 2 4}
.legend{list-style:none;margin:.25rem 0;padding:0;font-size:.88rem;overflow-wrap:anywhere}
.chart svg.key{display:inline-block;width:36px;height:10px}
.small{width:100px;height:22px;vertical-align:middle;margin-right:.6rem}
summary{cursor:pointer}
.controls{display:flex;flex-wrap:wrap;gap:.5rem 1rem;position:sticky;top:0;z-index:1;
background:var(--paper);padding:.5rem 0;border-bottom:1px solid var(--line)}
fieldset{border:1px solid var(--line);border-radius:.4rem;margin:0;padding:.1rem .75rem .3rem;
min-width:0}
legend{color:var(--soft);font-size:.85rem}
label{display:inline-block;margin-right:.8rem;overflow-wrap:anywhere}
input[type=range]{vertical-align:middle;width:12rem;max-width:60vw}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(17rem,100%),1fr));gap:1rem}
figure{margin:0;background:var(--panel);border-radius:.5rem;padding:.5rem;min-width:0;
scroll-margin-top:9rem}
figure svg{width:100%;height:auto;max-height:85vh;display:block}
figcaption{font-size:.88rem;padding-top:.35rem;overflow-wrap:anywhere}
figcaption>*{display:block}.links a{display:inline-block;margin-right:1rem}
.links .smaller,figure:target .links .enlarge{display:none}
figure:target{grid-column:1/-1;order:-1}figure:target .links .smaller{display:inline-block}
.card{border:2px solid var(--warn);border-radius:.4rem;padding:.5rem .75rem;min-height:8rem}
.masks path{fill:currentColor;fill-opacity:.3;fill-rule:evenodd;stroke:currentColor;
stroke-width:1.5;vector-effect:non-scaling-stroke}
.masks path:hover{fill-opacity:.6}
.known{filter:drop-shadow(0 0 1px #000) drop-shadow(0 0 1px #000)}
.known path{fill:none;stroke:#fff;stroke-width:2;stroke-dasharray:7 4;pointer-events:stroke;
vector-effect:non-scaling-stroke}
button{font:inherit;min-width:2rem;margin:.25rem .25rem 0 0;color:inherit;background:var(--paper);
border:1px solid var(--line);border-radius:.3rem}
@media (max-width:40rem){.controls{position:static}figure{scroll-margin-top:1rem}}
@media print{nav,.controls,.links,button{display:none}}
"""

# It adds to what works without it: any lowest score instead of ten, and zoom.
_SCRIPT = """
"use strict";
(() => {
  const steps = document.getElementById("score-steps");
  if (!steps) return;
  const paths = [...document.querySelectorAll(".masks path")];
  const slider = Object.assign(document.createElement("input"),
    {type: "range", min: 0, max: 1, step: 0.01, value: 0, id: "score-slider"});
  const value = document.createElement("output");
  const label = document.createElement("label");
  label.append(slider, " ", value);
  slider.setAttribute("aria-label", "Lowest score");
  for (const old of steps.querySelectorAll("label")) old.hidden = true;
  document.getElementById("score-0").checked = true;
  steps.append(label);
  const show = () => {
    value.textContent = Number(slider.value).toFixed(2);
    for (const path of paths)
      path.style.display = Number(path.dataset.score) < Number(slider.value) ? "none" : "";
  };
  slider.addEventListener("input", show);
  show();
  for (const svg of document.querySelectorAll("figure svg")) {
    const whole = svg.viewBox.baseVal.width, full = svg.viewBox.baseVal.height;
    let scale = 1, x = whole / 2, y = full / 2;
    const view = () => {
      const w = whole / scale, h = full / scale;
      x = Math.min(Math.max(x, w / 2), whole - w / 2);
      y = Math.min(Math.max(y, h / 2), full - h / 2);
      svg.setAttribute("viewBox", `${x - w / 2} ${y - h / 2} ${w} ${h}`);
    };
    const name = svg.parentElement.querySelector("strong").textContent;
    const row = document.createElement("span");
    const button = (text, label, act) => {
      const made = document.createElement("button");
      made.type = "button";
      made.textContent = text;
      made.setAttribute("aria-label", `${label}: ${name}`);
      made.addEventListener("click", () => { act(); view(); });
      row.append(made);
    };
    button("+", "Zoom in", () => { scale = Math.min(scale * 1.6, 40); });
    button("\\u2212", "Zoom out", () => { scale = Math.max(scale / 1.6, 1); });
    button("\\u2190", "Move left", () => { x -= whole / scale / 4; });
    button("\\u2192", "Move right", () => { x += whole / scale / 4; });
    button("\\u2191", "Move up", () => { y -= full / scale / 4; });
    button("\\u2193", "Move down", () => { y += full / scale / 4; });
    svg.parentElement.querySelector("figcaption").append(row);
    svg.addEventListener("pointermove", (event) => {
      if (!(event.buttons & 1) || scale === 1) return;
      const pixels = whole / scale / svg.clientWidth;
      x -= event.movementX * pixels;
      y -= event.movementY * pixels;
      event.preventDefault();
      view();
    });
  }
})();
"""
