"""Real servers for stories, tests and measurements, started and stopped from Python.

Their jars come from Maven once and are kept in ``.cache/``.  `maven.Missing` is raised
where Java, Maven or the jars cannot be had.
"""
