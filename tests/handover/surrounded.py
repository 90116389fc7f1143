"""A device that says what its worker was started with."""

from __future__ import annotations

import json
import os
import sys

from vuproc import Device, Request

WORD = "VUPROC_TEST_WORD"


class Surrounded(Device):
    """Answers each request with the surroundings of its worker."""

    device_id = 42

    def handle(self, request: Request) -> None:
        said = {"word": os.environ.get(WORD), "folder": os.getcwd(), "path": sys.path}
        request.finish(request.write(json.dumps(said).encode()))
