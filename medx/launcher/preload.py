"""What the fork server imports, once for all jobs; nothing here computes."""

import medx.job
import medx.launcher.sweep
import medx.trainer.module  # noqa: F401
