"""What a hospital keeps of its own model from round to round: files beside its run, never sent and never tracked."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from medx.model.storage import read_tensors, write_tensors
from medx.trainer.state import ModelState

KEEP = 3  # of the rounds that it was in: the last may be asked for again, and from the checkpoint before the last


@dataclass(frozen=True)
class Kept:
    """The model after a round, and the running average of it."""

    state: ModelState
    average: ModelState


def hospital_folder(run: Path, client: int) -> Path:
    """Where what is a hospital's alone lies in a run's folder."""
    return run / "hospitals" / f"client_{client:04d}"


def kept_before(folder: Path, number: int) -> Kept | None:
    """What was kept in the last round before ``number``; None where there is none."""
    earlier = [(found, path) for found, path in _rounds(folder) if found < number]
    if not earlier:
        return None
    tensors, metadata = read_tensors(max(earlier)[1])
    order = metadata["order"].split(",")  # safetensors sorts by name; a layout is in the module's order
    parts = {
        part: ModelState.of_tensors({name: tensors[f"{part}/{name}"] for name in order if f"{part}/{name}" in tensors})
        for part in ("state", "average")
    }
    return Kept(**parts)


def keep(folder: Path, number: int, kept: Kept) -> None:
    """Write what round ``number`` ended in; of the rounds that it was in, the last ``KEEP`` stay."""
    folder.mkdir(parents=True, exist_ok=True)
    state, average = kept.state.tensors(), kept.average.tensors()
    tensors = {f"state/{name}": t for name, t in state.items()} | {f"average/{name}": t for name, t in average.items()}
    write_tensors(folder / f"kept_{number:05d}.safetensors", tensors, {"order": ",".join(state)})
    later = [path for found, path in _rounds(folder) if found > number]  # of rounds that are done again
    older = [path for found, path in sorted(_rounds(folder)) if found <= number][:-KEEP]
    for path in (*later, *older):
        path.unlink()


def _rounds(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.glob("kept_*.safetensors"):
        yield int(path.stem.removeprefix("kept_")), path
