"""Messages that are not ours, for tests to put into our queues."""

import base64
import json
from typing import Any

import msgpack

__all__ = ["foreign"]


def _changed(task, **changes):
    """The message with some of its fields changed, named by their path: headers__task=..."""
    message = json.loads(json.dumps(task))
    for path, value in changes.items():
        *above, last = path.split("__")
        place = message
        for name in above:
            place = place[name]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return json.dumps(message)


def _body(*parts):
    return base64.b64encode(msgpack.packb(parts)).decode()


def foreign(task: dict[str, Any]) -> list[str | bytes]:
    """Return one message for each way of not being ours, made of a message of ours."""
    job_id, embed = task["headers"]["colqueue_job"], {"callbacks": None, "chain": None}
    callback = {"task": "celery.ping", "args": [], "kwargs": {}, "options": {}}
    return [
        "not JSON",
        "",
        b"\xff\xfe\x00",
        "[" * 5000,
        "null",
        "[]",
        "{}",
        '{"properties": {}}',
        _changed(task, body="not base64"),
        _changed(task, body=""),
        _changed(task, body=base64.b64encode(b"\xc1").decode()),
        _changed(task, body=_body([job_id, [0]])),
        _changed(task, body=_body({"job_id": job_id}, {}, embed)),
        _changed(task, body=_body([[job_id], [0]], {}, embed)),
        _changed(task, body=_body([job_id, [1]], {}, embed)),
        _changed(task, body=_body([job_id, [0]], {"more": 1}, embed)),
        _changed(task, body=_body([job_id, [0]], {}, embed | {"callbacks": [callback]})),
        _changed(task, body=_body([job_id, [0]], {}, [])),
        _changed(task, headers=[]),
        _changed(task, headers=...),
        _changed(task, headers__task="celery.chord"),
        _changed(task, headers__task=["colqueue.embed"]),
        _changed(task, headers__timelimit=[10, 5]),
        _changed(task, headers__timelimit="soon"),
        _changed(task, headers__eta="2099-01-01T00:00:00"),
        _changed(task, headers__expires="never"),
        _changed(task, headers__compression="application/x-bz2"),
        _changed(task, headers__colqueue_job=7),
        _changed(task, headers__colqueue_job=f"{job_id}:payloads"),
        _changed(task, headers__colqueue_inputs="0"),
        _changed(task, headers__colqueue_inputs=[0.5]),
        _changed(task, headers__colqueue_queued_at="yesterday"),
        _changed(task, headers__colqueue_queued_at=float("inf")),
        _changed(task, properties=None),
        _changed(task, properties__delivery_tag=...),
        _changed(task, properties__delivery_tag={"a": 1}),
        _changed(task, properties__delivery_tag=""),
        _changed(task, properties__body_encoding="rot13"),
        _changed(task, properties__delivery_info__routing_key="elsewhere"),
        _changed(task, properties__delivery_info__routing_key=None),
        _changed(task, properties__delivery_info__exchange="celeryev"),
        _changed(task, properties__delivery_info=...),
        _changed(task, **{"content-type": "application/x-python-serialize"}),
        _changed(task, **{"content-encoding": "utf-16"}),
    ]
