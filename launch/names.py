"""What may stand in a launch file's names: nothing that a shell or a cloud reads as more."""

import re

from gemma_train.errors import UserError

OPEN = "FILL-IN"  # no name of anything: it holds capitals
LABEL = r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?"  # RFC 1035, short enough for suffixes of ours and GKE's
VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
IMAGE = r"[a-z0-9][-A-Za-z0-9_./:]*(@sha256:[0-9a-f]{64})?"
PROJECT = r"[a-z][-a-z0-9]{4,28}[a-z0-9]"
ZONE = r"[a-z]+-[a-z]+[0-9]{1,2}-[a-z]"
FOLDER = r"gs://[a-z0-9][-a-z0-9_.]{1,220}[a-z0-9](/[-A-Za-z0-9_.]+)+"
REVISION = r"[A-Za-z0-9][-A-Za-z0-9_./~^]*"


def check_name(field: str, value: str, pattern: str, wanted: str) -> None:
    """Raise `UserError`, asking for what is `wanted`, unless the whole value fits the pattern."""
    if not re.fullmatch(pattern, value):
        told = "still open" if value == OPEN else repr(value)
        raise UserError(f"{field} is {told}: give {wanted}")
