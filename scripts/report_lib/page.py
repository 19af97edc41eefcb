"""Puts the page together: the template, its style and scripts, the charts' library and the data,
all in one file.
"""
import json
from pathlib import Path

import jinja2

import digest
import explain
import rebalance
import tables
import texts

HERE = Path(__file__).parent / "template"
LARGEST = 6_000_000  # bytes of a page
SCRIPTS = (
    "core.js",
    "losses.js",
    "load.js",
    "placement.js",
    "traffic.js",
    "timeline.js",
    "specialization.js",
    "explain.js",
    "compare.js",
    "start.js",
)


def in_script(value):
    """JSON that may stand inside <script>: no "<", and no value that is not JSON."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def thinned_text(run):
    """What was left out to keep the page small, as sentences."""
    texts, steps, load, matrix = [], run["steps"], run["load"], run["matrix"]
    if steps["every"] > 1:
        texts.append(f"lines over steps show every {steps['every']}. step and the last")
    if load and load["steps_per_bin"] > 1:
        texts.append(f"the heat map over steps shows means of {load['steps_per_bin']} steps")
    if load and load["experts_per_bin"] > 1:
        texts.append(
            f"the heat map over steps shows means of {load['experts_per_bin']} neighbouring experts"
        )
    if matrix and matrix["devices_per_bin"] > 1:
        texts.append(
            f"the traffic matrix shows sums over blocks of {matrix['devices_per_bin']} devices"
        )
    if run["timeline"] and len(run["timeline"]["ranks"]) < run["timeline"]["all"]:
        texts.append(
            f"the timeline shows {len(run['timeline']['ranks'])} of {run['timeline']['all']} ranks"
        )
    return "; ".join(texts)


def environment():
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.globals.update(tables=tables, texts=texts, explain=explain, rebalance=rebalance)
    return made


def render(folders, library, share, lesson):
    runs = [digest.digest(folder, digest.Room(share / len(folders))) for folder in folders]
    template = environment().get_template("page.html" if len(folders) == 1 else "compare.html")
    scripts = "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    style = (HERE / "style.css").read_text(encoding="utf-8")
    return template.render(
        folders=folders,
        lesson=lesson,
        runs=runs,
        thinned=[thinned_text(run) for run in runs],
        style=style,
        scripts=scripts,
        library=library.replace("</script", "<\\/script"),
        data=in_script({"runs": runs}),
    )


def build(folders, library, lesson=None):
    """The page's text; heat maps and lines get coarser until it is small enough. The lesson stands in
    front.
    """
    for share in (1.0, 0.5, 0.25, 0.1, 0.03):
        text = render(folders, library, share, lesson)
        if len(text.encode()) < LARGEST:
            break
    return text
