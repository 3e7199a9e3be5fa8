"""Every answer of the writer, kept beside the file that is being made, so that a stopped extraction goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from duet_unlearn.data.files import disk_errors
from duet_unlearn.errors import UserError
from duet_unlearn.queries.writer import Writer


class Ask(NamedTuple):
    """A prompt, and which time it is asked."""

    prompt: str
    turn: int = 0
    temperature: float = 0.0

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()[:20]


@dataclass
class Notes:
    """Answers by key. A line of the file is what one call of the writer gave, so that no call is half there."""

    path: Path
    settings: Mapping[str, Any]
    """The first line, written with the first answers: what all of them depend on."""
    answers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, *, settings: Mapping[str, Any]) -> Notes:
        """Go on with the notes at `path`, or begin them.

        Raises:
            UserError: they were begun with another model or other settings.
        """
        notes, rows = cls(path, settings), _whole_rows(path)
        begun = next(rows, dict(settings))
        for row in rows:
            notes.answers |= row
        if begun != dict(settings):
            other = ", ".join(name for name in settings if begun.get(name) != settings[name])
            raise UserError(
                f"{path}: was begun with another {other or 'setting'}",
                "give that command again, choose another --out, or delete the file",
            )
        return notes

    def ask(
        self,
        writer: Writer,
        asks: Sequence[Ask],
        *,
        seed: int,
        max_new_tokens: int,
        on_batch: Callable[[int], None] = lambda done: None,
    ) -> list[str]:
        """An answer to each ask, in order; only what is not known yet is asked. All have the same temperature."""
        todo = [ask for ask in dict.fromkeys(asks) if ask.key not in self.answers]
        for start in range(0, len(todo), writer.batch_size):
            batch = todo[start : start + writer.batch_size]
            written = writer.write(
                [ask.prompt for ask in batch],
                temperature=batch[0].temperature,
                seed=(seed + int(batch[0].key[:7], 16)) % 2**31,
                max_new_tokens=max_new_tokens,
            )
            found = {ask.key: text for ask, text in zip(batch, written, strict=True)}
            self._append(found)
            self.answers |= found
            on_batch(len(asks) - len(todo) + start + len(batch))
        return [self.answers[ask.key] for ask in asks]

    def _append(self, row: Mapping[str, Any]) -> None:
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                rows = [row] if file.tell() else [self.settings, row]
                file.write("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows))


def _whole_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file that were written to their end; a torn last one is cut off."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with disk_errors(path), path.open("r+b") as file:
            file.truncate(len(whole))
    yield from (json.loads(line) for line in whole.decode("utf-8").split("\n") if line)
