"""Several machines, all of them this one."""

from __future__ import annotations

from tests.command import SMALL

ARGUMENTS = (
    f"{SMALL} trainer.train_iters=60 trainer.eval_at_start=false tracking=[] checkpoint=[deepspeed] deepspeed=zero2"
)


HOSTS = "# two machines\nlocalhost slots=1\n127.0.0.1 slots=1  # the same one\n"
