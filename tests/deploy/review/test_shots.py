import pytest
from tests.deploy.review.test_page import *
from tests.deploy.review.test_page import PHONE
@pytest.mark.parametrize("count", [12, 13, 30, 31])
def test_shot(count, review, place, visit):
    review.classes.extend(f"class number {n}" for n in range(count - 10))
    for name, options in {"desk": {"viewport": {"width": 1280, "height": 800}}, "phone": PHONE, "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 800}}}.items():
        if name == "dark" and count != 30: continue
        page = visit(place[0], **options)
        page.locator("#picture").wait_for()
        page.keyboard.press("2" if count < 31 else "n")
        page.wait_for_timeout(800)
        page.screenshot(path=f"/tmp/rv/shot-{count}-{name}.png", full_page=True)
        if count == 31 and name == "desk":
            page.keyboard.press("/"); page.keyboard.type("number 7"); page.keyboard.press("Enter"); page.wait_for_timeout(800)
            page.screenshot(path="/tmp/rv/shot-31-used.png", full_page=True)
        if count == 12 and name == "desk":
            page.keyboard.press("e"); page.wait_for_timeout(800)
            page.screenshot(path="/tmp/rv/shot-end.png", full_page=True)
