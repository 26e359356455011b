"""An api that is told to stop: who still waits is told to try again."""

from concurrent.futures import ThreadPoolExecutor
from signal import SIGTERM

import redis
from stack import Stack, eventually

from shared import keys


def test_who_waits_for_an_api_that_stops_is_told_to_try_again(redis_program, tmp_path):
    """Without a worker the request waits for longer than the api has to stop."""
    del redis_program
    with Stack(tmp_path, COLQUEUE_STOP_GRACE_S="1") as stack, redis.Redis.from_url(stack.redis.url) as connection:
        stack.start_api()
        with stack.client() as http, ThreadPoolExecutor() as pool:
            body = {"input_type": "text", "inputs": ["who is first?"]}
            waiting = pool.submit(http.post, "/embeddings", json=body)
            eventually(lambda: connection.zcard(keys.UNFINISHED))
            stack.processes["api"].signal(SIGTERM)
            answer = waiting.result(60)
        assert answer.status_code == 503, answer.text
        assert answer.json()["code"] == "stopping"
        assert int(answer.headers["retry-after"]) > 0
        stack.processes["api"].wait()
