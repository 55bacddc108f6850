"""Any number of images: where they come from, how they are read, where answers go."""
