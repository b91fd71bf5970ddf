"""Pages of the site that stand elsewhere in the repository, and one for each group, made of its options."""

import re
from pathlib import Path

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "experiments/membership/README.md",
    "experiments/reconstruction/README.md",
    "experiments/least_squares/README.md",
    "experiments/personal/README.md",
    "experiments/fedbuff/README.md",
)
LINK = re.compile(r"\]\(([\w./-]+)")
GROUPS = {
    "dataset": "Where images and labels come from; each is verified before use.",
    "partition": "How the records are dealt to the hospitals.",
    "model": "What is trained. None has BatchNorm, which couples records.",
    "trainer": "A hospital's local steps; the option follows the model.",
    "privacy": "Who adds which noise, and what is proved of it.",
    "federation": "How many hospitals and rounds, and what the server makes of their updates.",
    "aggregation": "How updates are summed, and who sees one alone.",
    "personalisation": "A model for each hospital beside the shared one, and what that costs.",
    "runtime": "Where the hospitals run.",
    "tracking": "Where runs are recorded.",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add them, and with them what they link to."""
    for path in with_links([ROOT / name for name in PAGES]):
        name = str(path.relative_to(ROOT))
        # The site's root is docs/, where these pages seem to lie.
        text = path.read_text().replace("](docs/", "](") if path.parent == ROOT else path.read_text()
        files.append(File.generated(config, "index.md" if name == "README.md" else name, content=text))
    for group, purpose in GROUPS.items():
        files.append(File.generated(config, f"components/{group}.md", content=page(group, purpose)))
    return files


def with_links(paths: list[Path]) -> list[Path]:
    """These files and, as far as they lie outside ``docs``, those that they and theirs link to."""
    for path in paths:  # which grows meanwhile
        if path.suffix == ".md":
            linked = [(path.parent / name).resolve() for name in LINK.findall(path.read_text())]
            inside = [each for each in linked if each.is_file() and ROOT in each.parents]
            paths += [each for each in dict.fromkeys(inside) if ROOT / "docs" not in each.parents and each not in paths]
    return paths


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
