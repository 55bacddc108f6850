"""From anything that holds a picture to the pixels that the image tower reads."""
