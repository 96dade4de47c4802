"""Real databases, sockets and faults for the tests. Import as `from support import postgres`."""
