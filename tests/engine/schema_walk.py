"""Requests that the service's own schema allows, thought up by schemathesis."""

from typing import Any

from hypothesis import HealthCheck, Phase, given, settings

from tests.engine.service_process import ServiceProcess


def failures(service: ServiceProcess, schemathesis: Any, examples: int) -> list[str]:
    """The commands that repeat a failure, after so many requests to each operation."""
    commands: list[str] = []
    headers = service.headers | {"connection": "close"}
    schemathesis.serializer.alias("application/vnd.safetensors", "application/octet-stream")  # bytes, both
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json", headers=headers)
    for operation in schema.get_all_operations():

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=[*HealthCheck],  # pyright: ignore[reportArgumentType]  # typed as its metaclass
        )
        @given(case=operation.ok().as_strategy())
        def ask(case: Any) -> None:
            response = case.call(timeout=300, headers=headers)  # a hundred completions of full length are allowed
            if response.status_code >= 500:
                commands.append(case.as_curl_command()[:1000])

        ask()
    return commands
