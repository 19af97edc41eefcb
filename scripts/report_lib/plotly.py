"""The charts' library: plotly.js-cartesian-dist-min of npm, one pinned version, kept as npm's own
archive in a cache folder. The archive's sha512 is compared with the pin each time it is read, so
that neither the network nor the cache is trusted. Nothing of it is in the repository.
"""
import base64
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from run_lib.safe_files import MIB, read_text

PACKAGE = "plotly.js-cartesian-dist-min"
VERSION = "4.1.1"
INTEGRITY = "sha512-o8GrFeusncwBIxbBynRJpY4pkgVB6caM+JLpwrLYbbsO7dZ8FJ+SVN2Fr+L7kiG/Z6w4P5O0Jus/Qr5EefHVeg=="
ARCHIVE = f"{PACKAGE}-{VERSION}.tgz"
MEMBER = "package/plotly-cartesian.min.js"
SECONDS = 60


class Missing(Exception):
    """The library is not there; the sentence says how to get it."""


def cache_folder():
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moesim"


def is_whole(content):
    return "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode() == INTEGRITY


def cached():
    """The archive's bytes, or None."""
    try:
        content = (cache_folder() / ARCHIVE).read_bytes()
    except OSError:
        return None
    return content if is_whole(content) else None


def with_npm(folder):
    """npm knows the user's registry and proxies."""
    line = [
        "npm",
        "pack",
        f"{PACKAGE}@{VERSION}",
        "--pack-destination",
        str(folder),
        "--silent",
        "--ignore-scripts",
    ]
    done = subprocess.run(
        line,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise Missing(f"npm pack failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    return (folder / ARCHIVE).read_bytes()


def without_npm():
    registry = os.environ.get("npm_config_registry") or "https://registry.npmjs.org/"
    with urllib.request.urlopen(
        f"{registry.rstrip('/')}/{PACKAGE}/-/{ARCHIVE}", timeout=SECONDS
    ) as answer:
        return answer.read()


def fetch():
    """Gets the archive into the cache, if it is not there yet. Raises Missing."""
    if cached():
        return
    folder = cache_folder()
    print(
        f"fetching {PACKAGE} {VERSION} into {folder}, once; pages that hold it need no network",
        file=sys.stderr,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            content = with_npm(Path(scratch)) if shutil.which("npm") else without_npm()
            if not is_whole(content):
                raise Missing(
                    f"{PACKAGE} {VERSION} arrived damaged: its sha512 is not the one that is pinned"
                )
            beside = Path(scratch) / "checked"
            beside.write_bytes(content)
            beside.replace(folder / ARCHIVE)
    except (OSError, urllib.error.URLError, subprocess.TimeoutExpired) as error:
        raise Missing(f"{PACKAGE} {VERSION} could not be fetched: {error}") from error


def source(path=None):
    """The library's text: of the file `path`, else of the cache, which is filled if need be."""
    if path:
        return read_text(path, 64 * MIB, links=True)
    fetch()
    with tarfile.open(fileobj=io.BytesIO(cached()), mode="r:gz") as archive:
        return archive.extractfile(MEMBER).read().decode("utf-8")
