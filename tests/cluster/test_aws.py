"""cluster/aws: Ray's own schema and checks, and policies that grant no more than they say."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.cluster.manifests import CLUSTER

AWS = CLUSTER / "aws"
CONFIG: dict[str, Any] = yaml.safe_load((AWS / "cluster.yaml").read_text())
_RIGHTS = {"ListInput", "ReadInput", "ListOutput", "ReadAndWriteOutput"}


def _policy(name: str) -> dict[str, dict[str, Any]]:
    statements = json.loads((AWS / name).read_text())["Statement"]
    return {one["Sid"]: one for one in statements}


def test_the_configuration_fits_the_schema_of_ray() -> None:
    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    schema = json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(CONFIG, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**CONFIG, "idle_timeout_minute": 5}, schema)


@pytest.mark.cluster  # importing Ray takes seconds
def test_ray_accepts_the_configuration() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(json.loads(json.dumps(CONFIG)))
    validate_config(config)
    assert config["docker"]["image"] == CONFIG["docker"]["image"]
    with pytest.raises(ValueError, match="max_workers"):
        validate_config({**config, "max_workers": 0})


def test_the_head_has_no_work_and_is_not_on_spot() -> None:
    head = CONFIG["available_node_types"][CONFIG["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]


def test_spot_comes_first_and_on_demand_is_behind() -> None:
    types = CONFIG["available_node_types"]
    spot, other = types["spot"], types["on-demand"]
    assert spot["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert spot["priority"] > other["priority"]
    assert spot["resources"] == other["resources"]
    assert spot["node_config"]["InstanceType"] == other["node_config"]["InstanceType"]
    assert sum(one.get("max_workers", 0) for one in types.values()) == CONFIG["max_workers"]
    assert other["min_workers"] >= 1


def test_every_machine_has_a_role_of_ours_and_no_port_is_open_to_all() -> None:
    for name, one in CONFIG["available_node_types"].items():
        role = "head" if name == CONFIG["head_node_type"] else "worker"
        assert one["node_config"]["IamInstanceProfile"]["Arn"].endswith(f"/segcore-{role}")
        assert one["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
    (rule,) = CONFIG["provider"]["security_group"]["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"]) == (22, 22)
    assert "0.0.0.0/0" not in json.dumps(rule)
    assert "--dashboard-host=127.0.0.1" in CONFIG["head_start_ray_commands"][1]


def test_the_token_is_on() -> None:
    assert "--env RAY_AUTH_MODE=token" in CONFIG["docker"]["run_options"]
    assert CONFIG["file_mounts"] == {"/home/segcore/.ray/auth_token": "~/.ray/auth_token"}


def test_workers_may_read_the_input_and_write_the_output_alone() -> None:
    policy = _policy("iam-policy.json")
    assert set(policy) == _RIGHTS
    for one in policy.values():
        assert one["Effect"] == "Allow"
        assert "*" not in json.dumps(one["Action"])
        assert re.fullmatch(r"arn:aws:s3:::(INPUT|OUTPUT)-BUCKET(/\w+/\*)?", one["Resource"])
    writing = [sid for sid, one in policy.items() if re.search("Put|Delete", str(one["Action"]))]
    assert writing == ["ReadAndWriteOutput"]
    for listing, folder in (("ListInput", "ReadInput"), ("ListOutput", "ReadAndWriteOutput")):
        prefix = policy[folder]["Resource"].partition("/")[2]
        allowed = policy[listing]["Condition"]["StringLike"]["s3:prefix"]
        assert allowed == [prefix.removesuffix("/*"), prefix]


def test_the_head_may_end_only_machines_of_this_cluster() -> None:
    policy = _policy("iam-head-policy.json")
    everywhere = [sid for sid, one in policy.items() if one["Resource"] == "*"]
    assert everywhere == ["See", "StartWorkers"]
    assert all(action.startswith("ec2:Describe") for action in policy["See"]["Action"])
    ending = policy["EndWorkersOfThisClusterAlone"]["Condition"]["StringEquals"]
    assert ending == {"aws:ResourceTag/ray-cluster-name": CONFIG["cluster_name"]}
    assert policy["StartWorkers"]["Condition"]["StringEquals"] == {
        "aws:RequestedRegion": CONFIG["provider"]["region"]
    }
    assert not [one for one in policy.values() if "iam:*" in str(one["Action"])]
