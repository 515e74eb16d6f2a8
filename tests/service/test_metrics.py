"""The names and labels that dashboards use."""

from prometheus_client.parser import text_string_to_metric_families

from service.metrics import Metrics


def test_a_request_is_labelled_with_its_protocol_under_the_new_and_the_old_name() -> None:
    metrics = Metrics()
    metrics.observe_request("grpc", "Score", "ok", 0.5)
    samples = {
        sample.name: sample.labels
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }
    labels = {"protocol": "grpc", "door": "grpc", "method": "Score"}
    assert samples["soma_eval_requests_total"] == {**labels, "outcome": "ok"}
    assert samples["soma_eval_request_seconds_sum"] == labels
