"""Storages, checkpoints and runs on S3, as a server on the loopback interface plays it."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Iterator

import pyarrow.fs
import pytest
import torch
from moto.server import ThreadedMotoServer
from ray.train import RunConfig
from torch import nn

from raylab import PipelineTrainer
from raylab.errors import CheckpointError, ConfigError, DataError
from raylab.records import CheckpointStore, RunFolder, Storage

pytestmark = pytest.mark.actor


@pytest.fixture(scope="module")
def options() -> Iterator[str]:
    """Start the server with one bucket; return what stands behind the ? of its addresses."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        try:
            found = f"scheme=http&endpoint_override=127.0.0.1:{server.get_host_and_port()[1]}"
            Storage.at(f"s3://bucket?{found}&allow_bucket_creation=true").make()
            yield found
        finally:
            server.stop()


@pytest.fixture
def storage(options, request) -> Storage:
    return Storage.at(f"s3://bucket/{request.node.name.partition('[')[0]}?{options}")


def everything(storage: Storage) -> list[str]:
    """Return all objects below, the hidden ones too."""
    found = storage.filesystem.get_file_info(
        pyarrow.fs.FileSelector(storage.path, recursive=True, allow_not_found=True)
    )
    files = (info.path for info in found if info.is_file)
    return sorted(path.removeprefix(f"{storage.path}/") for path in files)


def test_files_are_written_listed_replaced_and_deleted(storage):
    assert storage.names() == []
    storage.child("one", "two").write("a", b"old")
    storage.child("one", "two").write("a", b"new")
    storage.write("b", lambda file: [file.write(b"12"), file.write(memoryview(b"34"))])
    assert everything(storage) == ["b", "one/two/a"]
    assert (storage.names(), storage.folders()) == (["b", "one"], ["one"])
    assert (storage.read("b"), storage.child("one", "two").read("a")) == (b"1234", b"new")
    assert (storage.size("b"), storage.size("one"), storage.exists("one")) == (4, None, True)
    for name in ("one", "none", "b"):
        storage.delete(name)
    assert (everything(storage), storage.names()) == ([], [])


def test_a_storage_is_pickled_with_its_connection(storage):
    pickle.loads(pickle.dumps(storage)).write("a", b"1")  # noqa: S301 - our own
    assert storage.read("a") == b"1"


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_writer_that_fails_midway_leaves_what_was_there(storage, before):
    if before:
        storage.write("a", before)

    def fail(file):
        file.write(b"half of")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.write("a", fail)
    assert everything(storage) == (["a"] if before else [])
    assert not before or storage.read("a") == before


def test_a_missing_object_is_told(storage):
    with pytest.raises(DataError, match=rf"cannot read {storage}/gone: .*; check the path"):
        storage.read("gone")


def test_a_bucket_that_is_not_there_is_told(options):
    nowhere = Storage.at(f"s3://no-such-bucket/runs?{options}")
    rule = r"cannot make the folder s3://no-such-bucket/runs/one: .*not found.*; check the address"
    with pytest.raises(ConfigError, match=rule):
        RunFolder(nowhere, "one")
    with pytest.raises(DataError, match=r"cannot write s3://no-such-bucket/runs/a: "):
        nowhere.write("a", b"")


def test_a_store_that_does_not_answer_is_told(options):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        silent = pyarrow.fs.S3FileSystem(
            scheme="http",
            endpoint_override=f"127.0.0.1:{closed.getsockname()[1]}",
            retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=1),
        )
        with pytest.raises(ConfigError, match=r"cannot make the folder .* the network"):
            Storage.at("bucket/runs", silent).make()


def test_checkpoints_are_written_read_pruned_and_checked(storage):
    store = CheckpointStore(storage.child("checkpoints"))
    storage.child("checkpoints", "final").write("model.pt", b"")
    store.write_part(5, "stage-0", {})
    for step in (10, 20, 30):
        states = {f"stage-{k}": {"w": torch.full((1000,), step + k)} for k in range(2)}
        parts = [store.write_part(step, name, state) for name, state in states.items()]
        assert store.steps() == [s for s in (10, 20) if s < step]
        store.commit(step, parts, {"epoch": step // 10})
    assert everything(store.folder) == [
        "final/model.pt",
        *(
            f"step-000000{step}/{name}"
            for step in (20, 30)
            for name in ("manifest.json", "stage-0.pt", "stage-1.pt")
        ),
    ]
    found = store.newest()
    assert (store.steps(), found.step, found.about) == ([20, 30], 30, {"epoch": 3})
    assert torch.equal(found.part("stage-1")["w"], torch.full((1000,), 31))
    found.verify()

    folder = store.folder.child("step-00000030")
    whole = folder.read("stage-1.pt")
    for content, told in (
        (whole[:-1], "bytes in place of"),
        (whole[:-1] + b"x", "bytes have changed"),
    ):
        folder.write("stage-1.pt", content)
        with pytest.raises(CheckpointError, match=f"{folder}/stage-1.pt .*{told}.*of step 20"):
            found.part("stage-1")


def test_a_part_of_many_chunks_reads_back(storage, monkeypatch):
    monkeypatch.setattr("raylab.records.saved_checkpoint._CHUNK", 1 << 16)
    store = CheckpointStore(storage)
    state = {"w": torch.arange(100_000.0)}
    read = store.commit(1, [store.write_part(1, "a", state)], {})
    assert torch.equal(read.part("a")["w"], state["w"])


def test_a_runs_folder_is_written_and_opened_again(storage):
    folder = RunFolder(storage, "one")
    folder.write_config({"method": "adl"})
    for count in (1, 2):
        rows = [{"step": step, "loss": 0.5} for step in range(count)]
        folder.write_metrics(rows)
        assert RunFolder.existing(storage.child("one")).read_metrics() == rows
    folder.write_result({"loss": 0.5})
    assert folder.folder.names() == ["config.yaml", "metrics.parquet", "result.json"]
    assert RunFolder.existing(storage.child("one")).read_config() == {"method": "adl"}
    with pytest.raises(ConfigError, match="holds a run: choose another name"):
        RunFolder(storage, "one")
    with pytest.raises(ConfigError, match=r"must hold config\.yaml, .* holds one: check the path"):
        RunFolder.existing(storage)


def trainer(**where) -> PipelineTrainer:
    return PipelineTrainer(
        nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)),
        nn.CrossEntropyLoss(),
        method="ddg",
        stages=2,
        resources_per_stage={"CPU": 0.1},
        run_config=RunConfig(name="one", **where),
    )


BATCHES = [(torch.ones(2, 4), torch.ones(2, dtype=torch.long))] * 2


def test_a_run_leaves_its_files_at_the_address_that_is_its_storage(session, storage, options):
    result = trainer(storage_path=f"{storage}?{options}").fit(BATCHES, progress=False)
    folder = RunFolder.existing(Storage.at(str(result.path), result.filesystem))
    assert folder.folder == storage.child("one")
    assert folder.read_metrics() == result.table.to_pylist()
    assert result.summary["path"] == str(folder.folder)
    with result.checkpoint.as_directory() as copy:
        weights = torch.load(f"{copy}/model.pt", weights_only=True)
    assert all(torch.equal(weights[n], t) for n, t in result.model.state_dict().items())


def test_the_file_system_of_a_run_config_is_where_runs_are_looked_for(storage):
    RunFolder(storage, "one").write_config({})
    where = {"storage_path": storage.path, "storage_filesystem": storage.filesystem}
    with pytest.raises(ConfigError, match=f"but {storage}/one holds a run"):
        trainer(**where).fit(BATCHES, progress=False)
