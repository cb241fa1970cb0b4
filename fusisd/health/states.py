"""The life of a check as a table: what one more result makes of a target's state. Pure.

A result becomes an event by counting (`event_of`), the event leads from phase to phase (`TABLE`), a phase says what the
check's state is, how soon the next probe comes, and no more. Only `fall` failures in a row lead down and only `rise`
passes in a row lead up. Flap damping makes the way up longer and never the way down: a target that fell more than
`FREE_FALLS` times within `WINDOW_S` must also have passed for `hold_s`, which doubles with each further fall. (BGP's
route flap damping, RFC 2439, with a window that an operator can count in place of a penalty that decays.)
A probe that could not be made is no event: it changes no phase, but is told as the reason.
Does not: read a clock, probe, or report.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from fusisd.drawing import OUTSIDE, drawn
from fusisd.model import CheckSettings, CheckState, Health

WINDOW_S = 300.0
FREE_FALLS = 3
HOLD_S = 5.0
HOLD_MAX_S = 60.0


class Phase(Enum):
    """Where a check is between two results."""

    NEW = "new"
    UP = "up"
    FAILING = "failing"
    DOWN = "down"
    RISING = "rising"
    HELD = "held"


class Event(Enum):
    """What one more result means once it was counted."""

    PASS = "pass"
    RISEN = "risen"
    TOO_SOON = "too soon"
    FAIL = "fail"
    FALLEN = "fallen"


MEANING = {
    Event.PASS: "a pass, fewer than rise in a row",
    Event.RISEN: "rise passes in a row",
    Event.TOO_SOON: "rise passes in a row, but it fell so often that it must pass for longer",
    Event.FAIL: "a failure, fewer than fall in a row",
    Event.FALLEN: "fall failures in a row",
}

TABLE = {
    (Phase.NEW, Event.PASS): Phase.NEW,
    (Phase.NEW, Event.RISEN): Phase.UP,
    (Phase.NEW, Event.TOO_SOON): Phase.UP,  # cannot come: what is new never fell
    (Phase.NEW, Event.FAIL): Phase.NEW,
    (Phase.NEW, Event.FALLEN): Phase.DOWN,
    (Phase.UP, Event.PASS): Phase.UP,
    (Phase.UP, Event.RISEN): Phase.UP,
    (Phase.UP, Event.TOO_SOON): Phase.UP,
    (Phase.UP, Event.FAIL): Phase.FAILING,
    (Phase.UP, Event.FALLEN): Phase.DOWN,
    (Phase.FAILING, Event.PASS): Phase.UP,
    (Phase.FAILING, Event.RISEN): Phase.UP,
    (Phase.FAILING, Event.TOO_SOON): Phase.UP,
    (Phase.FAILING, Event.FAIL): Phase.FAILING,
    (Phase.FAILING, Event.FALLEN): Phase.DOWN,
    (Phase.DOWN, Event.PASS): Phase.RISING,
    (Phase.DOWN, Event.RISEN): Phase.UP,
    (Phase.DOWN, Event.TOO_SOON): Phase.HELD,
    (Phase.DOWN, Event.FAIL): Phase.DOWN,
    (Phase.DOWN, Event.FALLEN): Phase.DOWN,
    (Phase.RISING, Event.PASS): Phase.RISING,
    (Phase.RISING, Event.RISEN): Phase.UP,
    (Phase.RISING, Event.TOO_SOON): Phase.HELD,
    (Phase.RISING, Event.FAIL): Phase.DOWN,
    (Phase.RISING, Event.FALLEN): Phase.DOWN,
    (Phase.HELD, Event.PASS): Phase.HELD,  # cannot come: held means that rise was reached
    (Phase.HELD, Event.RISEN): Phase.UP,
    (Phase.HELD, Event.TOO_SOON): Phase.HELD,
    (Phase.HELD, Event.FAIL): Phase.DOWN,
    (Phase.HELD, Event.FALLEN): Phase.DOWN,
}

STATE = {
    Phase.NEW: CheckState.UNKNOWN,
    Phase.UP: CheckState.UP,
    Phase.FAILING: CheckState.UP,
    Phase.DOWN: CheckState.DOWN,
    Phase.RISING: CheckState.DOWN,
    Phase.HELD: CheckState.DOWN,
}

UNDECIDED = frozenset({Phase.NEW, Phase.FAILING, Phase.RISING})
"""The last result and the state disagree, and few more decide: probed at the fast interval."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a target's probes have said.

    `decided` is the last decision, `passing` the last result (None: none yet), which came `streak` times in a row, the
    first of them at `turned_s`. `words` is why the last failure failed, the same `repeats` times in a row. `falls` is
    when it went from up to down within the window, `unasked` why the last probe could not be made (None: it was made).
    """

    decided: Health = Health()
    phase: Phase = Phase.NEW
    passing: bool | None = None
    streak: int = 0
    turned_s: float = 0.0
    words: str = ""
    repeats: int = 0
    falls: tuple[float, ...] = ()
    unasked: str | None = None

    @property
    def health(self) -> Health:
        """The decision as everybody sees it: with the reason why it is not another, if there is one."""
        if self.unasked is not None:
            return replace(self.decided, reason=f"this machine cannot ask: {self.unasked}")
        if self.phase is Phase.HELD:
            hold = f"{hold_s(len(self.falls)):g} s in a row"
            return replace(self.decided, reason=f"passes, but fell {len(self.falls)} times: up after {hold}")
        return self.decided


def hold_s(falls: int) -> float:
    """How long a target that fell so often within `WINDOW_S` must pass before it is up again."""
    return 0.0 if falls <= FREE_FALLS else min(HOLD_MAX_S, HOLD_S * 2.0 ** min(falls - FREE_FALLS - 1, 10))


def judged(record: Record, reason: str, settings: CheckSettings, now_s: float) -> Record:
    """The record after one more result; `reason` "" is a pass."""
    record = _counted(record, reason, now_s)
    phase = TABLE[record.phase, event_of(record, settings, now_s)]
    if STATE[phase] is not STATE[record.phase]:
        fell = STATE[record.phase] is CheckState.UP
        falls = (*record.falls, now_s) if fell else record.falls
        return replace(record, phase=phase, falls=falls, decided=Health(STATE[phase], now_s, reason))
    if phase is Phase.DOWN and record.repeats == settings.fall and reason != record.decided.reason:
        # It fails otherwise than it did. As slow as any decision: a reason that differs each time would be no news.
        return replace(record, phase=phase, decided=replace(record.decided, reason=reason))
    return replace(record, phase=phase)


def event_of(record: Record, settings: CheckSettings, now_s: float) -> Event:
    """What the last result of a counted record means."""
    if not record.passing:
        return Event.FALLEN if record.streak >= settings.fall else Event.FAIL
    if record.streak < settings.rise:
        return Event.PASS
    return Event.RISEN if now_s - record.turned_s >= hold_s(len(record.falls)) else Event.TOO_SOON


def could_not_ask(record: Record, why: str) -> Record:
    """The record after a probe that this machine could not make: nothing is known that was not, and that is said."""
    return replace(record, unasked=why)


def pause_s(record: Record, settings: CheckSettings) -> float:
    """Until the next probe: short while few more results decide."""
    return settings.fast_interval_s if record.phase in UNDECIDED else settings.interval_s


def diagram() -> str:
    """`TABLE` for docs, as a Mermaid state diagram."""
    pace = {phase: "fast interval" if phase in UNDECIDED else "interval" for phase in Phase}
    shown = {phase: f"{STATE[phase].value}, {pace[phase]}" for phase in Phase}
    return drawn(TABLE, [f"{OUTSIDE} --> {Phase.NEW.value}"], shown, MEANING)


def _counted(record: Record, reason: str, now_s: float) -> Record:
    passing = not reason
    again = record.passing is passing
    return replace(
        record,
        passing=passing,
        streak=record.streak + 1 if again else 1,
        turned_s=record.turned_s if again else now_s,
        words=reason,
        repeats=record.repeats + 1 if reason == record.words else 1,
        falls=tuple(at_s for at_s in record.falls if now_s - at_s < WINDOW_S),
        unasked=None,
    )
