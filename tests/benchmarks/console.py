"""Where the benchmarks print."""

from rich.console import Console

TABLE_WIDTH = 132


def wide_console() -> Console:
    """The terminal, or where there is none, such as in a log, lines that hold the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=TABLE_WIDTH)
