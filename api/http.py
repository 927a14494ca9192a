"""The protocol of the server: as uvicorn has it, but what is no HTTP is answered like every other fault."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tidemill.api import errors
from tidemill.schemas import ids


class Protocol(HttpToolsProtocol):
    """One connection."""

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no HTTP, and close the connection; the reason may quote them and is not said."""
        del msg
        content = errors.encode(errors.invalid("The request is not valid HTTP.").body)
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            f"content-length: {len(content)}\r\nx-request-id: {ids.new_request_id()}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + content)
        self.transport.close()
