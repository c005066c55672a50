"""What can go wrong with a request, one exception per meaning; the adapter turns them into Triton's codes."""


class InvalidRequestError(ValueError):
    """A field of the request is not what it should be. Message: "field: expected ..., found ..."."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class CancelledRequestError(Exception):
    """The client went away, or asked to stop."""


class OverloadedError(Exception):
    """As much waits as may."""


class DeadlineError(Exception):
    """The request cannot be, or was not, done in the time that it had."""

    def __init__(self, message: str) -> None:
        super().__init__(f"deadline_s: {message}")


class NetworkError(Exception):
    """A network answered with an error: its own code and message."""

    def __init__(self, network: str, code: int, message: str) -> None:
        super().__init__(f"{network}: {message}")
        self.code = code


class SilentNetworkError(NetworkError):
    """A network did not answer in time."""


class NotFiniteError(ArithmeticError):
    """A network gave a value that is not finite, as half precision does where it overflows."""

    def __init__(self, network: str, where: str) -> None:
        super().__init__(f"{network}: expected finite values, found others {where}")
