"""What a rank says of itself, and who is woken by it."""

from __future__ import annotations

from raymb.rank.progress import Progress


def test_every_sign_of_life_is_a_beat() -> None:
    progress = Progress()
    seen = [progress.beats]
    for act in (
        lambda: progress.enter("loading"),
        lambda: progress.enter("loading"),  # the same again: it lives
        progress.beat,
        lambda: progress.finished(1),
    ):
        act()
        seen.append(progress.beats)
    assert seen == sorted(set(seen))


def test_listeners_hear_of_a_new_phase_only() -> None:
    progress, heard = Progress(), []
    progress.listeners.append(lambda: heard.append(progress.phase))
    for phase in ("loading", "first step", "first step", "step", "step", "saving", "step"):
        progress.enter(phase)
    progress.beat()
    progress.finished(3)
    assert heard == ["loading", "first step", "step", "saving", "step"]


def test_it_is_described_as_the_step_that_is_being_done() -> None:
    progress = Progress()
    assert progress.describe() == "importing"
    progress.step = 40  # where the training resumes
    progress.enter("first step")
    assert progress.describe() == "first step"
    progress.finished(41)
    progress.enter("step")
    assert progress.describe() == "step 42"
    progress.enter("saving")
    assert (progress.describe(), progress.step) == ("saving", 41)
