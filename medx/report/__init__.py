"""From a study's description to runs, tables, figures and one page."""
