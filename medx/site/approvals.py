"""Which studies a person has approved here, by their digests."""

import os
import pwd
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from medx import files
from medx.output import plain_text
from medx.site.policy import Asked, Policy, PolicyError, check, is_digest, shown

State = Literal["approved", "refused", "pending"]


class Approval(BaseModel):
    """What is known of a study: the hospital's decision, and the summary that a person was asked with."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    study: str
    state: State
    time: str = ""
    user: str = ""
    note: str = ""
    summary: str = ""


class Approvals:
    """The hospital's decisions in a folder, one file a study, by its digest; the last decision counts.

    A file that is garbled, of another study, or that other users may write to counts as refused.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def state(self, digest: str) -> State:
        """What was decided; raises PolicyError where ``digest`` is none."""
        return self.known(digest).state

    def decide(self, digest: str, approved: bool, note: str) -> None:
        """Approve or refuse durably, whatever was decided before; raises PolicyError, or OSError."""
        path = self._path(digest, ".json")
        decision = Approval(
            study=digest,
            state="approved" if approved is True else "refused",
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            user=_user(),
            note=note.encode(errors="replace").decode(),
            summary=self._summary(digest),
        )
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with files.replaced(path) as aside:
            aside.touch(mode=0o600)
            with aside.open("w", encoding="utf-8") as handle:
                handle.write(decision.model_dump_json(indent=1))
                handle.flush()
                os.fsync(handle.fileno())
        files.sync(self.folder)

    def ask(self, digest: str, summary: str) -> None:
        """Note that the study waits for a decision; the first summary stays. Raises PolicyError or OSError."""
        path = self._path(digest, ".pending")
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError), files.created(path, private=True) as aside:
            aside.write_text("".join(plain_text(line) + "\n" for line in summary.splitlines()))

    def listed(self) -> list[Approval]:
        """Every study that was asked for or decided on, by digest."""
        names = {path.stem for path in self.folder.glob("*") if path.suffix in (".json", ".pending")}
        return [self.known(name) for name in sorted(names) if is_digest(name)]

    def known(self, digest: str) -> Approval:
        """The decision on a study; raises PolicyError where ``digest`` is none."""
        try:
            with self._path(digest, ".json").open("rb") as handle:
                mode = os.fstat(handle.fileno()).st_mode | self.folder.stat().st_mode
                found = Approval.model_validate_json(handle.read())
        except FileNotFoundError:
            return Approval(study=digest, state="pending", summary=self._summary(digest))
        except (OSError, ValueError):
            return Approval(study=digest, state="refused", note="its file is garbled")
        if mode & 0o022:
            return Approval(study=digest, state="refused", note="other users may write to its file or folder")
        if found.study != digest or found.state == "pending":
            return Approval(study=digest, state="refused", note="its file is another's")
        return found

    def _summary(self, digest: str) -> str:
        with suppress(OSError, ValueError):
            return self._path(digest, ".pending").read_text(encoding="utf-8")
        return ""

    def _path(self, digest: str, suffix: str) -> Path:
        if not is_digest(digest):  # before it becomes a file's name
            raise PolicyError(f"study {shown(digest)}; accepted: a digest of 64 lowercase hex digits", ("studies",))
        return self.folder / (digest + suffix)


def admit(policy: Policy, approvals: Approvals, asked: Asked) -> None:
    """Return where the study keeps every rule and is approved; raises PolicyError else."""
    check(policy, asked)
    check_approved(policy, approvals, asked.study)


def check_approved(policy: Policy, approvals: Approvals, study: str) -> None:
    """Return where the study of this digest is approved, or listed; raises PolicyError else.

    A study that a person refused is not admitted where it is listed either.
    """
    known = approvals.known(study)
    listed = policy.approval == "listed" and study in policy.studies
    if known.state == "approved" or (known.state == "pending" and listed):
        return
    way = f"approve it with medx site approve KIT {study}"
    if known.state == "pending":
        raise PolicyError(f"policy: approval: pending: {way}", ("approval",))
    raise PolicyError(
        f"policy: approval: refused by this hospital; accepted: {way}", ("approval",)
    )  # its note stays here


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name  # not the environment's, which says what it likes
    except KeyError:
        return f"user {os.getuid()}"
