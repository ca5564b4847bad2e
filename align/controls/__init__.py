"""Control arms of the search: other ways to come to pairs of single tokens, at a known cost."""
