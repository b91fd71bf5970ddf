"""Where clients run: in this process, or on Ray."""
