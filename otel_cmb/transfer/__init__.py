"""Runs in from OTLP files, out to OTLP receivers and files, and through today's tables again."""
