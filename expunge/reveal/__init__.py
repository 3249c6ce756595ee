"""Reveal: the model writes its own forget data, asked by instructions that are searched for."""
