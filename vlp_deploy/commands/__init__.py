"""One file a verb: Typer-annotated plain functions, called through `vlp_deploy.cli`."""
