"""scripts/report: one run's page, or the comparison of several. Exit status: 0 written; 2 the
user's mistake, one sentence; 1 anything else.
"""
import os
import stat
import sys
from pathlib import Path

import lesson
import page
import plotly
from command_line import Parser, Refused, say
from folder import FILES, Folder
from run_lib.safe_files import Unfit, is_there, write_whole

DESCRIPTION = """\
Writes one self-contained page that opens in any browser, offline. One RUN: the
page about it, RUN/report.html. Several: a comparison, comparison.html in the
current folder, with differences to the first.
"""


def parser():
    made = Parser("report", description=DESCRIPTION, usage="scripts/report RUN [RUN...] [-o FILE]")
    made.add_argument("runs", nargs="*", metavar="RUN", help="folder that moesim wrote (--out)")
    made.add_argument("-o", metavar="FILE", dest="file", help="where the page goes")
    made.add_argument(
        "--plotly",
        metavar="FILE",
        help="a plotly.js to build in, instead of the pinned one in the cache",
    )
    made.add_argument(
        "--lesson",
        metavar="FILE",
        help="for scripts/lesson: a lesson, to stand in front of its figures",
    )
    made.add_argument(
        "--setup",
        action="store_true",
        help="only fetch what the page builds in, once, into the cache folder",
    )
    made.add_argument(
        "--after-run",
        metavar="SECONDS",
        type=float,
        help=(
            "for scripts/run: report on what was written since that time (of `date +%%s`), RUN"
            " being a run or a folder of runs; fetches nothing, and exits 0 with a hint where"
            " something is missing"
        ),
    )
    return made


def written_at(run):
    """When the steps of a run were written last; 0 where it has none."""
    try:
        found = os.lstat(run / "metrics.jsonl")
    except OSError:
        return 0
    return found.st_mtime if stat.S_ISREG(found.st_mode) else 0


def newest_since(place, seconds):
    """The run in `place`, or the newest of the runs in it, that was written since then; None when
    there is none.
    """
    place = Path(place)
    if any(is_there(place / name) for name in FILES):
        runs = [place]
    else:
        runs = [path for path in place.glob("*") if path.is_dir()]
    written = [(written_at(run), run) for run in runs]
    newest = max(written, default=(0, None))
    return newest[1] if newest[0] and newest[0] >= seconds else None


def write(path, text):
    """Whole or not at all."""
    try:
        write_whole(path, text)
    except Unfit as error:
        raise Refused(f"'{path}' {error}: remove it, or give another -o FILE") from error
    except OSError as error:
        raise Refused(f"'{path}' cannot be written: {error.strerror}") from error


def report(options):
    if not options.runs:
        raise Refused(
            "which run? scripts/report RUN [RUN...] [-o FILE], RUN being the folder that moesim"
            " wrote"
        )
    folders = [Folder(run) for run in options.runs]
    for other in folders[1:]:
        if any(
            other.path.resolve() == earlier.path.resolve()
            for earlier in folders[: folders.index(other)]
        ):
            raise Refused(f"'{other.path}' was given twice")
    try:
        library = plotly.source(options.plotly)
    except (FileNotFoundError, Unfit) as error:
        why = "there is no such file" if isinstance(error, FileNotFoundError) else error
        raise Refused(f"'{options.plotly}' cannot be read: {why}") from error
    target = options.file or (
        "comparison.html" if len(folders) > 1 else str(folders[0].path / "report.html")
    )
    write(target, page.build(folders, library, options.lesson and lesson.read(options.lesson)))
    print(target)


def after_run(options):
    """The end of a run is never spoilt by its report."""
    run = newest_since(options.runs[0] if options.runs else "runs", options.after_run)
    if run is None:
        return
    if not options.plotly and not plotly.cached():
        print(
            f"no report.html: the charts' library is not there yet; scripts/report {run} fetches it"
            " once and writes the page"
        )
        return
    options.runs = [str(run)]
    try:
        report(options)
    except (Refused, plotly.Missing) as error:
        print(f"no report.html: {error}")


def main(words):
    # names of folders need not be UTF-8
    sys.stdout.reconfigure(errors="surrogateescape")
    try:
        options = parser().parse(words)
        if options.setup:
            plotly.fetch()
        elif options.after_run is not None:
            after_run(options)
        else:
            report(options)
    except Refused as error:
        return say("report", error)
    except plotly.Missing as error:
        print(
            (
                f"scripts/report: {error}. Try again with a network, or give a copy of"
                f" {plotly.MEMBER.split('/')[1]}: --plotly FILE"
            ),
            file=sys.stderr,
        )
        return 1
    return 0
