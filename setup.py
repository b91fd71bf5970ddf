"""What pyproject.toml cannot say: a wheel carries ``conf`` and the studies, which lie beside the package, inside it."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
CARRIED = ("conf/**/*.yaml", "experiments/*/*.yaml", "experiments/**/*.json")


class WithData(build_py):
    """Copy them to where ``medx.schema.CONF`` looks first; an editable install finds them where they are."""

    def run(self) -> None:
        """Build."""
        super().run()
        if self.editable_mode:
            return
        for source in (path for pattern in CARRIED for path in HERE.glob(pattern)):
            target = Path(self.build_lib, "medx", source.relative_to(HERE))
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(source), str(target))


setup(cmdclass={"build_py": WithData})
