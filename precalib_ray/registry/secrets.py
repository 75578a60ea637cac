"""Credentials are MLflow's business; what is shown, logged or stored by a job holds none."""

from __future__ import annotations

import logging
import os
import re
import traceback
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

_VARIABLES = (
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_CONNECTION_STRING",
)
_URIS = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_S3_ENDPOINT_URL")
_IN_URI = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)[^\s/'\"]+@", re.IGNORECASE)
_IN_QUERY = re.compile(
    r"(?P<key>[?&][\w.-]*(password|secret|token)[\w.-]*=)[^\s&'\"]+", re.IGNORECASE
)
_SHORTEST = 4  # what is shorter stands in too many words


def redact(text: str) -> str:
    """The text without users and passwords of URIs, and without what the environment keeps."""
    text = _IN_URI.sub(r"\g<scheme>***@", text)
    text = _IN_QUERY.sub(r"\g<key>***", text)
    for secret in sorted(_known(), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def guard_logs() -> None:
    """Redact what any library of this process logs from now on."""
    make = logging.getLogRecordFactory()

    def redacted(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        try:
            record.msg, record.args = redact(record.getMessage()), None
        except Exception:  # a message that does not format is told by the handler
            return record
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = redact("".join(traceback.format_exception(*record.exc_info)))
        return record

    logging.setLogRecordFactory(redacted)


def _known() -> Iterator[str]:
    found = [os.environ.get(name, "") for name in _VARIABLES]
    for name in _URIS:
        password = urlsplit(os.environ.get(name, "")).password or ""
        found += [password, unquote(password)]
    return (secret for secret in found if len(secret) >= _SHORTEST)
