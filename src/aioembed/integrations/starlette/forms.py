"""A multipart form that has arrived, as fields: files as bytes, the rest as text.

Starlette's own form goes through a temporary file and several awaits for each part, which pays
for forms that are larger than memory. Bodies here are capped, and the images are wanted whole.
"""

from __future__ import annotations

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from .problems import Problem

__all__ = ["Field", "form_fields"]

Field = str | bytes

_MOST_PARTS = 1000


def form_fields(body: bytes, content_type: str) -> dict[str, list[Field]]:
    """Return the fields of a form, each with its values in the order of the body.

    Args:
        body: All of it.
        content_type: The request's, with the boundary.

    Raises:
        Problem: It is no such form.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise _malformed("its content type names no boundary")
    form = _Form()
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": form.begin,
                "on_header_field": form.add_name,
                "on_header_value": form.add_value,
                "on_header_end": form.end_header,
                "on_headers_finished": form.end_headers,
                "on_part_data": form.add_data,
                "on_part_end": form.end,
                "on_end": form.complete,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as exc:
        raise _malformed(str(exc)) from exc
    if not form.is_complete:
        raise _malformed("it ends before its last boundary")
    return form.fields


class _Form:
    """Puts together what the parser finds."""

    def __init__(self) -> None:
        self.fields: dict[str, list[Field]] = {}
        self.is_complete = False
        self._parts = 0

    def begin(self) -> None:
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise _malformed(f"more than {_MOST_PARTS} parts")
        self._header = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._data: list[memoryview] = []

    def add_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise _malformed("a part has no name in its Content-Disposition")
        self._name = options[b"name"].decode("utf-8", "replace")
        self._is_file = b"filename" in options

    def add_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(memoryview(data)[start:end])

    def end(self) -> None:
        content = b"".join(self._data)
        value = content if self._is_file else content.decode("utf-8", "replace")
        self.fields.setdefault(self._name, []).append(value)

    def complete(self) -> None:
        self.is_complete = True


def _malformed(why: str) -> Problem:
    return Problem(400, f"a malformed form: {why}", code="invalid_form")
