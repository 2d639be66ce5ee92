"""Real servers for tests, started and stopped from Python."""
