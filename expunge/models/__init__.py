"""Loading, layout, activations, statistics, generation and training of chat models."""
