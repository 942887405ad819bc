"""Where the service is, and the key that it asks for."""

from collections.abc import Mapping
from typing import TypedDict

URL_VARIABLE = "COEVO_SERVICE_URL"
KEY_VARIABLE = "COEVO_API_KEY"


class ServiceAddress(TypedDict):
    """Where the service is: `AsyncClient(**address)`."""

    url: str
    api_key: str | None


def from_environment(environ: Mapping[str, str]) -> ServiceAddress:
    return {"url": environ.get(URL_VARIABLE) or "http://127.0.0.1:8000", "api_key": environ.get(KEY_VARIABLE) or None}
