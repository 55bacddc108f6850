"""Training: methods, data, loop. Needs the `train` extra; importing this package alone does not."""
