"""ctest: timeout=120
docs/playground.html in headless Chromium: it computes by itself, loads nothing, answers its five
questions, obeys the keyboard, fits on a telephone, is not older than its template, and gives the
program's figures for 10 random settings. Where they differ, src/ has changed what it computes:
scripts/playground builds the page again.
"""
from _browser import CHROMIUM, DRIVER
from _moesim import check, verdict
from _playground import PAGE, test_page

if CHROMIUM and DRIVER:
    test_page(PAGE, 10)
else:
    print("there is no Chromium with chromedriver")
    check(True)
verdict()
