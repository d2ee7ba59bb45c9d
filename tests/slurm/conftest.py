"""Two clusters, started when the first test asks for them: one with accounting (sacct), one without."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster with slurmdbd and MariaDB."""
    yield from _started(accounting=True)


@pytest.fixture(scope="session")
def bare_cluster() -> Iterator[Cluster]:
    """A cluster without accounting, where sacct fails."""
    yield from _started(accounting=False)


def _started(*, accounting: bool) -> Iterator[Cluster]:
    # Not below pytest's own folder, which only this user may enter: munged and mariadbd run as users of their own.
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(Path(folder), accounting=accounting)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
