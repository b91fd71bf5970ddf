"""``medx dossier``: what an ethics board or a data protection officer must know of a run, on one page."""
