"""Exit codes of the library's processes; see `ringworld.command`."""

DONE, USER_ERROR, PREEMPTED, STALLED = 0, 64, 75, 124
ORPHANED = 70  # the parent died; counts as crashed, so the next attempt resumes
