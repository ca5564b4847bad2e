"""Questions and answers that a model makes of texts: plurality, rewriting, reversal, revision."""
