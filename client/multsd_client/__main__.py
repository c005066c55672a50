"""`python -m multsd_client`: the command without an installed script."""

from multsd_client.cli import app

app(prog_name="multsd")
