"""ctest: labels=long timeout=1800
The page that scripts/playground builds now, where a compiler for WebAssembly is installed, in
headless Chromium: the program's figures for 200 random settings; built twice it has the same bytes.
"""
from _browser import CHROMIUM, DRIVER
from _moesim import check, verdict
from _playground import PAGE, build, test_page

if CHROMIUM and DRIVER:
    built, again = build("first.html"), build("second.html")
    if built and again:
        with open(built, "rb") as first, open(again, "rb") as second:
            check(first.read() == second.read(), "two builds of the page differ")
    test_page(built or PAGE, 200)
else:
    print("there is no Chromium with chromedriver")
    check(True)
verdict()
