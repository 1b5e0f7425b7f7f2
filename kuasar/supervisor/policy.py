"""When a worker that died is started again. Pure arithmetic, no clock and no process.

Never gives up and never spins: the first few short lives cost nothing, so that a kill is repaired at once even when it
comes twice; after that the pause doubles up to a cap. Living pays for dying: every :data:`SECONDS_A_DEATH` of a life
take one death off the score, and :data:`HEALTHY_SECONDS` take all. So a worker that works and is killed now and then is
started again at once, however often that happens, and one that dies sooner than it can pay (a crash loop) is not.
"""

from __future__ import annotations

from dataclasses import dataclass

HEALTHY_SECONDS = 10.0
"""A life at least this long counts as a success."""
SECONDS_A_DEATH = 2.0
"""What a life must have to pay for one death. A start costs some 10 ms: one every two seconds harms nobody."""
FREE_RESTARTS = 3
"""Deaths that were not paid for and are followed by an immediate restart."""
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 30.0


def pause_after(short_lives: int) -> float:
    """Seconds until the next start, after so many short lives in a row."""
    doublings = short_lives - FREE_RESTARTS - 1
    if doublings < 0:
        return 0.0
    return min(FIRST_PAUSE * 2.0 ** min(doublings, 32), LONGEST_PAUSE)


@dataclass
class RestartPolicy:
    """The score of one worker."""

    short_lives: int = 0
    """In a row until now, less what longer ones have paid for."""

    def died(self, lived: float) -> float:
        """Note a death after ``lived`` seconds and give the pause before the next start, in seconds."""
        if lived >= HEALTHY_SECONDS:
            self.short_lives = 0
            return 0.0
        self.short_lives = max(0, self.short_lives - int(lived / SECONDS_A_DEATH)) + 1
        return pause_after(self.short_lives)

    def forgive(self) -> None:
        """An operator starts it by hand: begin anew."""
        self.short_lives = 0
