"""The files of jobs through MLflow's artifacts, for hosts that do not share a folder."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lit_offrl.common.errors import LitOffRLError, reason
from lit_offrl.common.files import make_folder, write_whole
from lit_offrl.experiments.job import Job, lineage
from lit_offrl.tracking.opening import experiment_id
from lit_offrl.tracking.runs import artifact_repository
from lit_offrl.tracking.store import client_uri, open_client, redacted

_STAMP = ".transfer"  # of a job's folder: the number of its version; of the experiment's: the run
_COMPLETE = "complete"
_LEFT = (".lock", _STAMP)


@dataclass(frozen=True)
class Transfer:
    """Keeps versions of jobs' folders as artifacts of one MLflow run, ``jobs/FOLDER/NUMBER``.

    A version counts once its last file is there, and replaces an older one on a host that fetches
    it. A host keeps what it has itself made of the newest version: after its worker was killed, the
    checkpoint there is the newer one.

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

    def fetch(self, job: Job) -> None:
        """Download what is newer of a job and of those it depends on.

        Raises:
            LitOffRLError: MLflow does not give the files.
        """
        for each in lineage(job):
            self._download(each.folder)

    def upload(self, folder: Path) -> None:
        """Upload a job's folder as its newest version.

        Raises:
            LitOffRLError: MLflow does not take the files.
        """
        with self._refusals(folder):
            repository, place = self._repository(), self._place(folder)
            before = self._newest(repository, place)
            target = f"{place}/{before + 1}"
            for path in sorted(folder.rglob("*")):
                if path.is_file() and path.name not in _LEFT:
                    within = path.relative_to(folder).parent
                    repository.log_artifact(str(path), f"{target}/{within}".removesuffix("/."))
            with tempfile.TemporaryDirectory() as scratch:
                mark = Path(scratch) / _COMPLETE
                mark.touch()
                repository.log_artifact(str(mark), target)
            write_whole(folder / _STAMP, f"{before + 1}\n")
            if before:
                with contextlib.suppress(Exception):  # not every store deletes
                    repository.delete_artifacts(f"{place}/{before}")

    def _download(self, folder: Path) -> None:
        with self._refusals(folder):
            repository, place = self._repository(), self._place(folder)
            newest, stamp = self._newest(repository, place), folder / _STAMP
            if newest <= (int(stamp.read_text()) if stamp.is_file() else 0):
                return
            make_folder(folder)
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                repository.download_artifacts(f"{place}/{newest}", scratch)
                found = Path(scratch) / place / str(newest)
                for entry in folder.iterdir():
                    if entry.name not in _LEFT:
                        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
                for entry in found.iterdir():
                    if entry.name != _COMPLETE:
                        entry.replace(folder / entry.name)
            write_whole(stamp, f"{newest}\n")

    def _place(self, folder: Path) -> str:
        root = self.root if folder.is_relative_to(self.root) else self.worker_root
        return f"jobs/{folder.relative_to(root)}"

    def _repository(self) -> Any:
        run = open_client(self.tracking_uri).get_run(self.run_id)
        return artifact_repository(self.tracking_uri, run.info.artifact_uri)

    def _newest(self, repository: Any, place: str) -> int:
        numbers = [int(Path(info.path).name) for info in repository.list_artifacts(place)]
        for number in sorted(numbers, reverse=True):
            files = repository.list_artifacts(f"{place}/{number}")
            if any(Path(info.path).name == _COMPLETE for info in files):
                return number
        return 0

    @contextlib.contextmanager
    def _refusals(self, folder: Path) -> Any:
        try:
            yield
        except LitOffRLError:
            raise
        except Exception as error:  # whatever the store's driver throws
            raise LitOffRLError(
                f"{folder}: MLflow at {client_uri(self.tracking_uri)} refuses its files:"
                f" {redacted(reason(error))}"
            ) from error


def open_transfer(uri: str, experiment: str, output: Path, worker_root: Path) -> Transfer:
    """Return the transfer of an experiment's folder, whose MLflow run is made at the first call.

    Raises:
        LitOffRLError: MLflow refuses.
    """
    stamp = output / _STAMP
    run_id = stamp.read_text().strip() if stamp.is_file() else ""
    transfer = Transfer(uri, run_id, output, worker_root / experiment)
    with transfer._refusals(output):
        client = open_client(uri)
        if not run_id:
            id = experiment_id(client, uri, experiment)
            run = client.create_run(id, run_name=f"{experiment}-files")
            client.set_terminated(run.info.run_id)
            transfer = replace(transfer, run_id=run.info.run_id)
            write_whole(stamp, f"{transfer.run_id}\n")
    return transfer
