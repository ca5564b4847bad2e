"""Data that teach a model to say that it does not know: rows for SFT, pairs for DPO."""
