"""What a Ray cluster's nodes offer to workers, and what they cannot reach; no Ray is needed to know."""

from __future__ import annotations

import platform
import sys
import types

import pytest
from sqlalchemy import make_url

from hpsearch.errors import InputError
from hpsearch.launch.ray_cluster import RayCluster, RayNode, WorkerShare, check_address, connect
from hpsearch.launch.ray_launcher import check_placement


def cluster(*nodes: tuple[int, int], host: str = "elsewhere") -> RayCluster:
    """Nodes of so many CPUs and GPUs."""
    address = "127.0.0.1" if host == platform.node() else "192.0.2.1"
    return RayCluster(
        ray=None,
        nodes=tuple(RayNode(host=host, address=address, num_cpus=cpus, num_gpus=gpus) for cpus, gpus in nodes),
    )


@pytest.mark.parametrize(
    ("nodes", "device", "wanted", "expected"),
    [
        ([(8, 4), (8, 2), (2, 0)], "auto", None, (6, 1, 1)),  # a GPU each
        ([(8, 4)], "auto", 8, (8, 1, 1)),  # four will wait for their place
        ([(8, 4), (6, 0)], "cpu", None, (2, 6, 0)),  # one per node, as large as the smaller one allows
        ([(4, 0), (4, 0)], "auto", 4, (4, 2, 0)),
        ([(3, 0), (3, 0)], "auto", 3, (3, 1, 0)),  # two processors each would leave no place for the third
        ([(0, 0), (2, 0)], "auto", None, (1, 2, 0)),  # a head without processors takes none
        ([(2, 0)], "auto", 5, (5, 1, 0)),
        ([(0, 0)], "auto", None, (1, 1, 0)),  # a cluster that grows when it is asked
    ],
)
def test_each_worker_gets_a_gpu_or_its_part_of_the_processors(
    nodes: list[tuple[int, int]], device: str, wanted: int | None, expected: tuple[int, int, int]
) -> None:
    num_workers, num_cpus, num_gpus = expected
    share = cluster(*nodes).share(device, wanted)
    assert share == WorkerShare(num_workers=num_workers, num_cpus=num_cpus, num_gpus=num_gpus)


def test_a_share_is_told_in_words() -> None:
    assert WorkerShare(num_workers=1, num_cpus=1, num_gpus=1).describe() == "1 CPU and 1 GPU"
    assert WorkerShare(num_workers=1, num_cpus=2, num_gpus=0).describe() == "2 CPUs"


def test_a_cluster_is_this_machine_only_if_all_its_nodes_are() -> None:
    here = cluster((1, 0), host=platform.node())
    assert here.is_this_machine
    there = cluster((1, 0))
    assert not there.is_this_machine
    assert not RayCluster(ray=None, nodes=here.nodes + there.nodes).is_this_machine
    namesake = RayNode(host=platform.node(), address="192.0.2.1", num_cpus=1, num_gpus=0)
    assert not RayCluster(ray=None, nodes=(namesake,)).is_this_machine


@pytest.mark.parametrize(
    "url",
    ["postgresql:///db", "postgresql:///db?host=/tmp", "postgresql://localhost/db", "postgresql://u@127.0.0.1:5432/db"],
)
def test_a_database_of_this_machine_is_refused_where_workers_are_on_others(url: str) -> None:
    cluster((1, 0), host=platform.node()).check_reachable(make_url(url), is_embedded=False)
    with pytest.raises(InputError, match=r"cannot be reached from the nodes of the Ray cluster \(elsewhere\)"):
        cluster((1, 0)).check_reachable(make_url(url), is_embedded=False)


def test_the_embedded_database_serves_this_machine_only() -> None:
    url = make_url("postgresql:///db?host=/tmp")
    cluster((1, 0), host=platform.node()).check_reachable(url, is_embedded=True)
    with pytest.raises(InputError, match="the embedded PostgreSQL cannot be reached") as caught:
        cluster((1, 0)).check_reachable(url, is_embedded=True)
    assert "--storage" in str(caught.value.hint)


def test_a_server_with_a_name_is_believed_to_be_reachable() -> None:
    cluster((1, 0)).check_reachable(make_url("postgresql://u:p@db.example:5432/studies"), is_embedded=False)


@pytest.mark.parametrize("address", ["ray", "ray://head:10001", "ray://10.0.0.1:10001"])
def test_an_address_is_ray_or_a_client_address(address: str) -> None:
    assert check_address(address) == address


@pytest.mark.parametrize("address", ["", "slurm", "ray://head", "ray://:10001", "http://head:8265", "RAY"])
def test_anything_else_is_no_address(address: str) -> None:
    with pytest.raises(InputError, match="--on must be ray or ray://HOST:PORT, got"):
        check_address(address)


def test_ray_chooses_the_gpu_itself() -> None:
    check_placement("ray", "cpu")
    with pytest.raises(InputError, match="--device cuda:1 cannot be had with --on ray"):
        check_placement("ray", "cuda:1")


def test_without_ray_the_package_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(InputError, match="Ray, which is not installed") as caught, connect("ray"):
        pytest.fail("connected")
    assert caught.value.hint == "pip install 'hpsearch[ray]'"


def test_without_rays_client_the_package_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))
    monkeypatch.setattr(sys.modules["ray"], "shutdown", lambda: None, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)  # as if it were not installed
    with pytest.raises(InputError, match="needs Ray's client") as caught, connect("ray://127.0.0.1:10001"):
        pytest.fail("connected")
    assert caught.value.hint == "pip install 'ray[client]'"
