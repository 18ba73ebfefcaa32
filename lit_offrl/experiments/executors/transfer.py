"""The files of jobs through MLflow's artifacts, for hosts that do not share a folder."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lit_offrl.common.files import make_folder, write_whole
from lit_offrl.experiments.job import Job, lineage
from lit_offrl.tracking.runs import FILES_TAG, artifact_repository
from lit_offrl.tracking.store import experiment_id, open_client, refusals

_STAMP = ".transfer"  # of a job's folder: the number of its version; of the experiment's: the run
_LEFT = (".lock", _STAMP)
_WAY_OUT = "Give another --tracking_uri, or a folder that all hosts share in place of worker_root."


@dataclass(frozen=True)
class Transfer:
    """Keeps versions of jobs' folders as artifacts of one MLflow run, ``jobs/FOLDER/NUMBER``.

    A version counts once ``complete/FOLDER/NUMBER`` is there, too, and replaces an older one on a
    host that fetches it. A host keeps what it has itself made of the newest version: after its
    worker was killed, the checkpoint there is the newer one.

    Attributes:
        tracking_uri: MLflow's store, which all hosts reach.
        run_id: The run.
        root: The experiment's folder where the command runs.
        worker_root: What stands for it on the workers' hosts.
    """

    tracking_uri: str
    run_id: str
    root: Path
    worker_root: Path

    def on_worker(self, job: Job) -> Job:
        """Return a job as it is on the workers' hosts."""
        takes = {option: self.on_worker(source) for option, source in job.takes.items()}
        folder = self.worker_root / job.folder.relative_to(self.root)
        return replace(job, folder=folder, takes=takes)

    def send(self, job: Job) -> None:
        """Upload what the command's own host alone has of a job and of those it depends on."""
        for each in lineage(job):
            if each.folder.is_dir() and not (each.folder / _STAMP).is_file():
                self.upload(each.folder)

    def upload(self, folder: Path) -> None:
        """Upload a job's folder as its newest version.

        Raises:
            ConfigError: MLflow does not take the files.
        """
        with refusals(self.tracking_uri, _WAY_OUT):
            repository, place, newest = self._newest(folder)
            repository.log_artifacts(str(folder), f"jobs/{place}/{newest + 1}")
            write_whole(folder / _STAMP, f"{newest + 1}\n")
            repository.log_artifact(str(folder / _STAMP), f"complete/{place}/{newest + 1}")
            if newest:
                with contextlib.suppress(Exception):  # not every store deletes
                    repository.delete_artifacts(f"jobs/{place}/{newest}")

    def fetch(self, job: Job) -> None:
        """Download what is newer of a job and of those it depends on.

        Raises:
            ConfigError: MLflow does not give the files.
        """
        for folder in [each.folder for each in lineage(job)]:
            with refusals(self.tracking_uri, _WAY_OUT):
                repository, place, newest = self._newest(folder)
                stamp = folder / _STAMP
                if newest <= (int(stamp.read_text()) if stamp.is_file() else 0):
                    continue
                make_folder(folder)
                with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                    found = repository.download_artifacts(f"jobs/{place}/{newest}", scratch)
                    for entry in folder.iterdir():
                        if entry.name not in _LEFT:
                            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
                    for entry in Path(found).iterdir():
                        if entry.name not in _LEFT:
                            entry.replace(folder / entry.name)
                write_whole(stamp, f"{newest}\n")

    def _newest(self, folder: Path) -> tuple[Any, str, int]:
        """Return MLflow's files, the folder's place in them, and its newest version or 0."""
        root = self.root if folder.is_relative_to(self.root) else self.worker_root
        place = str(folder.relative_to(root))
        run = open_client(self.tracking_uri).get_run(self.run_id)
        repository = artifact_repository(self.tracking_uri, run.info.artifact_uri)
        versions = [int(Path(i.path).name) for i in repository.list_artifacts(f"complete/{place}")]
        return repository, place, max(versions, default=0)


def open_transfer(uri: str, experiment: str, output: Path, worker_root: Path) -> Transfer:
    """Return the transfer of an experiment's folder, whose MLflow run is made at the first call.

    Raises:
        ConfigError: MLflow refuses.
    """
    stamp = output / _STAMP
    if not stamp.is_file():
        with refusals(uri, _WAY_OUT):
            client = open_client(uri)
            id = experiment_id(client, uri, experiment)
            name, tags = f"{experiment}-files", {FILES_TAG: experiment}
            run_id = client.create_run(id, run_name=name, tags=tags).info.run_id
            client.set_terminated(run_id)
        write_whole(stamp, f"{run_id}\n")
    return Transfer(uri, stamp.read_text().strip(), output, worker_root / experiment)
