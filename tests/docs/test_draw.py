"""The site's page on which one draws a digit, in Chromium, with the files of `make draw` where these are built."""

import importlib.util
import os
import re
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from must.api.demo import load_digits, name_image
from tests.common import ROOT

MADE = ROOT / "build/draw"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HERE = MADE.is_dir() and CHROMIUM and importlib.util.find_spec("playwright")
DRAW = """([pixels, side]) => {
  const small = Object.assign(document.createElement("canvas"), { width: side, height: side });
  const data = new ImageData(side, side);
  pixels.forEach((value, at) => data.data.set([value, value, value, 255], 4 * at));
  small.getContext("2d").putImageData(data, 0, 0);
  const canvas = document.getElementById("draw");
  canvas.getContext("2d").drawImage(small, 20, 20, 240, 240);
  return canvas.nameIt();
}"""
GIVE = """async ([pixels, side]) => {
  const { Tensor } = await import("/try/ort.mjs");
  const values = Float32Array.from({ length: 3 * pixels.length }, (_, at) => pixels[at % pixels.length] / 255 / 0.5);
  return document.getElementById("draw").nameIt(new Tensor("float32", values, [1, 3, side, side]));
}"""


@pytest.mark.slow
@pytest.mark.skipif(not HERE and "REQUIRE_BROWSER" not in os.environ, reason="not here: make draw, Chromium")
def test_a_drawn_digit_is_named(tmp_path):
    """Handwriting that the model has not seen, two digits drawn with the pointer, and pictures of the memory, which
    are nearest to themselves; no other host is asked."""
    from playwright.sync_api import expect, sync_playwright

    for folder in (MADE, ROOT / "docs/try"):
        shutil.copytree(folder, tmp_path / "try", dirs_exist_ok=True)
    shown = re.search(r"<canvas.*</script>", (ROOT / "docs/try.md").read_text(), re.DOTALL)
    assert shown
    (tmp_path / "index.html").write_text(f"<!doctype html><link rel=icon href=data:,><body>{shown[0]}</body>")
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, asked, raised = browser.new_page(), [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: raised.append(str(error)))
        url = f"http://127.0.0.1:{server.server_port}/"
        page.goto(f"{url}index.html")
        expect(page.locator("#said")).to_have_text("Draw a digit.", timeout=120_000)
        right, images = 0, load_digits()["test"][:40]
        for image, label in images:
            page.evaluate(DRAW, [[*image.tobytes()], image.width])
            right += page.inner_text("#said").startswith(label)
        assert right >= 36, f"{right} of {len(images)}"
        right, nearest = 0, page.locator("#nearest > span")
        for number, (image, label) in enumerate(load_digits()["unlabeled"][:40]):
            page.evaluate(GIVE, [[*image.tobytes()], image.width])
            expect(nearest).to_have_count(6)
            assert nearest.first.get_attribute("title") == name_image(number)
            right += nearest.first.inner_text() == label
        assert right >= 36, f"{right} of 40"
        box = page.locator("#draw").bounding_box()
        for name, points in (("one", [(140, 40), (140, 240)]), ("seven", [(80, 50), (200, 50), (120, 240)])):
            page.click("#clear")
            expect(nearest).to_have_count(0)
            for number, (x, y) in enumerate(points):
                page.mouse.move(box["x"] + x, box["y"] + y, steps=8)
                if not number:
                    page.mouse.down()
            page.mouse.up()
            expect(page.locator("#said")).to_have_text(re.compile(rf"{name} \d+%.* similarity .*: [\d.]+\. The"))
        page.goto(f"{url}try/report.html")
        expect(page.locator("h1")).to_have_text("Better than zero-shot")
        browser.close()
        server.shutdown()
    assert not raised and all(one.startswith((url, "data:", "blob:")) for one in asked)
