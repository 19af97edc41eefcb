"""scripts/export-traffic: from the command line to the files. Exit status: 0 done; 2 the user's
mistake, one sentence; 1 otherwise.
"""
import os
import sys

from command_line import Parser, Refused, say
from export_lib.formats import FORMATS
from export_lib.traffic import Traffic

NAME = "export-traffic"
HELP = """\
Writes what each device sends to each other device in each phase of the last
step of a run, in bytes of payload, for other simulators:

  csv      traffic.csv: layer, phase, source, destination, bytes
  smpi     time-independent traces of SimGrid: traces.txt names one file for
           each device; smpirun -replay traces.txt
  chakra   execution traces of MLCommons Chakra: traffic.N.et for device N

Phases come in the order in which they run: dispatch and combine of each layer,
in training then the exchanges of dy and dx, from the last layer to the first.
Rows that stay on their device are left out.
"""


def _options(words):
    parser = Parser(NAME, description=HELP)
    parser.add_argument("run", metavar="RUN", help="folder of a finished run")
    parser.add_argument("--format", metavar="FORMAT", help="csv, smpi or chakra")
    parser.add_argument(
        "-o", "--out", metavar="DIR", help="where files go (default RUN/traffic-FORMAT)"
    )
    options = parser.parse(words)
    if options.format not in FORMATS:
        raise Refused(f"--format {options.format or 'is missing'}: allowed is {', '.join(FORMATS)}")
    return options


def _open(folder):
    """A folder that is new or empty: files of another run would be taken for those of this one."""
    try:
        os.makedirs(folder, exist_ok=True)
        if os.listdir(folder):
            raise Refused(f"{folder} is not empty: give another folder with --out")
    except OSError as error:
        raise Refused(f"{folder} cannot be made: {error.strerror}") from None


def _export(options):
    traffic = Traffic(options.run)
    folder = options.out or os.path.join(options.run, f"traffic-{options.format}")
    _open(folder)
    names = FORMATS[options.format](traffic, folder)
    print(
        f"{folder}: {len(names)} file{'s' if len(names) > 1 else ''}, {len(traffic.phases)} phases,"
        f" {traffic.count_of_messages()} messages of {traffic.devices} devices, {traffic.total}"
        " bytes"
    )


def main(words):
    try:
        _export(_options(words))
    except Refused as error:
        return say(NAME, error)
    return 0
