"""Pages of the site that stand elsewhere in the repository, and one for each group, made of its options."""

from pathlib import Path

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "experiments/reference_report/README.md",
         "experiments/frontier/README.md", "experiments/frontier/protocol.md")  # fmt: skip
THEIR_FILES = ("experiments/reference_report/study.yaml", "experiments/reference_report/results.csv",
               "experiments/frontier/search.csv")  # fmt: skip
GROUPS = {
    "dataset": "Where images and labels come from; each is verified before use.",
    "partition": "How the records are dealt to the hospitals.",
    "model": "What is trained. None has BatchNorm, which couples records.",
    "trainer": "A hospital's local steps; the option follows the model.",
    "privacy": "Who adds which noise, and what is proved of it.",
    "federation": "How many hospitals and rounds, and what the server makes of their updates.",
    "aggregation": "How updates are summed, and who sees one alone.",
    "runtime": "Where the hospitals run.",
    "tracking": "Where runs are recorded.",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add them."""
    for name in (*PAGES, *THEIR_FILES):
        text = (ROOT / name).read_text().replace("](docs/", "](")
        files.append(File.generated(config, "index.md" if name == "README.md" else name, content=text))
    for group, purpose in GROUPS.items():
        files.append(File.generated(config, f"components/{group}.md", content=page(group, purpose)))
    return files


def page(group: str, purpose: str) -> str:
    """A group's options: each with its yaml, whose keys are the fields of its class, and what the class says."""
    parts = [f"# {group}", purpose, f"Choose with `{group}=OPTION`, set with `{group}.KEY=VALUE`."]
    shown: set[str] = set()
    for path in sorted((ROOT / "conf" / group).glob("[!_]*.yaml")):
        text = path.read_text()
        content = yaml.safe_load(text) or {}
        target = content.get(group, content).get("_target_") or shared_target(path.parent)
        parts += [f"## {path.stem}", f"```yaml\n{text.strip()}\n```"]
        if target is not None and target not in shown:  # options may share a class
            parts.append(f"::: {target}\n    options:\n      heading_level: 3\n      show_root_toc_entry: false")
            shown.add(target)
    return "\n\n".join(parts) + "\n"


def shared_target(folder: Path) -> str | None:
    """The class that the options of a group share."""
    for path in folder.glob("_base*.yaml"):
        if target := (yaml.safe_load(path.read_text()) or {}).get("_target_"):
            return str(target)
    return None
