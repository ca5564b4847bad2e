"""Verifiers: what a completion's text is worth.

`exact` reads an answer by a pattern, `math` compares mathematics (extra `math`), `choice` reads a
letter, `code` runs unit tests in a sandbox, `callable` wraps a function. `base` is the protocol;
any object that follows it will do.
"""
