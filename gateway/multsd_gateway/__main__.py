"""`python -m multsd_gateway`."""

from multsd_gateway.cli import app

app()
