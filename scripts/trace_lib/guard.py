"""Bounds on what is read: files come from outside, and a damaged or hostile one must end in one
sentence, soon, and without taking the machine's memory.

Every reader opens its files through an `Intake`. The intake counts the bytes that were opened and
allows time, memory and room for results in proportion to them."""

import json
import os
import resource
import signal
import stat
import time

# What the program itself allows (moesim --keys), or far more than any model has.
MOST_LAYERS = 4096
MOST_EXPERTS = 65536
MOST_EXPERTS_OF_ALL_LAYERS = 1 << 22
MOST_TOKENS = 1 << 27
MOST_STEPS = 1 << 62
MOST_FILES = 65536
MOST_LINE_BYTES = 1 << 28
LARGEST_NUMBER = 1e9  # of weights and logits; larger ones end in Inf and NaN
LARGEST_COUNT = (1 << 63) - 1

# A small file may become a table of this many places; a large one of so many for each byte.
FREE_PLACES = 1 << 18
PLACES_PER_BYTE = 4
FREE_MEMORY = 512 << 20
MEMORY_PER_BYTE = 64
FREE_SECONDS = 20
BYTES_PER_SECOND = 100_000


class Refused(Exception):
    """What cannot be read, as one sentence."""


def shown(text, most=300):
    """A text from outside as it may stand in a sentence: one line, printable, not too long."""
    text = str(text)
    if len(text) > most:
        text = text[: most // 2] + " ... " + text[-most // 2 :]
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def name_of(path):
    """A file's name without its folders, fit to be printed."""
    return shown(os.path.basename(os.path.normpath(path)))


def is_whole(value, least, most):
    """Whether a value is a whole number in a range; True and False are no numbers."""
    return type(value) is int and least <= value <= most


def whole(value, least, most, where, name):
    """The value, or a sentence that says what is allowed at this place."""
    if not is_whole(value, least, most):
        raise Refused(
            f"{where}: {name} is {shown(value, 60)}; allowed are whole numbers from {least} to"
            f" {most}"
        )
    return value


def range_of(numbers):
    """A set of numbers for a note: 0 to 3, or 0, 2, 5 ..."""
    numbers = sorted(numbers)
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return few(numbers)


def names_of(names):
    """Names of layers for a sentence: 0 to 3, or some names."""
    numbers = all(name.isdigit() for name in names)
    return range_of(map(int, names)) if numbers else few(names, 32)


def few(things, most=8):
    """The first of some things, and how many more there are."""
    things = [shown(thing, 60) for thing in things]
    more = f" and {len(things) - most} more" if len(things) > most else ""
    return ", ".join(things[:most]) + more


def number_of_json(text):
    """A constant that JSON does not have, though Python's reader takes it."""
    raise ValueError(f"{text} is no number of JSON")


def parse_json(text, where):
    """The value of a JSON text; what is wrong with it as a sentence."""
    try:
        return json.loads(text, parse_constant=number_of_json)
    except RecursionError:
        raise Refused(
            f"{where}: its brackets are nested too deeply; the deepest list that is read has four"
            " levels"
        ) from None
    except ValueError as error:
        raise NoJson(f"{where} is no JSON: {shown(error, 80)}") from None


class NoJson(Refused):
    """A text that is no JSON: some readers go on in another way."""


class Intake:
    """The files that one import reads, and what it may use for them."""

    def __init__(self, guarded=False):
        self.bytes = 0
        self.guarded = guarded  # whether memory and time of the process are limited

    def open(self, path):
        """Opens a regular file; a FIFO, a device or a folder gets a sentence and never blocks."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except ValueError:
            raise Refused(f"{shown(path)} is no name of a file") from None
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            os.close(descriptor)
            raise Refused(
                f"{shown(path)} is no regular file; expected is a file that can be read twice"
            )
        self.bytes += about.st_size
        self.limit()
        return open(descriptor, "rb")

    def limit(self):
        """Raises the process's limits to what the bytes so far deserve."""
        if not self.guarded:
            return
        memory = FREE_MEMORY + MEMORY_PER_BYTE * self.bytes
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        if hard != resource.RLIM_INFINITY:
            memory = min(memory, hard)
        resource.setrlimit(resource.RLIMIT_AS, (memory, hard))
        seconds = FREE_SECONDS + self.bytes / BYTES_PER_SECOND
        left = max(0.01, seconds - time.process_time())
        signal.signal(signal.SIGPROF, lambda *_: self.too_slow(seconds))
        signal.setitimer(signal.ITIMER_PROF, left)

    @staticmethod
    def too_slow(seconds):
        raise Refused(
            f"reading took longer than {seconds:.0f} s of the processor, which is more than files"
            " of this size need"
        )

    @staticmethod
    def there(content, path):
        """What was read; a file of the system may have nothing to read yet, and is not waited for."""
        if content is None:
            raise Refused(f"{shown(path)} has nothing to read; expected is a file on a disk")
        return content

    def read(self, path, magic=b""):
        """All bytes of a file; of one that does not begin with `magic` only so many."""
        with self.open(path) as file:
            head = self.there(file.read(len(magic)), path)
            return head + self.there(file.read(), path) if head == magic else head

    def text(self, path):
        """A whole text in UTF-8; a byte-order mark at its beginning is left out."""
        return self.decoded(self.read(path), path, 0)

    def lines(self, path):
        """(number, text) of each line, read one at a time; the end of line is kept."""
        with self.open(path) as file:
            number = 0
            while True:
                line = self.there(file.readline(MOST_LINE_BYTES), path)
                if not line:
                    return
                number += 1
                if len(line) == MOST_LINE_BYTES:
                    raise Refused(
                        f"{shown(path)}:{number}: the line is longer than"
                        f" {MOST_LINE_BYTES >> 20} MiB"
                    )
                yield number, self.decoded(line, path, number)

    @staticmethod
    def decoded(content, path, line):
        """The text of a file's bytes, or of one of its lines."""
        first = line <= 1
        try:
            if first and content.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise Refused("the text is in UTF-16; expected is UTF-8")
            return content.decode("utf-8-sig" if first else "utf-8")
        except UnicodeDecodeError as error:
            wrong = f"byte {error.start} is no UTF-8; expected is a text in UTF-8"
        except Refused as error:
            wrong = str(error)
        where = f"{shown(path)}:{line}" if line else shown(path)
        raise Refused(f"{where}: {wrong}")

    def room(self, places, where):
        """Refuses a table that is far larger than the files it is made of."""
        most = FREE_PLACES + PLACES_PER_BYTE * self.bytes
        if places > most:
            raise Refused(
                f"{where} asks for a table of {places} places, but {self.bytes} bytes were read: at"
                f" most {most} places are made of them"
            )
