"""What is written and read: checkpoints, bundles, and the records they share."""
