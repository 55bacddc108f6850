"""Checkpoints of the methods' official code become prompt checkpoints; nothing is executed."""
