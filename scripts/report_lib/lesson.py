"""The lesson that a report stands behind: what scripts/lesson wrote about it."""
from command_line import Refused
from run_lib import safe_files

MOST_BYTES = safe_files.MIB
TEXTS = ("title",)
LISTS = ("idea", "changed", "head", "rows", "questions", "answers")


def read(path):
    """The lesson as a dictionary, all of whose leaves are texts."""
    try:
        found = safe_files.parse(safe_files.read_text(path, MOST_BYTES, links=True))
        made = {name: str(found[name]) for name in ("number", *TEXTS)}
        for name in LISTS:
            made[name] = [
                [str(cell) for cell in entry] if isinstance(entry, list) else str(entry)
                for entry in found[name]
            ]
    except (OSError, safe_files.Unfit, ValueError, KeyError, TypeError) as error:
        raise Refused(f"'{path}' is not what scripts/lesson wrote: {error}") from None
    return made
