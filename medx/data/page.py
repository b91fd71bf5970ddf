"""The findings as one page that loads nothing from elsewhere, with a contact sheet; no name of a file or a patient."""

import base64
import io
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from medx.data.findings import Findings
from medx.data.look import SHOWN, THUMB, Records, readable
from medx.dataset.labels import strata
from medx.dataset.table import SPLITS

TEMPLATES = Path(__file__).parent / "templates"


def as_page(title: str, found: Findings, records: Records | None) -> str:
    """HTML; without records, of data that could not be looked at, there is no sheet."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    sheets = {} if records is None else contact_sheets(records)
    return environment.get_template("check.html.j2").render(title=title, found=found, sheets=sheets, splits=SPLITS)


def contact_sheets(records: Records) -> dict[str, str]:
    """One picture a class, of a few of its images in a row, as a data address."""
    rows: dict[str, list[np.ndarray]] = {}
    kinds, names = strata(records.labels), (*records.class_names, "none of them")
    for row, look in readable(records):
        if look.thumb is not None:
            rows.setdefault(names[kinds[row]], []).append(look.thumb)
    return {name: _address(thumbs) for name, thumbs in sorted(rows.items())}


def _address(thumbs: list[np.ndarray]) -> str:
    sheet = np.full((THUMB, SHOWN * (THUMB + 4), 3), 255, np.uint8)
    for place, thumb in enumerate(thumbs[:SHOWN]):
        sheet[:, place * (THUMB + 4) : place * (THUMB + 4) + THUMB] = thumb
    file = io.BytesIO()
    Image.fromarray(sheet[:, : len(thumbs) * (THUMB + 4)]).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
