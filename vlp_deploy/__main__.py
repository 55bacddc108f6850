"""`python -m vlp_deploy`: the `vlp` command without its console script."""

from vlp_deploy.cli import main

main()
