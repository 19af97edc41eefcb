"""Reads a lesson: the comments of configs/lessons/NN_name.ini are a page for people, and these
parts of it are read here too.

  ; Lesson 5: title                the first line
  ; RUN ...                        its lines that begin with mpirun or scripts/ are run as they stand
  ;   test size: --set key=value   added to every mpirun by --test
  ; LOOK AT ... "Section"          sections of moesim's output in quotes: they are shown
  ; EXPECT
  ;   words | bound [| bound]      at full size, and at test size where it is another
  ;       figure                   what is bound, an expression (measure.py), in one or more lines
  ; QUESTIONS, ; ANSWERS           for people

A block begins with its name in capitals and ends where the next one begins, or with the comment. A
line that ends in \\ goes on below.
"""
import glob
import os
import re
import shlex
from dataclasses import dataclass, field

FOLDER = os.path.join(
    os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))),
    "configs",
    "lessons",
)
BLOCK = re.compile(r"(RUN|LOOK AT|EXPECT|QUESTIONS|ANSWERS)\b(.*)")


@dataclass
class Expectation:
    """One row of EXPECT: words, the expression of a figure, and its bound at either size."""

    words: str
    figure: str
    full: str
    small: str


@dataclass
class Lesson:
    number: int
    title: str
    path: str
    blocks: dict  # name -> lines, without the comment sign
    commands: list = field(default_factory=list)  # lists of words
    small: list = field(default_factory=list)  # words that make the test size
    sections: list = field(default_factory=list)
    expectations: list = field(default_factory=list)

    @property
    def place(self):
        """Where its commands write: runs/lesson-05."""
        return f"runs/lesson-{self.number:02}"

    def idea(self):
        """What the lesson is about, in parts (flow)."""
        return flow(self.blocks[""][1:])

    def numbered(self, name):
        """The items 1., 2., ... of QUESTIONS or ANSWERS, each as one text."""
        text = "\n".join(self.blocks[name])
        return [
            " ".join(item.split())
            for item in re.split(r"^ *[0-9]\. ", text, flags=re.MULTILINE)[1:]
        ]

    def runs(self):
        """Names of its runs, the last part of their --out."""
        return [
            os.path.basename(words[words.index("--out") + 1])
            for words in self.commands
            if words[0] == "mpirun"
        ]

    def reported(self):
        """Those of them that the report can show: --placements compares, and has no steps."""
        compared = {
            os.path.basename(words[words.index("--out") + 1])
            for words in self.commands
            if "--placements" in words
        }
        return [name for name in self.runs() if name not in compared]


def flow(lines):
    """Lines of a page as parts (kind, text): "p" a paragraph, "li" an item of a list, "pre" what has
    to stay as it is set, such as a formula.
    """
    parts, fresh = [], True
    for line in lines:
        depth, text = len(line) - len(line.lstrip()), line.strip()
        if not text:
            fresh = True
        elif text.startswith("- "):
            parts.append(["li", text[2:]])
            fresh = False
        elif parts and not fresh and parts[-1][0] != "pre" and depth < 5:
            parts[-1][1] += " " + text
        elif depth >= 4 and parts and not fresh and parts[-1][0] == "pre":
            parts[-1][1] += "\n" + line
        else:
            parts.append(["pre", line] if depth >= 4 else ["p", text])
            fresh = False
    return [tuple(part) for part in parts]


def blocks_of(text):
    """{name: lines} of the comments; lines before the first block are under ""."""
    found, name = {"": []}, ""
    for line in text.splitlines():
        if not line.startswith(";"):
            name = None  # the configuration itself: its comments are no part of a block
            continue
        comment = line[1:].removeprefix(" ")
        head = BLOCK.match(comment)
        if head:
            name, comment = head[1], head[2].strip()
        if name is not None:
            found.setdefault(name, []).append(comment)
    return {name: "\n".join(lines).rstrip().split("\n") for name, lines in found.items()}


def whole_lines(lines):
    """A \\ at the end: the line goes on below."""
    return re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()


def commands_of(lines):
    """(commands, words of the test size)."""
    commands, small = [], []
    for line in whole_lines(lines):
        line = line.strip()
        if (
            line.startswith("mpirun ")
            or line.startswith("scripts/")
            and not line.startswith("scripts/lesson")
        ):
            commands.append(shlex.split(line))
        elif line.startswith("test size:"):
            small = shlex.split(line.removeprefix("test size:"))
    return commands, small


def expectations_of(lines):
    """Rows of the table behind its head: a line with bars, and indented under it the figure."""
    found = []
    for line in lines[1:]:
        if line.startswith("  ") and "|" in line:
            words, full, *small = [cell.strip() for cell in line.split("|")]
            found.append(Expectation(words, "", full, small[0] if small else full))
        elif line.startswith("      ") and found:
            found[-1].figure += line.strip() + " "
    return found


def read(path):
    with open(path, encoding="utf-8") as file:
        text = file.read()
    title = re.match(r"; Lesson (\d+): (.+)", text)
    blocks = blocks_of(text)
    lesson = Lesson(int(title[1]), title[2].strip(), path, blocks)
    lesson.commands, lesson.small = commands_of(blocks["RUN"])
    lesson.sections = re.findall(r'"([^"]+)"', " ".join(blocks["LOOK AT"]))
    lesson.expectations = expectations_of(blocks["EXPECT"])
    return lesson


def paths():
    """{number: path} of all lessons."""
    return {
        int(os.path.basename(path)[:2]): path
        for path in sorted(glob.glob(os.path.join(FOLDER, "[0-9][0-9]_*.ini")))
    }
