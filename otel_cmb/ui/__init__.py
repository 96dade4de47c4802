"""Runs in a browser, live: a read-only Starlette application over a reader. See docs/api.md for its JSON."""
