"""What samcorrect adds to the host over HTTP, and how it is served."""
