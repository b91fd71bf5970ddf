"""How updates are summed: in the clear, or so that nobody sees a single one."""
