"""Reports in a real browser, Chromium without a window: on a phone, in the dark, sorted by clicks, on paper."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from test_report import HOSTILE, random_run

from rsfast.runs.report import report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed; `make browser` installs it"),
    pytest.mark.slow,
]

OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)

# What a page in frames of several widths says of itself. A window without a screen is never as narrow as a phone.
PROBE = """
const found = {};
for (const width of [390, 1200]) {
  const page = document.getElementById("w" + width).contentDocument;
  const look = (element) => page.defaultView.getComputedStyle(element);
  found[width] = {
    overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    wide: [...page.querySelectorAll(".box")].filter((box) => box.scrollWidth > box.clientWidth).length,
    paper: look(page.body).backgroundColor,
    ink: look(page.body).color,
    curve: look(page.querySelector(".figure svg path[style*='--c0']")).stroke,
    text: look(page.querySelector(".figure svg text")).fill,
    font: parseFloat(look(page.querySelector("td")).fontSize),
    svg: page.querySelector(".figure svg").getBoundingClientRect().width,
    pictures: [...page.querySelectorAll("img")].filter((each) => each.naturalWidth > 0).length,
  };
}
const page = document.getElementById("w1200").contentDocument;
const table = [...page.querySelectorAll("table.sortable")].find((each) => each.tHead.textContent.startsWith("idx"));
const column = (name) => [...table.tHead.rows[0].cells].findIndex((each) => each.textContent === name);
const cells = (name) => [...table.tBodies[0].rows].map((row) => row.cells[column(name)].textContent);
const click = (name) => table.tHead.rows[0].cells[column(name)].querySelector("button").click();
found.before = cells("idx");
click("l2 radius");
found.ascending = cells("l2 radius");
found.sorted = table.tHead.rows[0].cells[column("l2 radius")].getAttribute("aria-sort");
click("l2 radius");
found.descending = cells("l2 radius");
click("name");
found.names = cells("name");
found.alerts = page.defaultView.alerts ?? 0;
document.body.textContent = JSON.stringify(found);
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of two runs, with the longest and worst of names."""
    folder = tmp_path_factory.mktemp("page")
    names = [f"{'a-very-long-name-without-any-space' * 4}/{i:03d}{HOSTILE}.png" for i in range(60)]
    sidecar = {**random_run().sidecar, "class_names": ["airplane", "automobile" * 8, HOSTILE]}
    run = random_run(names=names, sidecar=sidecar)
    picture = np.random.default_rng(0).random((3, 16, 16), dtype=np.float32)
    text = report({"first": run, HOSTILE: random_run(seed=2)}, envelope=False, images={"first": lambda _: picture})
    (folder / "report.html").write_text(text)
    return folder / "report.html"


def chromium(folder, *arguments):
    """What the browser wrote, and what it told about itself."""
    command = [CHROMIUM, *OPTIONS, f"--user-data-dir={folder / 'profile'}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.decode(), done.stderr.decode()


def probed(page, tmp_path, *arguments):
    """What the probe found in a browser with more arguments."""
    inside = html.escape(page.read_text().replace("<head>", "<head><script>window.alert = () => window.alerts = 1</script>"))
    frames = "".join(
        f'<iframe id="w{w}" style="width:{w}px;height:800px;border:0" srcdoc="{inside}"></iframe>' for w in (390, 1200)
    )
    outside = tmp_path / "frames.html"
    outside.write_text(f"<body>{frames}<script>addEventListener('load', () => {{ {PROBE} }})</script></body>")
    dom, _ = chromium(tmp_path, "--window-size=1600,900", *arguments, "--dump-dom", outside.as_uri())
    return json.loads(html.unescape(re.search(r"<body>(.*)</body>", dom, re.S)[1]))


def luminance(colour):
    return sum(map(int, re.findall(r"\d+", colour)[:3]))


def test_light_and_dark_on_a_phone_and_a_desk(page, tmp_path):
    light = probed(page, tmp_path)
    for width in ("390", "1200"):
        assert light[width]["overflow"] == 0  # wide tables scroll in boxes of their own
        assert light[width]["pictures"] == 24
        assert luminance(light[width]["paper"]) > 700 > 300 > luminance(light[width]["ink"])
        assert light[width]["text"] == light[width]["ink"]
        assert light[width]["font"] >= 12
    assert light["390"]["wide"] > 0
    assert 300 < light["390"]["svg"] < 390 < light["1200"]["svg"]

    radii = sorted(light["ascending"], key=float)
    assert light["before"] == [str(i) for i in range(60)]
    assert light["ascending"] == radii
    assert light["sorted"] == "ascending"
    assert light["descending"] == radii[::-1]
    assert [re.search(r"/(\d+)", name)[1] for name in light["names"]] == [f"{i:03d}" for i in range(60)]
    assert light["alerts"] == 0

    dark = probed(page, tmp_path, "--blink-settings=preferredColorScheme=0")
    for width in ("390", "1200"):
        assert luminance(dark[width]["paper"]) < 150 < 600 < luminance(dark[width]["ink"])
        assert dark[width]["curve"] != light[width]["curve"]
        assert dark[width]["text"] == dark[width]["ink"]


def test_paper(page, tmp_path):
    file = tmp_path / "report.pdf"
    chromium(tmp_path, "--blink-settings=preferredColorScheme=0", f"--print-to-pdf={file}", page.as_uri())
    content = file.read_bytes()
    assert content.startswith(b"%PDF-")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 20
