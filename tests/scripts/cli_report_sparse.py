"""scripts/report shows comm_matrix_sparse.npz as it shows comm_matrix.npy, and says what is damaged
in it. The archive is written here by Python's zipfile.
"""
import os
import zipfile

from _moesim import TEMPORARY, check, load, verdict
from _report import Page, made_run, report
from _sparse_file import NAME, csr, write

LIBRARY = os.path.join(TEMPORARY, "stand-in.js")
with open(LIBRARY, "w") as file:
    file.write("var Plotly = {react() {}};\n")


def page_of(label, folder):
    done = report(folder, "--plotly", LIBRARY)
    target = done.stdout.strip()
    good = check(
        done.returncode == 0 and done.stderr == "" and os.path.isfile(target),
        f"{label}: status {done.returncode}: {done.stdout}{done.stderr}",
    )
    return Page(target) if good else None


def sparse_run(name):
    """A made run whose matrix is sparse, and the arrays of it."""
    folder = made_run(name)
    arrays = csr(load(os.path.join(folder, "comm_matrix.npy")))
    os.remove(os.path.join(folder, "comm_matrix.npy"))
    return folder, arrays


def check_same():
    plain = page_of("plain", made_run("plain"))
    folder, arrays = sparse_run("sparse")
    write(folder, arrays)
    page = page_of("sparse", folder)
    if plain and page:
        check(page.runs[0]["matrix"] == plain.runs[0]["matrix"], "another matrix")
        check(not page.banners, f"sparse: {page.banners}")


def spoiled(arrays, **changes):
    return {**arrays, **changes}


def cut(folder):
    with open(os.path.join(folder, NAME), "r+b") as file:
        file.truncate(300)


DAMAGE = {
    "other devices": lambda a: spoiled(a, indices=[99] + a["indices"][1:]),
    "negative count": lambda a: spoiled(a, data=[-1] + a["data"][1:]),
    "short data": lambda a: spoiled(a, data=a["data"][1:]),
    "falling rows": lambda a: spoiled(a, indptr=[0, 5, 1] + a["indptr"][3:]),
    "no shape": lambda a: {name: a[name] for name in ("data", "indices", "indptr")},
    "shape of zeros": lambda a: spoiled(a, shape=[0, 0]),
    "long indptr": lambda a: spoiled(a, indptr=a["indptr"] + [a["indptr"][-1]]),
}


def check_damage():
    for label, spoil in DAMAGE.items():
        folder, arrays = sparse_run(label)
        write(folder, spoil(arrays))
        page = page_of(label, folder)
        banner = " ".join(page.banners) if page else ""
        check(f"{NAME} is damaged" in banner or f"{NAME} holds" in banner, f"{label}: '{banner}'")
    for label, spoil in (
        ("cut", lambda folder, a: (write(folder, a), cut(folder))),
        ("compressed", lambda folder, a: write(folder, a, zipfile.ZIP_DEFLATED)),
    ):
        folder, arrays = sparse_run(label)
        spoil(folder, arrays)
        page = page_of(label, folder)
        check(page and f"{NAME} is damaged" in " ".join(page.banners), label)


def check_another():
    folder, arrays = sparse_run("another run's")
    arrays["data"][0] += 1
    write(folder, arrays)
    page = page_of("another run's", folder)
    check(page and "disagree about the rows sent" in " ".join(page.banners), "not noticed")


check_same()
check_damage()
check_another()
verdict()
