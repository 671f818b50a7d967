"""Requests that nobody would write: whatever comes, the service answers, and never with a defect of its own."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("schemathesis")

import hypothesis
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.core.errors import SchemathesisError
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from i2vgen.server.config import Limits, ModelConfig, ServiceConfig
from server_parts import Parts

pytestmark = pytest.mark.slow
NUM_EXAMPLES = 60
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def parts(tmp_path_factory, tiny_cascade):
    folder = tmp_path_factory.mktemp("fuzz")
    limits = Limits(
        max_queued=10**6, max_queued_per_key=10**6, requests_per_minute=0, videos_per_minute=0, sync_seconds=0
    )
    model = ModelConfig(names=("tiny",))
    config = ServiceConfig(data=str(folder), model=model, limits=limits, allowed_hosts=("testserver",))
    made = Parts(config, tiny_cascade)
    yield made
    made.close()


def test_no_request_meets_a_defect_and_answers_are_as_described(parts):
    schema = schemathesis.openapi.from_asgi("/openapi.json", parts.app)
    met: dict[int, int] = {}
    for operation in schema.get_all_operations():
        operation = operation.ok()

        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(
            max_examples=NUM_EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        def check(case):
            try:
                response = case.call()
            except SchemathesisError:
                hypothesis.assume(False)
            met[response.status_code] = met.get(response.status_code, 0) + 1
            if response.status_code != 504:  # of /sync, which does not wait here
                case.validate_response(response, checks=CHECKS)

        check()
    assert set(met) >= {200, 400, 404}
    assert 500 not in met


def test_damaged_pictures_and_forms_are_refused(parts, photo):
    """Bytes of a true request, some of them changed, removed or doubled."""
    data = io.BytesIO()
    photo.save(data, "jpeg")
    pictures = [data.getvalue()]
    for kind in ("png", "gif", "webp", "tiff", "bmp"):
        data = io.BytesIO()
        photo.save(data, kind)
        pictures.append(data.getvalue())
    drawn = np.random.default_rng(0)
    met = Counter()
    for number in range(300):
        picture = pictures[number % len(pictures)]
        head = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na dog\r\n'
        part = b'--x\r\nContent-Disposition: form-data; name="input_reference"; filename="a"\r\n\r\n'
        body = bytearray(head + part + picture + b"\r\n--x--\r\n")
        for _ in range(drawn.integers(1, 6)):
            # Headers and what is early in a file decide the most.
            place = int(drawn.integers(len(body)) * drawn.random() ** 2)
            length = int(drawn.integers(1, 40))
            what = drawn.integers(3)
            new = [drawn.bytes(length), b"", bytes(body[place : place + length]) * 2][what]
            body[place : place + length] = new
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        answer = parts.client.post("/v1/videos", content=bytes(body), headers=headers)
        met[answer.status_code] += 1
        assert answer.status_code in (200, 400, 404), (answer.status_code, answer.text)
    assert met[200] > 5
    assert met[400] > 50
