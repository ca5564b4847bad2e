"""Folders that a stage which measures its checkpoints keeps until it is finished."""

BEST = "best"
"""The best of the checkpoints."""
DEV_ANSWERS = "dev-answers"
"""Answers by which one of them is being measured."""
