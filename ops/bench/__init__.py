"""What a turn costs, beside loops that promise nothing, all measured in one run: `make bench`."""
