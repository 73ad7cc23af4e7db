"""One file for each fault of the host that we mend."""
