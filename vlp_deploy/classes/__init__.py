"""From class names to what an image graph is given beside the image, for every method."""
