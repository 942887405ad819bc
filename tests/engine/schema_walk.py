"""Requests that the service's own schema allows, thought up by schemathesis."""

from typing import Any

from hypothesis import HealthCheck, Phase, given, settings

from tests.engine.service_process import ServiceProcess


def failures(service: ServiceProcess, schemathesis: Any, examples: int) -> list[str]:
    """Of so many requests to each operation those that were answered with a failure, as commands to repeat them."""
    found: list[str] = []
    headers = service.headers | {"connection": "close"}
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json", headers=headers)
    for operation in schema.get_all_operations():

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.ok().as_strategy())
        def ask(case: Any) -> None:
            answer = case.call(timeout=60, headers=headers)
            if answer.status_code >= 500:
                found.append(case.as_curl_command()[:1000])

        ask()
    return found
