"""A checkpoint saved in the background appears at a step boundary, on all ranks at once."""

from __future__ import annotations

import threading

from arctic_hydra.checkpoint import files
from arctic_hydra.checkpoint.deepspeed import DeepSpeedCheckpoint
from tests.ranks import run_ranks
from tests.trainer.loop import documents, make_trainer


class Watch:
    """Delays one rank's writes until step 5, and records the existing checkpoints at each step."""

    def __init__(self, slow_rank: int) -> None:
        self.seen: dict[int, list[str]] = {}
        self.slow_rank = slow_rank
        self.gate = threading.Event()

    def on_train_start(self, trainer, facts):
        write = files.HashingWriter.write

        def held_back(writer, data):
            self.gate.wait()
            return write(writer, data)

        if trainer.world.rank == self.slow_rank:
            files.HashingWriter.write = held_back

    def on_step_start(self, trainer, facts):
        [checkpoint] = trainer.tools.checkpoints
        self.seen[trainer.global_step + 1] = published(trainer.tools.run_dir)
        if trainer.global_step + 1 == 5:
            self.gate.set()
            checkpoint._pending.wait()  # otherwise the save might still run at the end of the step


def published(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").glob("step-*"))


def _train(run_dir):
    trainer = make_trainer(documents([8] * 12, [4] * 12), run_dir, stage=2)
    checkpoint = DeepSpeedCheckpoint(save_every_n_steps=3, asynchronous=True)
    checkpoint.bind(trainer.tools.state)
    trainer.tools.checkpoints.append(checkpoint)
    watch = Watch(slow_rank=1)
    trainer.set_callbacks([watch], trainer.world)  # type: ignore[list-item]
    trainer.attach(trainer)
    trainer.train()
    return watch.seen, published(run_dir)


def test_a_background_save_appears_at_a_step_boundary_once_the_slowest_rank_is_done(tmp_path):
    for seen, at_the_end in run_ranks(2, _train, tmp_path):
        assert [seen[step] for step in (4, 5, 6)] == [[], [], ["step-00000003"]]
        assert at_the_end == ["step-00000003", "step-00000006"], "the last save is also published"
