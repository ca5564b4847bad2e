"""Commands of `align` that stand in files of their own."""
