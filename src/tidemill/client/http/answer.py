"""The JSON objects of an answer, which show what another service lacks."""

from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from tidemill.client.errors import OtherService

M = TypeVar("M", bound=BaseModel)


def plain(value: Any) -> Any:
    """A value of an answer for users: its objects are plain dictionaries."""
    if isinstance(value, Answer):
        return {field: plain(each) for field, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list) else value


class Answer(dict[str, Any]):
    """A JSON object of the service, also one inside another; every access may raise `OtherService`."""

    def __init__(self, fields: dict[str, Any], status: int, origin: str, path: str) -> None:
        """Hold the fields of an object in an answer from this address."""
        super().__init__(fields)
        self._status, self._origin, self._path = status, origin, path

    def __missing__(self, field: str) -> NoReturn:
        raise self._other_service(f", without {field}")

    def objects(self, field: str) -> list["Answer"]:
        """The objects of a list."""
        found = self[field]
        if not isinstance(found, list) or not all(isinstance(each, Answer) for each in found):
            raise self._other_service(f": {field} is no list of objects")
        return found

    def read(self, model: type[M]) -> M:
        """The object as a model."""
        try:
            return model.model_validate(self)
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, fault["loc"]))
            raise self._other_service(f": {field}: {fault['msg']}") from error

    def _other_service(self, why: str) -> OtherService:
        return OtherService(self._status, self._origin, f"{self._status} at {self._path}{why}")
