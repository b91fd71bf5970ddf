"""Local training: gradient modes, the private step, sampling."""
