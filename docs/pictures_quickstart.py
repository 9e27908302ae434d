"""Makes docs/pictures/quickstart.webp: the page of `must quickstart`, answered with the true classes until it says that
the set is finished. Part of `make pictures`; needs Chromium and Playwright."""

from __future__ import annotations

import io
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from must.api.demo import CLASSES, load_digits, name_image
from must.base.storage import read_json

LIMIT = 1_000_000  # bytes
SIZE = {"width": 860, "height": 590}
SHOWN = (*range(6), 8, 12, 16, 20, 30, 40, 50, 60, 80, 100, 120, 140, 160, 180, 190, 195)  # answers at a frame


def main() -> None:
    output = Path(sys.argv[1])
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "must", "quickstart", "--output", folder]
        program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert program.stdout
        try:
            said = wait_for(program.stdout, "answers: ")
            url = re.search(r"must review: (\S+)", said)
            assert url, said
            images = photograph(url[1], Path(folder, "work", "review", "review.json"))
        finally:
            program.send_signal(signal.SIGINT)
            print(program.stdout.read())
    frames = [image.convert("RGB") for image in images]
    times = [1500, *[900] * 5, *[350] * (len(frames) - 7), 4000]
    frames[0].save(output, save_all=True, append_images=frames[1:], duration=times, loop=0, quality=60, method=6)
    print(f"{output}: {output.stat().st_size:,} bytes, {len(frames)} frames")
    if output.stat().st_size > LIMIT:
        raise SystemExit(f"pictures: {output} is larger than {LIMIT:,} bytes")


def wait_for(lines: Any, beginning: str) -> str:
    """All lines up to the one that begins so."""
    said = ""
    for line in lines:
        said += line
        if line.startswith(beginning):
            break
    return said


def photograph(url: str, review: Path) -> list[Image.Image]:
    from playwright.sync_api import sync_playwright

    truth = {name_image(number): label for number, (_, label) in enumerate(load_digits()["unlabeled"])}
    frames = list[Image.Image]()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": SIZE["width"], "height": SIZE["height"]})

        def take() -> None:
            page.wait_for_timeout(600)
            frames.append(Image.open(io.BytesIO(page.screenshot())))

        page.goto(url)
        page.locator("#picture[data-number]").wait_for(timeout=120_000)
        names = {picture["number"]: picture["image"] for picture in read_json(str(review), "review")["pictures"]}
        for answers in range(len(truth)):
            if answers in SHOWN:
                take()
            number = page.locator("#picture").get_attribute("data-number")
            page.keyboard.press(str(CLASSES.index(truth[names[int(number or 0)]])))
            while page.locator("#ask").is_visible() and page.locator("#picture").get_attribute("data-number") == number:
                page.wait_for_timeout(10)
            if page.locator("#done").is_visible():
                break
        take()
        browser.close()
    return frames


if __name__ == "__main__":
    main()
