"""A policy of a run as a folder to take away: weights, tokenizer, model card, GGUF, Modelfile."""
