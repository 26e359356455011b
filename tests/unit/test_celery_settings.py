import pytest

from shared.jobs import Lane
from shared.messages import TASK_NAME
from shared.queue import celery_app
from shared.settings import StoreSettings


@pytest.fixture
def app():
    return celery_app(StoreSettings(_env_file=None, redis_url="redis://127.0.0.1:1/0", visibility_timeout_s=45))


def test_each_lane_has_its_queues_and_no_other_is_made_by_a_typo(app):
    assert {queue.name for queue in app.conf.task_queues} == {queue for lane in Lane for queue in lane.queues}
    assert app.conf.task_create_missing_queues is False


def test_no_message_can_unpickle(app):
    assert app.conf.accept_content == ["msgpack"]
    assert app.conf.task_serializer == app.conf.result_serializer == "msgpack"
    assert app.conf.result_accept_content is None


def test_work_is_acknowledged_only_when_it_is_done(app):
    assert app.conf.task_acks_late is True
    assert app.conf.task_reject_on_worker_lost is True
    assert app.conf.worker_prefetch_multiplier == 1
    assert app.conf.worker_cancel_long_running_tasks_on_connection_loss is False


def test_results_stay_out_of_celery(app):
    assert app.conf.task_ignore_result is True
    assert app.conf.result_backend is None


def test_a_broker_that_is_away_is_waited_for_without_end(app):
    assert app.conf.broker_connection_retry_on_startup is True
    assert app.conf.broker_connection_max_retries is None


def test_the_transport_redelivers_after_the_configured_time_and_sweeps_every_second(app):
    options = app.conf.broker_transport_options
    assert options["visibility_timeout"] == 45
    assert options["unacked_restore_interval"] == options["unacked_restore_throttle"] == 1
    assert options["priority_steps"] == [0]
    assert options["health_check_interval"] > 0
    assert options["socket_keepalive"] is True


def test_flower_sees_every_task(app):
    assert app.conf.worker_send_task_events is True
    assert app.conf.task_send_sent_event is True


def test_logs_stay_ours(app):
    assert app.conf.worker_hijack_root_logger is False


def test_making_the_app_connects_to_nothing_and_tasks_have_one_name(app):
    """Nothing listens on port 1: a connection would have raised."""
    assert app.connection().transport_cls == "redis"
    assert TASK_NAME == "colqueue.embed"


def test_two_apps_share_no_settings():
    first = celery_app(StoreSettings(_env_file=None, visibility_timeout_s=10))
    second = celery_app(StoreSettings(_env_file=None, visibility_timeout_s=20))
    assert first.conf.broker_transport_options["visibility_timeout"] == 10
    assert second.conf.broker_transport_options["visibility_timeout"] == 20
