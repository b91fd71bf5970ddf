"""What of a report is committed: ``experiments/STUDY/results.csv``, its README, and the project's results table."""

from pathlib import Path

from medx.report.page import Report, render, write_csv
from medx.report.readme import BEGIN, results_block, update, with_block


def publish(report: Report, folder: Path, readme: Path) -> None:
    """Write the study's ``results.csv`` and ``README.md``, and the table in the project's README if it has one."""
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / "results.csv"
    write_csv(report.frame, results)
    text = render(report, "experiment.md.j2")
    (folder / "README.md").write_text(with_block(text, results_block(results), "experiment.md.j2"))
    if report.name == "reference_report" and readme.exists() and BEGIN in readme.read_text():
        update(readme, results)
