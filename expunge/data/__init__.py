"""Examples, their readers and roles, built-in texts, generators."""
