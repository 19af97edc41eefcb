"""ctest: timeout=900 labels=long
Every lesson as a student runs it: at full size every row of EXPECT holds, in under a minute, and
its report is written (where the charts' library is there); and what its answers say of other
settings.
"""
import os
import re
import resource
import subprocess
import sys

import _moesim as m

sys.path.insert(0, os.path.join(m.SOURCE, "scripts"))
sys.path.insert(0, os.path.join(m.SOURCE, "scripts", "report_lib"))
sys.dont_write_bytecode = True
from lesson_lib import measure, page  # noqa: E402  (needs the path)
import plotly  # noqa: E402

LICENCES = "/usr/share/common-licenses"
ENVIRONMENT = {
    name: value
    for name, value in m.environment().items()
    if name not in ("DISPLAY", "WAYLAND_DISPLAY")
}


# What ANSWERS say of runs with --set: (lesson, settings, figure, bound)
ANSWERS = (
    (
        1,
        ("cluster.devices=16", "data.tokens_per_device=128"),
        "eight.volume.dispatch.rows",
        "= 4096",
    ),
    (
        1,
        ("cluster.devices=16", "data.tokens_per_device=128"),
        "eight.volume.dispatch.by_level.same_node.rows",
        "= 3793",
    ),
    (2, ("router.group_limit=none",), "way.explain.token.layers[0].choices[2].expert", "= 25"),
    (2, ("router.group_limit=none",), "len(way.explain.token.layers[0].rows)", "= 3"),
    (3, ("router.gate_scale=1",), "alone.training.maxvio.expert.mean_last_20", "1.1 +- 0.2"),
    (3, ("balance.alpha_expert=0.1",), "alone.training.maxvio.expert.mean_last_20", "< 0.6"),
    (5, ("router.topk_group=1",), "limited.mean_devices_per_token", "= 1"),
    (6, ("capacity.capacity_factor=2",), "device.dropped", "= 0"),
    (6, ("capacity.capacity_factor=2",), "expert.dropped", "= 1460"),
    (7, ("router.bias_update_rate=0.1",), "bias.training.maxvio.expert.mean_last_20", "> 2.3"),
    (
        8,
        ("data.num_topics=24",),
        "coarse.training.task_loss.mean_last_20 / fine.training.task_loss.mean_last_20",
        "0.7 to 1.02",
    ),
    (
        10,
        ("cluster.devices=4", "cluster.devices_per_node=4"),
        "eight.balance.device.max_over_mean",
        "1.107 +- 0.001",
    ),
    (
        11,
        ("cluster.launch_us=0",),
        "few.time.predicted.step_us / few.time.balanced.step_us",
        "1.067 +- 0.01",
    ),
)


def lesson(number, *words):
    """How it ended, and the seconds that two idle cores need for it: whoever else uses them does
    not count.
    """
    changed = (
        [] if os.path.exists(LICENCES) else ["--set", "data.path=" + os.path.join(m.SOURCE, "src")]
    )
    line = [
        sys.executable,
        os.path.join(m.SOURCE, "scripts", "lesson"),
        *map(str, (number, *words, *changed)),
    ]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        line, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=ENVIRONMENT
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 2


def check_lesson(one):
    done, seconds = lesson(one.number)
    rows = re.findall(r"^(\S.*?)  +(.*)  (yes|NO)$", done.stdout, re.M)
    print(f"lesson {one.number}: {seconds:.1f} s", flush=True)
    for words, figures, good in rows:
        print(f"  {words}: {' | '.join(re.split(r'  +', figures.strip()))} {good}")
    m.check(
        done.returncode == 0 and len(rows) == len(one.expectations),
        f"lesson {one.number}: status {done.returncode}: {done.stderr}",
    )
    m.check(seconds < 60, f"lesson {one.number} takes {seconds:.0f} s")
    report = os.path.join(m.TEMPORARY, one.place, "report.html")
    if plotly.cached():
        m.check(
            os.path.exists(report) and f"{one.place}/report.html" in done.stdout,
            f"lesson {one.number} has no report: {done.stderr}",
        )


def check_answers(lessons):
    made = set()
    for number, settings, figure, bound in ANSWERS:
        out = os.path.join(m.TEMPORARY, f"{number}-{'-'.join(settings)}")
        if out not in made:
            done, _ = lesson(
                number,
                "--out",
                out,
                "-np",
                2,
                *[word for setting in settings for word in ("--set", setting)],
            )
            m.check(
                done.returncode == 0,
                f"lesson {number}, {settings}: status {done.returncode}: {done.stderr}",
            )
            made.add(out)
        if os.path.exists(os.path.join(out, lessons[number].runs()[-1], "summary.json")):
            value = measure.evaluate(
                figure,
                {name: measure.Run(os.path.join(out, name)) for name in lessons[number].runs()},
            )
            m.check(
                measure.holds(value, bound),
                f"lesson {number} with {settings}: {figure} is {value}, not {bound}",
            )


lessons = {number: page.read(path) for number, path in page.paths().items()}
for each in lessons.values():
    check_lesson(each)
check_answers(lessons)
m.verdict()
