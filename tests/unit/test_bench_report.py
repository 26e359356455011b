"""What the benchmark makes of its rounds."""

import pytest

from bench.measure import Measured
from bench.report import figures, percentile, table
from bench.solos import Solo
from bench.trace import Pass, batch_sizes, busy_s


def alone(contestant: str, round_: int, seconds: float) -> Solo:
    return Solo(contestant, batch=1, round=round_, pages=10, seconds=seconds, cpu_s=8.0, peak_rss_mb=500.0)


def served(contestant: str, round_: int, seconds: float, load: str = "8 callers", **more: object) -> Measured:
    facts = {"pages": 10, "page_s": [seconds], "query_s": [], "cpu_s": 9.0, "peak_rss_mb": 700.0, "batches": {"1": 10}}
    return Measured(contestant, load, round_, seconds=seconds, **({"idle_s": 0.1} | facts | more))


def test_a_ratio_is_the_median_over_rounds_of_the_ratio_within_a_round():
    solos = [
        *(alone("stock", round_, seconds) for round_, seconds in ((1, 10.0), (2, 20.0), (3, 40.0))),
        *(alone("engine", round_, seconds) for round_, seconds in ((1, 5.0), (2, 16.0), (3, 20.0))),
    ]

    assert figures(solos, [], {})["engine_over_stock"] == 2.0


def test_the_sweep_does_not_count_as_a_round():
    solos = [alone("stock", 0, 1.0), alone("stock", 1, 10.0), alone("engine", 1, 5.0)]

    assert figures(solos, [], {})["engine_over_stock"] == 2.0


def test_services_are_compared_at_eight_callers_even_where_more_ran():
    servers = [
        served("service", 1, 1.0, "1 callers"),
        served("service", 1, 4.0),
        served("service", 1, 1.0, "32 callers"),
        served("seed", 1, 2.0, "1 callers"),
        served("seed", 1, 8.0),
        served("seed", 1, 9.0, "32 callers"),
    ]

    told = figures([], servers, {})

    assert (told["compared_at"], told["service_over_seed"]) == ("8 callers", 2.0)
    assert told["service_over_others_at_every_load"]["32 callers"]["seed"] == 9.0


def test_overhead_is_what_neither_preparation_nor_the_forward_pass_used():
    told = figures([], [served("service", 1, 4.0, prepare_cpu_s=1.0, forward_cpu_s=7.9)], {})

    assert told["overhead_cpu_ms_per_page"] == pytest.approx(10.0)


def test_a_figure_of_a_contestant_that_did_not_run_is_none():
    told = figures([alone("stock", 1, 1.0)], [], {})

    assert told["service_over_bentoml"] is None
    assert told["query_p99_ms"] is None


def test_the_p99_of_queries_is_that_under_load():
    under_load = served("service", 1, 9.0, "queries under load", query_s=[0.1, 0.2, 0.3])
    unloaded = served("service", 1, 9.0, "queries", page_s=[], query_s=[0.01])

    assert figures([], [unloaded, under_load], {})["query_p99_ms"] == 300.0


def test_what_a_service_costs_idle_is_told_by_the_second():
    assert figures([], [served("service", 1, 5.0, "idle", page_s=[], cpu_s=0.1)], {})["standing_cpu_ms_per_s"] == {
        "service": pytest.approx(20.0)
    }


@pytest.mark.parametrize(("part", "value"), [(0.5, 50), (0.95, 95), (0.99, 99), (1.0, 100)])
def test_a_percentile_is_a_value_that_was_measured(part, value):
    assert percentile(list(range(1, 101)), part) == value


def test_passes_that_overlap_are_busy_once():
    passes = [Pass(1.0, 3.0, 1), Pass(2.0, 4.0, 2), Pass(6.0, 7.0, 2)]

    assert busy_s(passes) == 4.0
    assert batch_sizes(passes) == {"1": 1, "2": 2}


def test_the_table_has_a_line_for_each_contestant_and_load():
    lines = table([alone("stock", 1, 1.0)], [served("service", 1, 1.0), served("service", 2, 1.0)]).splitlines()

    assert [line.split()[0] for line in lines] == ["contestant", "stock", "service"]
    assert lines[2].endswith("1x20")
