"""Which of the written questions are kept: as evenly over requests and chunks as they allow, no two alike."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from duet_unlearn.queries.words import SIMILAR, alike

GOLDEN = (5**0.5 - 1) / 2


def spread(groups: Iterable[Sequence[int]]) -> list[int]:
    """All members of the groups in an order whose every beginning is even over the groups and along each of them.

    Along a group: by the fractional part of the place times the golden ratio, which leaves no large gaps.
    """
    queues = [deque(sorted(group, key=lambda item: (group.index(item) * GOLDEN) % 1)) for group in groups]
    found = []
    while queues := [queue for queue in queues if queue]:
        found += [queue.popleft() for queue in queues]
    return found


@dataclass
class Choice:
    """Questions by chunk, and those that are too much like one of them."""

    kept: list[tuple[int, str]] = field(default_factory=list)
    """(chunk, question) in the order in which they were chosen."""
    alike: list[tuple[int, str]] = field(default_factory=list)

    def take(self, chunk: int, questions: deque[str]) -> bool:
        """Keep the chunk's first question that is like no other; False where it has none."""
        while questions:
            question = questions.popleft()
            if not any(alike(question, other) >= SIMILAR for _, other in self.kept):
                self.kept.append((chunk, question))
                return True
            self.alike.append((chunk, question))
        return False


def choose(written: Mapping[int, Sequence[str]], groups: Sequence[Sequence[int]], *, count: int) -> Choice:
    """`count` questions at most: round and round the groups, and in each round the chunks of a group."""
    choice = Choice()
    left = {chunk: deque(questions) for chunk, questions in written.items()}
    turns = [deque(chunk for chunk in group if chunk in left) for group in groups]
    while len(choice.kept) < count and (turns := [turn for turn in turns if turn]):
        for turn in turns:
            while turn and len(choice.kept) < count:
                chunk = turn.popleft()
                if choice.take(chunk, left[chunk]):
                    turn.append(chunk)
                    break
    return choice
