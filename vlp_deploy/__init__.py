"""vlp-deploy: tuned CLIP prompts as fast, torch-free classifiers."""

__version__ = "0.1.0"
