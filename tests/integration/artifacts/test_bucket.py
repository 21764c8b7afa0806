"""Artifacts in a bucket: the same as in a folder, for us, for plain Optuna and for optuna-dashboard."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from wsgiref.util import FileWrapper, setup_testing_defaults

import numpy as np
import pytest
from optuna.artifacts import Boto3ArtifactStore, download_artifact, get_all_artifact_meta, upload_artifact
from safetensors.numpy import load, load_file

from hpsearch.artifacts.best_parameters import Artifacts, open_artifacts
from hpsearch.artifacts.bucket import BucketStore
from hpsearch.artifacts.place import is_bucket, parse_bucket
from hpsearch.artifacts.store import ArtifactStore, open_store
from hpsearch.errors import ArtifactError, InputError
from hpsearch.results.choice import choose_point
from hpsearch.results.export import export_model
from hpsearch.results.summary import read_summary
from hpsearch.store.claims.claim import Outcome, Result
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.studies import StoredStudy

PARAMETERS = {"weights": np.arange(6, dtype=np.float32).reshape(2, 3).T, "biases": np.zeros(3, np.float32)}


@pytest.fixture
def study(new_study: Callable[..., StoredStudy]) -> StoredStudy:
    return new_study(2)


@pytest.fixture
def ledger(database: Any, study: StoredStudy) -> Ledger:
    return Ledger(database=database, study_id=study.study_id, owner=1)


def keys(bucket: Any) -> list[str]:
    return sorted(item.key for item in bucket.objects.all())


def save(artifacts: Artifacts, ledger: Ledger, study: StoredStudy) -> tuple[int, str]:
    """Train a point to its end, as a worker does; its trial's id and its artifact's."""
    (claim,) = ledger.claim(1)
    metadata = {"study": study.name, "definition_sha256": study.definition.sha256, "trial": str(claim.number)}
    artifact_id = artifacts.save_parameters(ledger.set_system_attribute, claim.trial_id, PARAMETERS, metadata)
    assert artifact_id is not None
    ledger.finish([Result(trial_id=claim.trial_id, outcome=Outcome.COMPLETE, loss=0.5)])
    return claim.trial_id, artifact_id


# Parameters


def test_parameters_lie_under_the_prefix_and_are_read_back_as_they_were(
    bucket: Any, ledger: Ledger, study: StoredStudy
) -> None:
    artifacts = open_artifacts(f"s3://{bucket.name}/deep/prefix/")
    assert artifacts.place == f"s3://{bucket.name}/deep/prefix"
    trial_id, artifact_id = save(artifacts, ledger, study)
    assert keys(bucket) == [f"deep/prefix/{artifact_id}"]
    assert artifacts.parameters_id(ledger.database.storage.get_trial(trial_id)) == artifact_id
    found = load(artifacts.store.read(artifact_id))
    for name, array in PARAMETERS.items():
        np.testing.assert_array_equal(found[name], array)


def test_plain_optuna_downloads_them_with_its_own_store(
    bucket: Any, ledger: Ledger, study: StoredStudy, tmp_path: Path
) -> None:
    """Without a prefix Optuna's store finds an artifact by its id; with one, ours does."""
    for number, place in enumerate([f"s3://{bucket.name}", f"s3://{bucket.name}/prefix"]):
        artifacts = open_artifacts(place)
        trial_id, artifact_id = save(artifacts, ledger, study)
        trial = ledger.database.storage.get_trial(trial_id)
        (meta,) = get_all_artifact_meta(trial, storage=ledger.database.storage)
        assert (meta.artifact_id, meta.filename) == (artifact_id, "parameters.safetensors")
        copy = tmp_path / str(number)
        store = Boto3ArtifactStore(bucket.name) if number == 0 else artifacts.store
        download_artifact(artifact_store=store, artifact_id=artifact_id, file_path=str(copy))
        assert load_file(copy).keys() == PARAMETERS.keys()


def test_what_plain_optuna_uploads_through_our_store_is_there(
    bucket: Any, ledger: Ledger, study: StoredStudy, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    store = open_store(f"s3://{bucket.name}/p")
    loaded = ledger.database.load_study(study.name)
    artifact_id = upload_artifact(artifact_store=store, file_path=str(tmp_path / "notes.txt"), study_or_trial=loaded)
    assert store.read(artifact_id) == b"hello"
    assert keys(bucket) == [f"p/{artifact_id}"]


def test_the_best_model_is_exported_out_of_the_bucket(
    bucket: Any, ledger: Ledger, study: StoredStudy, tmp_path: Path
) -> None:
    artifacts = open_artifacts(f"s3://{bucket.name}/p")
    _, artifact_id = save(artifacts, ledger, study)
    summary = read_summary(ledger.database, study.name)
    export_model(
        choose_point(summary, None), open_artifacts(artifacts.place, is_read_only=True), tmp_path / "model.safetensors"
    )
    np.testing.assert_array_equal(load_file(tmp_path / "model.safetensors")["weights"], PARAMETERS["weights"])
    elsewhere = open_artifacts(f"s3://{bucket.name}/elsewhere", is_read_only=True)
    with pytest.raises(ArtifactError) as caught:
        export_model(choose_point(summary, None), elsewhere, tmp_path / "other.safetensors")
    assert str(caught.value) == (
        f"artifact {artifact_id} (parameters.safetensors of trial 0) is not in s3://{bucket.name}/elsewhere"
    )
    assert not (tmp_path / "other.safetensors").exists()


def test_trial_that_was_taken_away_leaves_no_object(bucket: Any, ledger: Ledger) -> None:
    artifacts = open_artifacts(f"s3://{bucket.name}")
    (claim,) = ledger.claim(1)
    ledger.release("stopped")
    assert artifacts.save_parameters(ledger.set_system_attribute, claim.trial_id, PARAMETERS, {}) is None
    assert keys(bucket) == []


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_the_dashboard_hands_artifacts_out(
    kind: str, bucket: Any, ledger: Ledger, study: StoredStudy, tmp_path: Path
) -> None:
    from optuna_dashboard import wsgi  # as serve_dashboard does: it takes a second

    artifacts = open_artifacts(f"s3://{bucket.name}/p" if kind == "bucket" else tmp_path / "artifacts")
    trial_id, artifact_id = save(artifacts, ledger, study)
    app = wsgi(ledger.database.storage, artifact_store=artifacts.store)
    path = f"/artifacts/{study.study_id}/{trial_id}/{artifact_id}"
    environment: dict[str, Any] = {"PATH_INFO": path, "wsgi.file_wrapper": FileWrapper}
    setup_testing_defaults(environment)
    statuses: list[str] = []
    with contextlib.closing(app(environment, lambda status, headers, *rest: statuses.append(status))) as body:
        assert b"".join(body) == artifacts.store.read(artifact_id)
    assert statuses == ["200 OK"]


# The store


def test_an_object_is_replaced_whole_and_missed_by_name(bucket: Any) -> None:
    store = open_store(f"s3://{bucket.name}/p")
    large = bytes(20_000_000)  # goes up in parts
    store.write("x", io.BytesIO(b"old"))
    store.write("x", io.BytesIO(large))
    assert store.read("x") == large
    with store.open_reader("x") as reader:
        assert reader.read() == large
    store.remove("x")
    store.remove("x")
    for read in (store.read, store.open_reader):
        with pytest.raises(FileNotFoundError):
            read("x")


@pytest.mark.parametrize("artifact_id", ["../outside", "a/b", "", "..", "."])
def test_no_id_leads_out_of_the_prefix(bucket: Any, artifact_id: str) -> None:
    store = open_store(f"s3://{bucket.name}/p")
    for use in (store.read, store.open_reader, store.remove, lambda name: store.write(name, io.BytesIO(b"x"))):
        with pytest.raises(match="no artifact has the id"):
            use(artifact_id)
    assert keys(bucket) == []


def test_opening_a_bucket_leaves_nothing_in_it(bucket: Any) -> None:
    open_store(f"s3://{bucket.name}/p")
    assert keys(bucket) == []


def deny(bucket: Any, action: str) -> None:
    resource = f"arn:aws:s3:::{bucket.name}/*"
    rule = {"Effect": "Deny", "Principal": "*", "Action": action, "Resource": resource}
    bucket.Policy().put(Policy=json.dumps({"Version": "2012-10-17", "Statement": [rule]}))


def test_a_bucket_where_nothing_may_be_deleted_will_do(bucket: Any) -> None:
    deny(bucket, "s3:DeleteObject")
    for _ in range(2):
        open_store(f"s3://{bucket.name}/p")
    assert keys(bucket) == ["p/.hpsearch-writable"]


# What is refused


def test_a_missing_bucket_is_found_at_the_start_with_what_the_server_said(bucket: Any) -> None:
    with pytest.raises(ArtifactError) as caught:
        open_store("s3://not-there/p")
    assert str(caught.value).startswith("s3://not-there/p is not writable: ")
    assert "NoSuchBucket" in str(caught.value)
    assert "AWS_ENDPOINT_URL" in str(caught.value.hint)
    assert caught.value.exit_code == 3
    assert "secret" not in f"{caught.value}"


def test_a_bucket_that_may_only_be_read_is_found_at_the_start(bucket: Any) -> None:
    open_store(f"s3://{bucket.name}").write("x", io.BytesIO(b"kept"))
    deny(bucket, "s3:PutObject")
    with pytest.raises(ArtifactError, match=rf"s3://{bucket.name} is not writable: .*PutObject.*Forbidden"):
        open_store(f"s3://{bucket.name}")
    assert open_store(f"s3://{bucket.name}", is_read_only=True).read("x") == b"kept"


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_a_server_that_does_not_answer_is_named(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = f"http://127.0.0.1:{closed_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(ArtifactError, match=re.escape(endpoint)):
        open_store(f"s3://{bucket.name}/p")
    store = open_store(f"s3://{bucket.name}/p", is_read_only=True)  # opened to be read: nothing is asked yet
    with pytest.raises(OSError, match=re.escape(endpoint)) as caught:
        store.read("x")
    assert caught.value.strerror is not None


def test_parameters_that_the_server_refuses_are_an_error_with_the_place(bucket: Any, ledger: Ledger) -> None:
    artifacts = Artifacts(open_store("s3://not-there/p", is_read_only=True))
    (claim,) = ledger.claim(1)
    with pytest.raises(ArtifactError, match=r"cannot write the best parameters into s3://not-there/p: .*NoSuchBucket"):
        artifacts.save_parameters(ledger.set_system_attribute, claim.trial_id, PARAMETERS, {})
    assert ledger.database.storage.get_trial(claim.trial_id).system_attrs == {}


def test_missing_credentials_are_named(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ArtifactError, match="Unable to locate credentials") as caught:
        open_store(f"s3://{bucket.name}")
    assert "AWS_ACCESS_KEY_ID" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [("AWS_ENDPOINT_URL", "no url", "Invalid endpoint"), ("AWS_PROFILE", "nobody", "nobody")],
)
def test_variables_that_cannot_be_used_are_an_error_in_one_line(
    bucket: Any, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ArtifactError, match=f"cannot use s3://b: .*{said}"):
        open_store("s3://b")


def test_a_token_that_cannot_be_sent_is_shown_by_no_message_and_no_traceback(
    aws_variables: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """boto3 shows the header that it cannot send: here, one with the end of its file in it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "s3cr3t-token\n")
    with pytest.raises(ArtifactError) as caught:
        open_store("s3://b")
    assert "***" in str(caught.value)
    assert "s3cr3t" not in "".join(traceback.format_exception(caught.value))


def test_without_boto3_a_bucket_is_bad_input_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "hpsearch.artifacts.bucket")
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(InputError, match="artifacts in s3://b need boto3, which is not installed") as caught:
        open_store("s3://b/p")
    assert caught.value.hint == "pip install 'hpsearch[s3]'"


# Through a server, as with MinIO

OPEN_AND_READ = """
import sys
from hpsearch.artifacts.store import open_store
print(open_store(sys.argv[1]).read("x"))
"""


def test_another_process_finds_the_bucket_by_the_place_and_the_variables(served_bucket: Any) -> None:
    store = open_store(f"s3://{served_bucket.name}/p")
    store.write("x", io.BytesIO(b"hello"))
    assert keys(served_bucket) == ["p/x"]
    result = subprocess.run(
        [sys.executable, "-c", OPEN_AND_READ, store.place], capture_output=True, text=True, timeout=240
    )
    assert result.stdout.strip() == "b'hello'", result.stderr


def test_the_bucket_is_part_of_the_path_where_names_have_no_subdomains(
    served_bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """http://minio:9000/bucket/key and not http://bucket.minio:9000/key, which no name server knows."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", os.environ["AWS_ENDPOINT_URL"].replace("127.0.0.1", "localhost"))
    store = open_store(f"s3://{served_bucket.name}")
    store.write("x", io.BytesIO(b"hello"))
    assert store.read("x") == b"hello"


# Names of places


@pytest.mark.parametrize(
    ("place", "parts"),
    [
        ("s3://b", ("b", "")),
        ("s3://b/", ("b", "")),
        ("s3://my.bucket-1/a", ("my.bucket-1", "a")),
        ("s3://b//a///c d/", ("b", "a/c d")),
    ],
)
def test_bucket_and_prefix_are_told_apart(place: str, parts: tuple[str, str]) -> None:
    assert is_bucket(place)
    assert parse_bucket(place) == parts


@pytest.mark.parametrize("place", ["artifacts", "/tmp/a", "~/a", "s3", "a/b://c", "C3PO:x"])
def test_anything_without_a_scheme_is_a_folder(place: str) -> None:
    assert not is_bucket(place)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("s3:/b/p", "the address of a bucket begins with s3://"),
        ("gs://b/p", "gs:// is neither a folder nor s3://"),
        ("https://b.s3.amazonaws.com/p", "https:// is neither a folder nor s3://"),
        ("s3://", "invalid bucket name ''"),
        ("s3:///p", "invalid bucket name ''"),
        ("s3://a b/p", "invalid bucket name 'a b'"),
        ("s3://b/a/../c", "invalid prefix 'a/../c'"),
        ("s3://b/a\x00c", "invalid prefix"),
    ],
)
def test_what_is_no_place_is_bad_input_and_makes_no_folder(
    place: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        open_store(place)
    assert "s3://BUCKET/PREFIX" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []


def test_credentials_in_an_address_are_refused_and_not_shown() -> None:
    with pytest.raises(InputError) as caught:
        open_store("s3://AKIA:s3cr3t@bucket/p")
    assert str(caught.value) == "artifacts: the address of a bucket must not contain credentials"


def _is_a_store(store: BucketStore) -> ArtifactStore:
    return store  # for mypy: it has all that is asked of one
