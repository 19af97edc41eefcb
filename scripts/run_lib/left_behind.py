"""For scripts/run after Ctrl-C: says what the run has left and how it goes on.

  left_behind.py SECONDS PLACE     PLACE is a run's folder, or a folder of runs, of which the newest
                                   that was begun since that time (of `date +%s`) is meant
"""
import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from run_lib import watch  # noqa: E402  (needs the path)


def begun_at(folder):
    try:
        return os.lstat(os.path.join(folder, "config.ini")).st_mtime
    except OSError:
        return 0


def newest(place, seconds):
    inside = [entry.path for entry in os.scandir(place) if entry.is_dir()]
    begun, folder = max((begun_at(path), path) for path in [place, *inside])
    return folder if begun >= seconds else None


def main():
    seconds, place = int(sys.argv[1]), sys.argv[2]
    folder = newest(place, seconds) if os.path.isdir(place) else None
    if folder:
        print(
            "interrupted: " + "\n".join(watch.left_behind(folder, "scripts/run")), file=sys.stderr
        )


main()
