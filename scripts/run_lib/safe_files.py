"""Reads and writes the files of a run's folder, which may be damaged, or made by somebody who means
harm.

What is read has to be a regular file of limited size; a link is not followed, because whoever can
write into the folder could point it at a file of somebody else. What is written appears whole or
not at all, and never in place of a link or a device.
"""
import errno
import json
import os
import re
import secrets
import stat

MIB = 1 << 20
# A number of a thousand digits has no meaning here, and turning it into an integer takes long.
ENDLESS_NUMBER = re.compile(r"(?<!\d)\d{1000}")


class Unfit(Exception):
    """Why a file was not read or written, as the rest of a sentence that begins with its name."""


def open_regular(path, links=False):
    """A descriptor of a regular file. Raises Unfit, and FileNotFoundError where there is none.

    Nothing blocks: a pipe is opened without waiting for its other end, and then refused. `links`
    says whether the last part of the path may be a link, as it may in a path that the user typed.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags if links else flags | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        if not links and getattr(error, "errno", None) == errno.ELOOP:
            raise Unfit("is a link, which is not followed") from None
        raise Unfit(f"could not be read: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Unfit("is not a regular file")
    return descriptor


def is_there(path):
    """Whether something stands at the path, of whatever kind: what it is, reading it finds out."""
    return os.path.lexists(path)


def read_bytes(path, most, links=False):
    """The content of a file of at most `most` bytes."""
    with open(open_regular(path, links), "rb") as file:
        try:
            content = file.read(most + 1)
        except OSError as error:
            raise Unfit(f"could not be read: {error.strerror}") from None
    if len(content) > most:
        raise Unfit(f"has more than {most // MIB} MiB, the most that is read of it")
    return content


def read_last_lines(path, most):
    """The whole lines among the last `most` bytes of a text file, without their ends."""
    with open(open_regular(path), "rb") as file:
        try:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - most))
            lines = file.read(most).decode("utf-8", "replace").split("\n")
        except OSError as error:
            raise Unfit(f"could not be read: {error.strerror}") from None
    return [line for line in (lines[1:] if size > most else lines) if line]


def read_text(path, most, links=False):
    """The same as text; bytes that are not UTF-8 become the sign for that."""
    return read_bytes(path, most, links).decode("utf-8", "replace")


def parse(text):
    """The value of a JSON text. Raises ValueError, for numbers without end and deep nesting too."""
    if ENDLESS_NUMBER.search(text):
        raise ValueError("a number has more than 1000 digits")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its parts are nested too deeply") from None


def read_json(path, most):
    """The value in a JSON file. Raises Unfit, and FileNotFoundError where there is none."""
    try:
        return parse(read_text(path, most))
    except ValueError as error:
        raise Unfit(f"is damaged ({error})") from None


def write_whole(path, text):
    """Writes a text file whole or not at all. Raises Unfit or OSError.

    The text goes to a new file of a name that nobody can know, which then takes the old place.
    Where a link or a device stands at the path, nothing is written.
    """
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise Unfit("is a link or not a regular file, which is not replaced")
    except FileNotFoundError:
        pass
    beside = os.path.join(os.path.dirname(path), f".moesim-{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(beside, flags, 0o666)
    try:
        with open(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise
