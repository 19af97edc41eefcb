"""Helper of the report's test in a browser: headless Chromium through chromedriver, spoken to with
nothing but http.client.
"""
import base64
import http.client
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
DRIVER = shutil.which("chromedriver")
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
]


class Browser:
    """One window. Use as a context manager: everything it started ends with it."""

    def __init__(self, width=1280, height=1000):
        self.profile = tempfile.mkdtemp(prefix="moesim-browser-")
        self.driver = subprocess.Popen(
            [DRIVER, "--port=0"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            self.port = self._port()
            options = {
                "binary": CHROMIUM,
                "args": [
                    *OPTIONS,
                    f"--window-size={width},{height}",
                    f"--user-data-dir={self.profile}",
                ],
            }
            wanted = {
                "browserName": "chrome",
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL"},
            }
            self.session = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})[
                "sessionId"
            ]
        except BaseException:
            self._end()
            raise

    def _port(self):
        for line in self.driver.stdout:
            if found := re.search(r"started successfully on port (\d+)", line):
                threading.Thread(target=self.driver.stdout.read, daemon=True).start()
                return int(found[1])
        raise OSError("chromedriver did not start")

    def _ask(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=180)
        connection.request(
            method,
            path,
            json.dumps(body) if body is not None else None,
            {"Content-Type": "application/json"},
        )
        value = json.loads(connection.getresponse().read())["value"]
        connection.close()
        if isinstance(value, dict) and "error" in value:
            raise OSError(f"{value['error']}: {value.get('message', '').splitlines()[0]}")
        return value

    def _end(self):
        self.driver.terminate()
        self.driver.wait()
        shutil.rmtree(self.profile, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self._ask("DELETE", f"/session/{self.session}")
        finally:
            self._end()

    def ask(self, path, body):
        return self._ask("POST", f"/session/{self.session}{path}", body)

    def run(self, script, *arguments):
        """The value that the JavaScript `script` returns; its arguments[0] ... are `arguments`."""
        return self.ask("/execute/sync", {"script": script, "args": list(arguments)})

    def devtools(self, command, **parameters):
        return self.ask("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def open(self, path, ready, seconds=60):
        """Opens a file, and waits until the JavaScript expression `ready` holds; returns the
        seconds that took, or None.
        """
        start = time.monotonic()
        self.ask("/url", {"url": "file://" + os.path.abspath(path)})
        while time.monotonic() - start < seconds:
            if self.run(f"return Boolean({ready})"):
                return time.monotonic() - start
            time.sleep(0.05)
        return None

    def console(self):
        """Messages since the last call."""
        return [
            f"{entry['level']}: {entry['message']}"
            for entry in self.ask("/se/log", {"type": "browser"})
        ]

    def colours(self, scheme):
        self.devtools(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )

    def screenshot(self, path):
        """The whole page."""
        size = self.devtools("Page.getLayoutMetrics")["cssContentSize"]
        shot = self.devtools(
            "Page.captureScreenshot",
            format="png",
            captureBeyondViewport=True,
            clip={"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1},
        )
        with open(path, "wb") as file:
            file.write(base64.b64decode(shot["data"]))

    def printed(self, path):
        """The page as PDF, as it would come from a printer."""
        with open(path, "wb") as file:
            file.write(
                base64.b64decode(
                    self.devtools("Page.printToPDF", preferCSSPageSize=True, printBackground=True)[
                        "data"
                    ]
                )
            )
