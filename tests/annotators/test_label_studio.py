"""The ML backend for Label Studio: its protocol, and what it makes of the labels of a project."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segcore.annotators.edition_images import EditionImages
from segcore.annotators.label_studio import LabelStudioBackend
from segcore.annotators.label_studio_server import MAX_BODY_BYTES, BackendServer
from segcore.errors import UsageError
from segcore.exports.formats.rle_pack import unpack_mask
from segcore.exports.label_studio_config import find_control
from segcore.exports.options import ExportOptions
from segcore.output.results import Results
from tests.annotators.conftest import drawn_masks
from tests.support.masks_output import HEIGHT, WIDTH


def _config(tag: str, labels: str, image: str = '<Image name="img" value="$photo"/>') -> str:
    return f'<View>{image}<{tag} name="m" toName="img">{labels}</{tag}></View>'


BRUSH = _config(
    "BrushLabels",
    '<Label value="cat"/><Label value="dog &amp; &lt;b&gt;" alias="dog"/><Label value="tree"/>',
)
POLYGONS = _config("PolygonLabels", '<Label value="cat"/>')


@pytest.fixture
def backend(results: Results) -> LabelStudioBackend:
    return LabelStudioBackend(EditionImages(results, ExportOptions(format="label-studio")))


@pytest.fixture
def server(backend: LabelStudioBackend) -> Iterator[BackendServer]:
    with BackendServer(("127.0.0.1", 0), backend) as one:
        thread = threading.Thread(target=one.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield one
        one.shutdown()
        thread.join()


def _call(
    server: BackendServer, method: str, path: str, body: Any = None, headers: Any = None
) -> tuple[HTTPResponse, Any]:
    connection = HTTPConnection(*server.server_address[:2], timeout=20)  # type: ignore[arg-type]
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request(method, path, data, headers or {})
    answer = connection.getresponse()
    document = json.loads(answer.read())
    connection.close()
    return answer, document


def _task(link: str, number: int = 1) -> dict[str, Any]:
    return {"id": number, "data": {"photo": link}}


def test_brush_masks_are_those_of_the_edition(server: BackendServer) -> None:
    request = {
        "tasks": [_task("/data/upload/1/00ff00ff-c.png"), _task("s3://b/north/a.png", 2)],
        "label_config": BRUSH,
        "project": "1.2",
        "params": {"context": None},
    }
    answer, document = _call(server, "POST", "/predict", request)
    assert answer.status == 200
    assert document["model_version"].startswith("segcore drawn 111111111111 ")
    for result, name in zip(document["results"], ("c.png", "north/a.png"), strict=True):
        assert len(result["result"]) == len(drawn_masks()[name]) == 2
        scores = [one.score for one in drawn_masks()[name]]
        assert result["score"] == pytest.approx(min(scores))
        for region, one in zip(result["result"], drawn_masks()[name], strict=True):
            assert (region["from_name"], region["to_name"]) == ("m", "img")
            assert (region["original_width"], region["original_height"]) == (WIDTH, HEIGHT)
            value = region["value"]
            alpha = unpack_mask(bytes(value["rle"]), 4 * HEIGHT * WIDTH)
            assert (alpha.reshape(HEIGHT, WIDTH) > 0).tolist() == one.mask.tolist()
            assert value["brushlabels"] == [{3: "cat", 5: "dog"}[one.category]]


def test_labels_that_the_project_lacks_are_left_out(
    backend: LabelStudioBackend, caplog: pytest.LogCaptureFixture
) -> None:
    request = {"tasks": [_task("c.png")], "label_config": POLYGONS}
    (result,) = backend.predict(request)["results"]
    assert {region["type"] for region in result["result"]} == {"polygonlabels"}
    assert {tuple(region["value"]["polygonlabels"]) for region in result["result"]} == {("cat",)}
    assert "of labels that the project lacks left out" in caplog.text
    backend.setup({"schema": POLYGONS})
    assert "The project lacks 2 labels: dog & <b>, tree" in caplog.text


def test_a_task_without_an_answer_has_no_prediction_and_the_others_have(
    backend: LabelStudioBackend, archive: Path
) -> None:
    known = {"segcore_image_id": f"{archive}/in/north/a.png"}
    tasks = [
        _task("a.png"), _task("/data/upload/1/00ff00ff-zz.png"), {"id": 3}, "x",
        {"id": 4, "data": {"photo": 7}}, {"data": known | {"photo": "zz"}},
        {"data": {"segcore_image_id": "gone", "photo": "c.png"}}, _task("c.png"),
    ]  # fmt: skip
    answer = backend.predict({"tasks": tasks, "label_config": BRUSH})
    problems = answer["problems"]
    assert problems[0].startswith("Task 1: a.png: several images")
    assert problems[1:] == [
        "Task 1: zz.png: no image of the edition has this name",
        "A task: it has no data",
        "A task: it has no data",
        "Task 4: its 'photo' names no image",
        "Task : the edition has no image of this id",  # its link is not asked
    ]
    assert [len(one and one["result"]) for one in answer["results"]] == [0] * 5 + [2, 0, 2]
    assert backend.counts == {"tasks without an answer": 6, "tasks answered": 2}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("", "no labelling configuration"),
        ("<View>", "is no XML"),
        ("<!DOCTYPE x><View/>", "declares entities"),
        ("<View/>", "no BrushLabels or PolygonLabels"),
        (_config("BrushLabels", "", '<Image name="other" value="$photo"/>'), "no BrushLabels"),
        (_config("RectangleLabels", '<Label value="cat"/>'), "no BrushLabels"),
        (_config("BrushLabels", '<Label value="car"/>'), "None of the labels"),
        (" " * (1 << 21), "no labelling configuration"),
        ("<View>" + " " * (1 << 21), "too long"),
    ],
)
def test_projects_that_take_no_masks_are_told_so(
    server: BackendServer, config: str, message: str
) -> None:
    """Label Studio shows the reason phrase of the answer, and not its body."""
    answer, document = _call(server, "POST", "/setup", {"schema": config})
    assert answer.status == 400
    assert message in document["error"]
    assert message in answer.reason


def test_which_of_two_tags_is_taken() -> None:
    both = BRUSH.replace("</View>", '<PolygonLabels name="p" toName="img"/></View>')
    assert find_control(both, prefer_exact=True).from_name == "m"
    assert find_control(both, prefer_exact=False).from_name == "p"
    assert find_control(POLYGONS, prefer_exact=True).kind == "polygon"


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/", None, 200),
        ("GET", "/health", None, 200),
        ("GET", "/versions?project=1", None, 200),
        ("POST", "/webhook", {"action": "ANNOTATION_CREATED"}, 200),
        ("GET", "/x\x1b", None, 404),
        ("POST", "/train", {}, 404),
        ("POST", "/predict", b"[1]", 400),
        ("POST", "/predict", b"{", 400),
        ("POST", "/predict", b"[" * 200_000, 400),
        ("POST", "/predict", {"tasks": 1, "label_config": BRUSH}, 400),
        ("POST", "/predict", {"tasks": [{}] * 10_001, "label_config": BRUSH}, 400),
    ],
)
def test_requests_of_all_kinds_are_answered(
    server: BackendServer, method: str, path: str, body: Any, status: int
) -> None:
    connection = HTTPConnection(*server.server_address[:2], timeout=20)  # type: ignore[arg-type]
    connection._validate_path = lambda url: None  # type: ignore[attr-defined]
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request(method, path, data)
    answer = connection.getresponse()
    assert answer.status == status
    assert ("error" in json.loads(answer.read())) == (status >= 400)
    assert answer.reason.isprintable()
    connection.close()
    assert _call(server, "GET", "/health")[1]["status"] == "UP"


def test_a_body_that_is_too_large_is_not_read(server: BackendServer) -> None:
    with socket.create_connection(server.server_address[:2], timeout=20) as one:
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_BODY_BYTES + 1}"
        one.sendall(f"{head}\r\n\r\n".encode())
        received = b""
        while piece := one.recv(4096):
            received += piece
    assert received.startswith(b"HTTP/1.1 400 A request has at most 64 MiB")


def test_a_port_in_use_is_a_sentence(server: BackendServer, backend: LabelStudioBackend) -> None:
    with pytest.raises(UsageError, match=r"Cannot listen on 127\.0\.0\.1"):
        BackendServer(("127.0.0.1", server.server_address[1]), backend)


def test_polygons_are_in_percent(backend: LabelStudioBackend) -> None:
    (answer,) = backend.predict({"tasks": [_task("c.png")], "label_config": POLYGONS})["results"]
    points = np.array(answer["result"][0]["value"]["points"])
    assert points.min() >= 0
    assert points.max() <= 100
