"""One TaskConfig for each public model name."""
