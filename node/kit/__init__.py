"""What a parser's author works with: scaffold, facts, checks, a pytest plugin, recordings.

scaffold (+ templates/) makes a new package; facts says what a parser is; plugin
gives its tests their fixtures.
"""
