"""One finished WORK for all tests of this folder."""

import shutil

import pytest

from tests.api.folders import PHOTOS, adapt, write_photos
from tests.once import made_once


@pytest.fixture(scope="session")
def monday():
    """photos/, and work/ as the first call left it. Only read it."""

    def make(place):
        write_photos(place / "photos", range(PHOTOS))
        adapt(place)

    return made_once("monday", make)


@pytest.fixture
def place(monday, tmp_path):
    shutil.copytree(monday, tmp_path / "place")  # with the files' times
    return tmp_path / "place"
