"""`python -m mergevq_platform.cli`, where the console command is not installed."""

from mergevq_platform.cli import main

main()
