"""Metrics: of answers in words, of likelihood, and the scores made from them."""
