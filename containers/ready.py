"""Ends with 0 when the service of this container answers `/readyz`: its engine has scored. Needs the standard library
only, since it runs every few seconds."""

import http.client
import os
import sys

connection = http.client.HTTPConnection("127.0.0.1", int(os.environ.get("COEVO_PORT") or 8000), timeout=8)
try:
    connection.request("GET", "/readyz", headers={"x-api-key": os.environ.get("COEVO_API_KEY", "")})
    answer = connection.getresponse()
    print(answer.status, answer.read().decode(errors="replace"))
except OSError as error:
    sys.exit(f"no answer: {error}")
sys.exit(answer.status != 200)
