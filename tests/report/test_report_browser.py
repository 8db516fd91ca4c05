"""Opens the page in headless Chromium: nothing is logged to its console and nothing is fetched."""

import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from test_report_hostile import poison_run

from potstill.report import build_report

pytestmark = pytest.mark.browser

NAMES = ("chromium", "google-chrome", "google-chrome-stable", "chromium-browser")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--enable-logging=stderr",
)


@pytest.fixture
def browser(tmp_path):
    """A function that opens a page and returns (its document after loading, its console lines)."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no Chromium is installed (looked for {', '.join(NAMES)})")

    def open_page(path, *actions):
        command = [program, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *actions, path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return open_page


@pytest.fixture
def listener():
    """A web server on this machine that writes down what it is asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_the_check_itself_sees_requests_and_console_errors(browser, listener, tmp_path):
    address, asked = listener
    page = tmp_path / "bad.html"
    page.write_text(f"<img src='{address}/leak'><script>console.error('seen')</script>")
    _, console = browser(page, "--dump-dom")
    assert asked == ["/leak"]
    assert any("seen" in line for line in console)


def test_page_opens_without_console_errors(browser, run, other_run):
    document, console = browser(build_report([run, other_run]), "--dump-dom")
    assert "What the policy played" in document
    assert console == []


def test_hostile_run_fetches_nothing_and_runs_nothing(browser, listener, run):
    address, asked = listener
    payload = (
        f'"><img src={address}/img onerror="document.title=1"><script src={address}/js></script>'
        f"<link rel=stylesheet href={address}/css><style>@import '{address}/import'</style>"
    )
    poison_run(run, payload)
    document, console = browser(build_report(run), "--dump-dom")
    assert "Potstill report</title>" in document
    assert asked == []
    assert console == []  # not even an attempt that the content policy would have had to stop


OWN = "document.documentElement.setAttribute('data-owned', 1);alert(1)"
WAYS_IN = (
    f'"><script>{OWN}</script>',
    f'"><img src=x onerror="{OWN}">',
    f'\'><svg onload="{OWN}"><animate onbegin="{OWN}" attributeName=x dur=1s></svg>',
    f"</style></title></textarea><script>{OWN}</script>",
    f'"><iframe srcdoc="<script>parent.{OWN}</script>"></iframe>',
    f'"><iframe src="javascript:parent.{OWN}"></iframe><meta http-equiv=refresh content="0;url=javascript:{OWN}">',
    f'"><input autofocus onfocus="{OWN}"><details open ontoggle="{OWN}"><video><source onerror="{OWN}"></video>',
    f'"><math><mtext><table><mglyph><style><img src=x onerror="{OWN}">',
)


def test_the_check_itself_sees_code_run(browser, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(f"<body>{WAYS_IN[1]}".replace("alert(1)", "0"))
    document, _ = browser(page, "--dump-dom")
    assert "data-owned=" in document.partition("<body")[0]


def test_no_way_into_the_page_runs_code(browser, run):
    """Names, captions, paths, recipe and history hold them all; the canary on the root element stays unset."""
    poison_run(run, " ".join(WAYS_IN))
    hostile = run.rename(run.parent / WAYS_IN[1].replace("/", "").replace('"', "")[:100])
    document, console = browser(build_report(hostile), "--dump-dom")
    assert "Potstill report</title>" in document
    assert "data-owned=" not in document.partition("<body")[0]
    assert console == []


@pytest.mark.parametrize("action", ["--print-to-pdf", "--screenshot"], ids=["pdf", "png"])
def test_page_prints_and_paints(browser, run, tmp_path, action):
    made = tmp_path / ("made.pdf" if "pdf" in action else "made.png")
    _, console = browser(build_report(run), f"{action}={made}", "--window-size=400,800")
    assert made.stat().st_size > 20_000
    assert made.read_bytes()[:4] == (b"%PDF" if "pdf" in action else b"\x89PNG")
    assert console == []
