"""How a record that cannot be used is reported, by readers and by what they read with."""


class BadRecord(Exception):
    """A record that cannot be used. Streams skip it, count it by ``reason`` and name it in the log.

    Attributes:
        reason: the kind of fault in a few fixed words ("truncated image", "not UTF-8"), the same for every record with
            that fault, so that faults can be counted.
        name: where the record is ("shard-000003.tar/000012.jpg"), so that a person can find it.
        detail: what exactly is wrong, free text.
    """

    def __init__(self, reason: str, name: str, detail: str = "") -> None:
        super().__init__(reason, name, detail)
        self.reason = reason
        self.name = name
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}" + (f" ({self.detail})" if self.detail else "")
