"""Why a party refuses a message of the secure-aggregation protocol."""

from enum import StrEnum

from medx.schema import MedxError


class Reason(StrEnum):
    """One code for each way in which a message can be wrong."""

    MALFORMED = "malformed"
    STAGE = "stage"
    ROSTER = "roster"
    POSITION = "position"
    REPLAY = "replay"
    MODEL = "model"
    SENDER = "sender"
    DUPLICATE = "duplicate"
    SIGNATURE = "signature"
    MISSING_SIGNATURES = "missing_signatures"
    SUBSTITUTED_KEY = "substituted_key"
    REUSED_KEY = "reused_key"
    CIPHERTEXT = "ciphertext"
    LENGTH = "length"
    ALIVE_AND_DROPPED = "alive_and_dropped"
    SURVIVOR_SETS = "survivor_sets"
    SECOND_UNMASK = "second_unmask"
    SHARE = "share"
    TOO_FEW = "too_few"


class ProtocolError(MedxError):
    """A message that is refused: ``sender`` is a client's number or "server", ``reason`` the code of the fault."""

    def __init__(self, reason: Reason, sender: int | str, what: str) -> None:
        name = sender if isinstance(sender, str) else f"client {sender}"
        super().__init__(f"secure aggregation refused {name} ({reason}): {what}")
        self.reason = reason
        self.sender = sender


class RoundAborted(ProtocolError):
    """Too few clients are left: no sum was opened and the model stays as it was."""

    def __init__(self, stage: str, left: int, needed: int) -> None:
        super().__init__(Reason.TOO_FEW, "server", f"{left} clients left after stage {stage}, {needed} needed")
        self.stage = stage


class EncodingError(MedxError):
    """A vector that cannot be put on the grid."""


class JournalError(MedxError):
    """A journal of a client's answers that cannot be used; without it the client answers nothing."""
