"""What was measured becomes pages that people look at: HTML with plots, and Markdown."""
