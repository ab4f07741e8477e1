"""A run: `solve` makes one, `loop` its steps, `trajectory` reads it back, `resume` continues it."""
