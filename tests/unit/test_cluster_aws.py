"""A file for AWS in the hands of Ray's own provider, against a stand-in for AWS in this process."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.aws import config as aws_config
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config

from raylab.clusters import ClusterOrder, render

pytestmark = pytest.mark.unit

REGION = "us-west-2"


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Return a client of the stand-in. The home is a folder of the test's: Ray keeps keys there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    # Ray waits for AWS to know a new role everywhere.
    monkeypatch.setattr(aws_config.time, "sleep", lambda seconds: None)
    with warnings.catch_warnings(), mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        warnings.simplefilter("ignore", DeprecationWarning)  # of Ray's and the stand-in's
        yield boto3.client("ec2", region_name=REGION)


def tagged(config: dict[str, Any], kind: str, name: str) -> dict[str, str]:
    return {
        "ray-node-type": kind,
        "ray-user-node-type": name,
        "ray-node-name": f"ray-{config['cluster_name']}-{kind}",
        "ray-launch-config": name,
        "ray-node-status": "uninitialized",
    }


def test_rays_provider_starts_and_ends_what_is_rendered(aws):
    image = aws.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    order = ClusterOrder(provider="aws", gpu_type="a10g", max_workers=2, image=image)
    config = prepare_config(yaml.safe_load(render(order)))
    validate_config(config)
    config = aws_config.bootstrap_aws(config)
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    types = config["available_node_types"]
    own = config["head_node"]
    provider.create_node({**types["head"]["node_config"], **own}, tagged(config, "head", "head"), 1)
    for name in ("worker_spot", "worker_on_demand"):
        provider.create_node(types[name]["node_config"], tagged(config, "worker", name), 1)
    machines = {
        {tag["Key"]: tag["Value"] for tag in each["Tags"]}["ray-user-node-type"]: each
        for reservation in aws.describe_instances()["Reservations"]
        for each in reservation["Instances"]
    }
    assert {name: each["InstanceType"] for name, each in machines.items()} == {
        "head": "m6i.xlarge",
        "worker_spot": "g5.xlarge",
        "worker_on_demand": "g5.xlarge",
    }
    assert {each["ImageId"] for each in machines.values()} == {image}
    markets = {name: each.get("InstanceLifecycle") for name, each in machines.items()}
    assert markets == {"head": None, "worker_spot": "spot", "worker_on_demand": None}
    # Only the head may make machines; nobody outside reaches more than SSH.
    assert "IamInstanceProfile" in machines["head"]
    (group,) = {each["SecurityGroups"][0]["GroupId"] for each in machines.values()}
    (opened,) = aws.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    outside = [each for each in opened["IpPermissions"] if each["IpRanges"]]
    assert [(each["FromPort"], each["ToPort"]) for each in outside] == [(22, 22)]

    workers = provider.non_terminated_nodes({"ray-node-type": "worker"})
    assert len(workers) == 2
    provider.terminate_nodes(workers)
    assert provider.non_terminated_nodes({"ray-node-type": "worker"}) == []
    states = {
        each["InstanceId"]: each["State"]["Name"]
        for reservation in aws.describe_instances(InstanceIds=workers)["Reservations"]
        for each in reservation["Instances"]
    }
    # Ended, not stopped, which would still cost a disk.
    assert set(states.values()) == {"terminated"}
