"""ctest: timeout=90
cmake --install into a folder of its own: the programs run from there, the tools find them, the man
page has no warnings, the completion offers keys and values. The build folder that is installed is
MOESIM_BUILD_DIR.
"""
import os
import re
import shutil
import subprocess

import _moesim as m

BUILD = os.environ.get("MOESIM_BUILD_DIR") or os.path.dirname(m.MOESIM)
PREFIX = os.path.join(m.TEMPORARY, "a prefix")
BIN, SHARE = os.path.join(PREFIX, "bin"), os.path.join(PREFIX, "share")
MAN, COMPLETION = os.path.join(SHARE, "man", "man1", "moesim.1"), os.path.join(
    SHARE, "bash-completion", "completions", "moesim"
)
PATH = BIN + os.pathsep + os.environ["PATH"]
SINGLETON = {"OMPI_MCA_ess_singleton_isolated": "1"}


def ask(*words, **more):
    return subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=m.environment(PATH=PATH, **SINGLETON, **more),
    )


def test_files():
    """What README says is there, and nothing that only builds or tests."""
    scripts = os.path.join(SHARE, "moesim", "scripts")
    for path in (
        os.path.join(BIN, "moesim"),
        os.path.join(BIN, "moesim-f64"),
        os.path.join(BIN, "moesim-sweep"),
        os.path.join(BIN, "moesim-import-trace"),
        os.path.join(BIN, "moesim-lesson"),
        os.path.join(SHARE, "moesim", "configs", "lessons", "10_trace.csv"),
        os.path.join(SHARE, "moesim", "configs", "quickstart.ini"),
        os.path.join(scripts, "env"),
        os.path.join(scripts, "openmpi.conf"),
    ):
        m.check(os.path.exists(path), path, "is not installed")
    for name in ("test", "setup", "build-if-needed"):
        m.check(not os.path.exists(os.path.join(scripts, name)), name, "is installed")
    m.check(
        ask("moesim", "--version").stdout.startswith("moesim "),
        "the installed moesim does not say its version",
    )
    done = subprocess.run(
        [
            *m.MPIRUN,
            "2",
            os.path.join(BIN, "moesim"),
            "--quiet",
            "--out",
            "installed",
            "--set",
            "router.topk_group=2",
            "--set",
            "data.tokens_per_device=32",
            os.path.join(SHARE, "moesim", "configs", "quickstart.ini"),
        ],
        capture_output=True,
        text=True,
        env=m.environment(PATH=PATH),
    )
    m.check(
        done.returncode == 0 and os.path.exists("installed/summary.json"),
        done.returncode,
        done.stderr,
    )


def test_tools():
    """The tools find the moesim beside them, whatever MOESIM says nothing about."""
    environment = {
        name: value
        for name, value in m.environment(PATH=PATH).items()
        if name not in ("MOESIM", "MPIRUN")
    }
    line = [
        "moesim-sweep",
        os.path.join(SHARE, "moesim", "configs", "quickstart.ini"),
        "--vary",
        "router.topk_group=1,2",
        "-np",
        "2",
        "--out",
        "swept",
        "--set",
        "data.tokens_per_device=32",
        "--set",
        "run.steps=1",
    ]
    done = subprocess.run(
        ["timeout", "-k", "5", "60", *line],
        capture_output=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    m.check(
        done.returncode == 0 and os.path.exists("swept/sweep.csv"),
        "moesim-sweep:",
        done.returncode,
        done.stderr,
    )
    done = subprocess.run(
        ["timeout", "-k", "5", "60", "moesim-lesson", "4", "--test"],
        capture_output=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    m.check(
        done.returncode == 0 and os.path.exists("runs/lesson-04-test/tokens/summary.json"),
        "moesim-lesson:",
        done.returncode,
        done.stderr,
    )
    with open("choices.csv", "w") as file:
        file.write("token,expert\n0,1\n1,0\n")
    done = ask("moesim-import-trace", "choices.csv", "--out", "imported")
    m.check(
        done.returncode == 0 and os.path.exists("imported/routing.ini"),
        "moesim-import-trace:",
        done.stderr,
    )


def commands():
    return sorted(name for name in os.listdir(BIN) if name != "moesim")


def test_run():
    """moesim-run runs the installed program, also without a word, as the man page's first command
    does; nothing is built.
    """
    environment = {
        name: value
        for name, value in m.environment(PATH=PATH).items()
        if name not in ("MOESIM", "MPIRUN")
    }
    with open(MAN) as file:
        example = re.search(r"\.Sh EXAMPLES\n(?:[^.].*\n)*\.Dl (.*)\n", file.read())[1]
    m.check(example == r"moesim\-run", "the first command of the man page is", example)
    for words in (("moesim-run",), ("moesim-run", "-np", "2", "--set", "cluster.devices=8")):
        done = subprocess.run(
            ["timeout", "-k", "5", "60", *words],
            cwd=os.path.join(m.TEMPORARY, "empty"),
            capture_output=True,
            text=True,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
        m.check(
            done.returncode == 0 and f"{PREFIX}/bin/moesim" in done.stdout.replace("\\", ""),
            words,
            done.returncode,
            done.stdout[-600:],
            done.stderr,
        )


def test_pages_of_commands():
    """Each command has a man page that groff takes without a word, and a completion."""
    m.check("moesim-run" in commands() and len(commands()) > 10, "the commands are", commands())
    for name in commands():
        page = os.path.join(os.path.dirname(MAN), name + ".1")
        if not m.check(os.path.exists(page), name, "has no man page"):
            continue
        if shutil.which("man"):
            done = ask(
                "man",
                "--warnings",
                "-E",
                "UTF-8",
                "-l",
                "-Tutf8",
                "-Z",
                page,
                LC_ALL="C.UTF-8",
                MANROFFSEQ="",
            )
            m.check(done.returncode == 0 and not done.stderr, name, done.stderr)
        loaded = os.path.join(os.path.dirname(COMPLETION), name)
        done = ask("bash", "-c", '. "$1" && complete -p "$2"', "bash", loaded, name)
        m.check(done.returncode == 0 and "_moesim" in done.stdout, name, "completes nothing")
    for line, option in (
        ("moesim-report --pl", "--plotly"),
        ("moesim-lesson --te", "--test"),
        ("scripts/advise --cl", "--cluster"),
        ("moesim-run --exp", "--explain"),
    ):
        m.check(option in completed(line), line, completed(line))
    m.check("--out" not in completed("moesim-report --o"), "moesim-report has no --out")


def test_package():
    """cpack writes into the build folder, from wherever it is called."""
    with open(os.path.join(BUILD, "CPackConfig.cmake")) as file:
        place = re.search(r'CPACK_PACKAGE_DIRECTORY "(.*)"', file.read())
    m.check(
        place and os.path.realpath(place[1]).startswith(os.path.realpath(BUILD) + os.sep),
        "packages go to",
        place and place[1],
    )


def keys():
    return re.findall(r"^  ([a-z_]+\.[a-z_0-9]+) =", ask("moesim", "--keys").stdout, re.M)


def test_man_page():
    """Every key stands in it; neither groff nor mandoc, where they are, has a word to say against
    it.
    """
    with open(MAN) as file:
        text = file.read()
    known = keys()
    m.check(len(known) > 50, "moesim --keys lists", len(known), "keys")
    for key in known:
        m.check(f".It Ic {key.split('.')[1]}\n" in text, key, "is not in the man page")
    if shutil.which("man"):
        done = ask(
            "man",
            "--warnings",
            "-E",
            "UTF-8",
            "-l",
            "-Tutf8",
            "-Z",
            MAN,
            LC_ALL="C.UTF-8",
            MANROFFSEQ="",
        )
        m.check(done.returncode == 0 and not done.stderr, "man:", done.stderr)
    if shutil.which("mandoc"):
        done = ask("mandoc", "-Tlint", "-Wwarning", MAN)
        m.check(done.returncode == 0, "mandoc:", done.stdout)
    m.check(os.path.exists(MAN.replace("moesim.1", "moesim-f64.1")), "moesim-f64 has no man page")


def completed(line):
    """What bash offers at the end of the line, words broken as bash breaks them."""
    program = r"""
        . "$1"
        compopt() { :; }
        COMP_LINE=$2
        COMP_POINT=${#2}
        read -ra COMP_WORDS <<< "${2//=/ = }"
        [[ $2 == *' ' ]] && COMP_WORDS+=("")
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        function=$(complete -p "${COMP_WORDS[0]}")
        function=${function#*-F }
        ${function%% *}
        echo "${COMPREPLY[*]}"
    """
    done = ask("bash", "-c", program, "bash", COMPLETION, line)
    m.check(not done.stderr, "bash:", done.stderr)
    return done.stdout.split()


def test_completion():
    """Options, sections.keys, the values of enumerations, presets; behind mpirun too."""
    m.check(ask("bash", "-n", COMPLETION).returncode == 0, "the completion is no bash")
    m.check(
        {"--set", "--out", "--check", "--keys"} <= set(completed("moesim --")),
        completed("moesim --"),
    )
    m.check(
        "--vary" in completed("scripts/sweep --") and "--vary" not in completed("moesim --"),
        "--vary is for sweeps only",
    )
    m.check(
        completed("moesim --set router.topk_") == ["router.topk_group="],
        completed("moesim --set router.topk_"),
    )
    m.check(len(completed("moesim --set ")) == len(keys()), "not every key is offered")
    m.check(
        completed("moesim --set router.score_func=softmax_") == ["softmax_topk"],
        completed("moesim --set router.score_func=softmax_"),
    )
    m.check(
        completed("moesim --set=model.norm=") == ["none", "rmsnorm"],
        completed("moesim --set=model.norm="),
    )
    m.check(
        "deepseek_v3" in completed("moesim --set router.preset=deep"),
        completed("moesim --set router.preset=deep"),
    )
    m.check(
        completed("mpirun -np 8 moesim --set router.residual=") == [], "an unknown key has values"
    )
    m.check(
        completed("mpirun -np 8 moesim --set model.residual=") == ["yes", "no"],
        "behind mpirun nothing is offered",
    )


def main():
    if not os.path.exists(os.path.join(BUILD, "docs", "moesim.1")):
        print("this build makes no man page (instrumented): nothing to install from it")
        m.check(True)
        return
    done = subprocess.run(
        ["cmake", "--install", BUILD, "--prefix", PREFIX], capture_output=True, text=True
    )
    if not m.check(done.returncode == 0, "cmake --install:", done.stderr):
        return
    os.makedirs("empty")
    for test in (
        test_files,
        test_run,
        test_tools,
        test_man_page,
        test_pages_of_commands,
        test_completion,
        test_package,
    ):
        test()


main()
m.verdict()
