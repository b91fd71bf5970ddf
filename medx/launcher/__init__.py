"""Several runs in processes of their own: the jobs of a sweep, by Hydra's launcher, and those of a study."""
