"""Takes values out of records, which are objects of a JSON file that fields.py has checked.
A value that is not there, or is no number where one is expected, is None, 0 or empty.
"""


def whole(value):
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def number(value):
    """A number, else None."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def numbers(value):
    """A list of numbers, else an empty list."""
    return (
        value if isinstance(value, list) and all(number(item) is not None for item in value) else []
    )


def items(record, path):
    """The object at a path, as a dictionary; empty where there is none."""
    value = at(record, path)
    return value if isinstance(value, dict) else {}


def objects(record, path):
    """The objects of the list at a path."""
    value = at(record, path)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def amount(record, path):
    """The number at a path, 0 where there is none."""
    return number(at(record, path)) or 0


def at(record, path, default=None):
    """record["a"]["b"] for the path "a.b"; default where any of it is missing or null."""
    for key in path.split("."):
        record = record.get(key) if isinstance(record, dict) else None
    return default if record is None else record
