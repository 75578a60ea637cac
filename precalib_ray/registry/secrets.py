"""Redaction: credentials reach MLflow's clients, and nothing that a job shows, logs or stores."""

from __future__ import annotations

import contextlib
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
_IN_URI = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*://)([^\s/'\"]+|[^\s/@'\"]*:[^\s@'\"]*)@", re.IGNORECASE
)
_IN_QUERY = re.compile(
    r"(?P<key>[?&][\w.-]*(password|secret|token)[\w.-]*=)[^\s&'\"]+", re.IGNORECASE
)
_MIN_LENGTH = 4  # shorter secrets occur in ordinary words


def redact(text: str) -> str:
    """The text without credentials in URIs, and without secrets of the environment."""
    text = _IN_URI.sub(r"\g<scheme>***@", text)
    text = _IN_QUERY.sub(r"\g<key>***", text)
    for secret in sorted(_environment_secrets(), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def guard_logs() -> None:
    """Redact every log record of this process, from now on."""
    make = logging.getLogRecordFactory()

    def redacted(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        try:
            record.msg, record.args = redact(record.getMessage()), None
        except Exception:  # the handler reports a message that does not format
            return record
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = redact("".join(traceback.format_exception(*record.exc_info)))
        return record

    logging.setLogRecordFactory(redacted)


def _environment_secrets() -> Iterator[str]:
    found = [os.environ.get(name, "") for name in _VARIABLES]
    for name in _URIS:
        with contextlib.suppress(ValueError):  # it is not a URI
            password = urlsplit(os.environ.get(name, "")).password or ""
            found += [password, unquote(password)]
    return (secret for secret in found if len(secret) >= _MIN_LENGTH)
