"""What the fork server imports, once for all jobs; nothing here computes."""

import gc

gc.disable()  # thousands of modules leave it nothing to collect; looking is a tenth of the time
import medx.job  # noqa: E402
import medx.launcher.sweep  # noqa: E402
import medx.trainer.module  # noqa: E402, F401

gc.enable()
gc.freeze()  # nor have the jobs to look through what all of them share
