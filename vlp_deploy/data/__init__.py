"""Labelled images: folders, tables and split files become samples in splits."""
