"""How the API answers bad input, in the words that the tests expect: status, code, param and message."""

from typing import Any

import httpx
import pytest

NULL, TRUE, FLOAT = "null", "a boolean", "a decimal"
NUMBER, TEXT, LIST, OBJECT = "an integer", "a string", "an array", "an object"

PURPOSES = "'assistants', 'batch', 'fine-tune', 'vision', 'user_data', and 'evals'"
LOW, HIGH = 3600, 2_592_000
"""Bounds of the seconds after which a file may expire."""

Fault = tuple[int, str | None, str | None, str]
"""Status, code, param, message."""


def said(message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> Fault:
    return status, code, param, message


def missing(param: str) -> Fault:
    return said(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")


def kind(param: str, expected: str, got: str) -> Fault:
    message = f"Invalid type for '{param}': expected {expected}, but got {got} instead."
    return said(message, param=param, code="invalid_type")


def value(param: str, got: str, supported: str) -> Fault:
    message = f"Invalid value: '{got}'. Supported values are: {supported}."
    return said(message, param=param, code="invalid_value")


def high(param: str, maximum: int, got: int) -> Fault:
    message = (
        f"Invalid '{param}': integer above maximum value. Expected a value <= {maximum}, but got {got} instead."
    )
    return said(message, param=param, code="integer_above_max_value")


def low(param: str, minimum: int, got: int) -> Fault:
    message = (
        f"Invalid '{param}': integer below minimum value. Expected a value >= {minimum}, but got {got} instead."
    )
    return said(message, param=param, code="integer_below_min_value")


def long(param: str, maximum: int, got: int) -> Fault:
    message = (
        f"Invalid '{param}': string too long. Expected a string with maximum length {maximum}, "
        f"but got a string with length {got} instead."
    )
    return said(message, param=param, code="string_above_max_length")


def many(param: str, maximum: int, got: int) -> Fault:
    message = (
        f"Invalid '{param}': too many properties. Expected an object with at most {maximum} properties, "
        f"but got an object with {got} properties instead."
    )
    return said(message, param=param, code="object_above_max_properties")


def cursor(after: str) -> Fault:
    return said(f"Invalid 'after': no object with id '{after}'.", param="after", code="invalid_value")


def no_file(file_id: str) -> Fault:
    return said(f"No such File object: {file_id}", param="id", status=404)


def no_batch(batch_id: str) -> Fault:
    return said(f"No batch found with id '{batch_id}'.", status=404)


def no_upload(upload_id: str) -> Fault:
    return said(f"No such Upload object: {upload_id}", param="upload_id", status=404)


def rows(table: list[Any]) -> list[Any]:
    """The rows of a table, named by their numbers: what they hold is too long for names."""
    return [pytest.param(*row, id=str(number)) for number, row in enumerate(table)]


def shown(answer: httpx.Response) -> Fault:
    """The fault that an answer shows, once its envelope is checked."""
    error = answer.json()["error"]
    assert set(answer.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert answer.headers["x-request-id"].startswith("req_")
    return answer.status_code, error["code"], error["param"], error["message"]
