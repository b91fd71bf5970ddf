"""Studies of attacks that lie in folders: who was among the records, and what a server sees again of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ValidationError

from medx.attacks.membership import ATTACKS, STUDY_FILE, Bound, Found, Membership, MembershipStudy
from medx.attacks.pictures import NAMES, member_roc
from medx.attacks.sought import MEAN, NEAREST, RECONSTRUCTION_FILE, Reconstruction, Sought
from medx.figures import COLOURS, FAINT, INK, MARKERS, ROOM, Kept, Picture, Shown, drawing, finish, legend
from medx.released import Record
from medx.report.cells import DASH, Row, Table, number
from medx.schema import ConfigError

PICTURE = "reconstruction"  # of the images, where it lies beside the numbers
T = TypeVar("T", bound=Record)


@dataclass(frozen=True)
class MembershipFound:
    """What ``medx membership`` has left; ``name`` is that of its tables and figures."""

    name: str
    study: MembershipStudy
    kind: Literal["membership"] = "membership"

    def tables(self) -> Iterator[Table]:
        """A row for each setting and attack, on all records and on the most exposed."""
        rows = [
            _claim(setting, each) | _found(row)
            for setting, each in self.study.settings.items()
            for row in each.found
            if not row.whose.startswith("hospital")
        ]
        runs = sorted({each.runs for each in self.study.settings.values()})
        note = (
            f"By {' or '.join(map(str, runs))} shadow runs of each setting on halves of the same records; whoever "
            "attacks has the final model alone. Found: of records that were trained on, how many are told where 1 in "
            "1000, or 1 in 100, of the others is wrongly accused. Bounds are lower bounds for ε at 95 % "
            "confidence (by rates nominally), of the most that so many trials could prove. A record that is out has "
            "another in its place, so what they must not exceed is the ε of one replaced. The most exposed are the "
            "hundredth part that showed most in the first half of the runs, attacked in the second."
        )
        yield Table.of(self.name, self.study.title, note, rows)

    def pictures(self) -> Iterator[Picture]:
        """The ROC of the first attack on logarithmic scales."""
        attack = next(iter(ATTACKS))
        drawn = member_roc(attack, self.study.title, self.study.settings)
        caption = f"Members told from others by {NAMES[attack]}, both rates on logarithmic scales; half are members."
        yield Picture(f"{self.name}_{attack}", drawn.title, caption, drawn.figure)


def _claim(setting: str, each: Membership) -> Row:
    data = {"setting": setting, "claimed": each.claimed, "replaced": each.replaced, "test_auc": each.test_auc}
    shown = {"setting": setting, "claimed ε": _told(each.claimed), "ε of one replaced": _told(each.replaced),
             "test AUC": number(each.test_auc)}  # fmt: skip
    return Row(data, shown)


def _found(row: Found) -> Row:
    data = row.model_dump(include={"attack", "whose", "records", "auc", "true_at_0_1", "true_at_1"})
    data |= {f"{name}_{key}": getattr(getattr(row, name), key) for name in ("by_rates", "by_pairs")
             for key in ("epsilon", "ceiling")}  # fmt: skip
    shown = {
        "attack": NAMES[row.attack],
        "records": f"{row.whose} ({row.records})",
        "AUC": number(row.auc),
        "found at 0.1 %": number(row.true_at_0_1, True, 2),
        "found at 1 %": number(row.true_at_1, True, 2),
        "lower bound by rates": _bound(row.by_rates),
        "by pairs": _bound(row.by_pairs),
    }
    return Row(data, shown)


def _bound(bound: Bound) -> str:
    return f"{bound.epsilon:.2f} of {bound.ceiling:.2f}"


def _told(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


@dataclass(frozen=True)
class ReconstructionFound:
    """What ``experiments.reconstruction`` has left in ``folder``."""

    name: str
    study: Reconstruction
    folder: Path
    kind: Literal["reconstruction"] = "reconstruction"

    def tables(self) -> Iterator[Table]:
        """How like the images what was found is, by what was attacked; and who is told from a sum without noise."""
        rows = []
        for condition, records in dict.fromkeys((each.condition, each.records) for each in self.study.images):
            part = [each for each in self.study.images if (each.condition, each.records) == (condition, records)]
            attacked = condition not in (MEAN, NEAREST)
            epsilon = _told(part[0].epsilon) if attacked else DASH
            row = Row({"has": condition, "records": records, "epsilon": part[0].epsilon},
                      {"what the server has": condition, "ε": epsilon, "records": str(records)})  # fmt: skip
            rows.append(row | _likeness(part))
        note = (
            "Of a hospital with so few records, by inverting gradients. PSNR in dB with white as 1, SSIM of Wang et "
            "al. (2004): the higher, the liker. Of several records, or images, the range. The mean image is of other "
            "images, and the nearest is the likest of all others, which no attacker can choose: what is no liker than "
            "these was not found. A search that fails proves nothing."
        )
        yield Table.of(self.name, "What the server sees again of an image", note, rows)
        if self.study.sums:
            yield self._sums()

    def _sums(self) -> Table:
        rows = []
        for each in self.study.sums:
            shown = {"records in the sum": str(each.records), "median gain, dB": f"{each.gain:.1f}",
                     "best": f"{each.best_gain:.1f}", "median gain of nobody": f"{each.gain_of_nobody:.1f}",
                     "AUC": f"{each.auc:.2f}"}  # fmt: skip
            rows.append(Row(each.model_dump(), shown))
        note = (
            "A secure sum that has no noise, attacked as if it were one hospital's: by how many dB the records in it "
            "are found better than the mean image is like them, beside records that are not in it. AUC: how often one "
            "that is in it has the larger gain; .5 tells nothing."
        )
        return Table.of(f"{self.name}_sums", "What a secure sum without noise hides", note, rows)

    def pictures(self) -> Iterator[Shown]:
        """The images where they lie in the folder, and how like the record they are."""
        if all((self.folder / f"{PICTURE}.{ending}").exists() for ending in ("png", "svg")):
            drawn = all("dataset=phantom" in str(self.study.options.get(size)) for size in ("small", "large"))
            caption = "SYNTHETIC images. " * drawn + "What was sought, what was found of it, and what no attack gives."
            yield Kept(PICTURE, "What the server sees again", caption, self.folder)
        single = [each for each in self.study.images if each.records == 1]
        conditions = [name for name in dict.fromkeys(each.condition for each in single) if name not in (MEAN, NEAREST)]
        if not conditions:
            return
        with drawing(size=(4.7, 1.4 + 0.3 * len(conditions))) as (figure, (axes,)):
            figure.set_layout_engine("constrained", w_pad=ROOM)
            for index, pixels in enumerate(dict.fromkeys(each.pixels for each in single)):
                own = [each for each in single if each.pixels == pixels]
                colour = COLOURS[index % len(COLOURS)]
                found = [each for each in own if each.condition in conditions]
                axes.plot([each.psnr for each in found], [conditions.index(each.condition) for each in found],
                          MARKERS[index % len(MARKERS)], color=colour, label=f"{pixels} pixels")  # fmt: skip
                for each in own:
                    if each.condition == MEAN:
                        axes.axvline(each.psnr, color=colour, linestyle="--", linewidth=1)
            axes.plot([], [], color=INK, linestyle="--", linewidth=1, label="mean image of others")
            axes.set_yticks(range(len(conditions)), conditions, fontsize=7.5)
            axes.set(xlabel="PSNR of what was found, dB", ylim=(len(conditions) - 0.5, -0.5))
            axes.grid(False, axis="y")
            axes.hlines(range(len(conditions)), *axes.get_xlim(), color=FAINT, linewidth=0.5, alpha=0.5)
            legend(axes)
            caption = "Of a hospital's one record. Left of a dashed line it is less like it than the mean of others is."
            yield finish(figure, f"{self.name}_psnr", "What the server sees again of an image", caption)


def _likeness(part: Sequence[Sought]) -> Row:
    row = Row({}, {})
    for pixels in dict.fromkeys(each.pixels for each in part):
        psnr, ssim = ([getattr(each, key) for each in part if each.pixels == pixels] for key in ("psnr", "ssim"))
        data = {f"{name}_{end.__name__}_{pixels}": end(values) for name, values in (("psnr", psnr), ("ssim", ssim))
                for end in (min, max)}  # fmt: skip
        row |= Row(data, {f"{pixels} pixels: PSNR": _range(psnr, 1), f"{pixels} pixels: SSIM": _range(ssim, 2)})
    return row


def _range(values: Sequence[float], digits: int) -> str:
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low} to {high}"


def read_all(folders: Sequence[Path]) -> list[MembershipFound | ReconstructionFound]:
    """What lies in these folders; raises ConfigError where one has nothing, or something else."""
    found: list[MembershipFound | ReconstructionFound] = []
    for folder in folders:
        members = _read(MembershipStudy, folder / STUDY_FILE)
        images = _read(Reconstruction, folder / RECONSTRUCTION_FILE)
        if members is None and images is None:
            raise ConfigError(f"attacks={folder}: has no {STUDY_FILE} and no {RECONSTRUCTION_FILE}")
        number = sum(each.kind == "membership" for each in found)
        if members is not None:
            found.append(MembershipFound("membership" + f"_{number + 1}" * bool(number), members))
        if images is not None:
            number = sum(each.kind == "reconstruction" for each in found)
            found.append(ReconstructionFound("reconstruction" + f"_{number + 1}" * bool(number), images, folder))
    return found


def _read(kind: type[T], path: Path) -> T | None:
    if not path.exists():
        return None
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise ConfigError(f"{path}: {where}: {first['msg']}") from None
