"""The manifests in deploy/kubernetes, by Kubernetes' own schemas. `test_node_plugin.py` has the
plugin at work.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
BOUND_S = 60.0
KUBERNETES = "1.34"
OF_KUBERNETES = ("csi-driver.yaml", "daemonset.yaml", "volume.yaml")
VEP_215 = {"claimName", "type", "socket", "queues", "reconnectTimeoutSeconds"}
"""Fields of the proposal's VhostUserVolumeSource."""


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


@pytest.mark.parametrize("name", OF_KUBERNETES)
def test_manifests_are_what_kubernetes_takes(name: str) -> None:
    import kubernetes_validate

    for document in documents(name):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_the_schemas_see_a_mistake() -> None:
    import kubernetes_validate

    (driver,) = documents("csi-driver.yaml")
    driver["spec"]["attachRequred"] = False
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(driver, KUBERNETES, strict=True)


def test_the_manifests_fit_each_other_and_the_plugin() -> None:
    text = (FOLDER / "node_plugin.py").read_text()
    found = re.search(r'^NAME = "(.*)"', text, re.MULTILINE)
    assert found is not None
    (driver,) = documents("csi-driver.yaml")
    volume, claim = documents("volume.yaml")
    (guest,) = documents("virtual-machine-instance.yaml")
    _, daemons = documents("daemonset.yaml")
    assert driver["metadata"]["name"] == volume["spec"]["csi"]["driver"] == found[1]
    paths = json.dumps(daemons)
    assert paths.count(f"/var/lib/kubelet/plugins/{found[1]}") == 2
    assert volume["spec"]["claimRef"]["name"] == claim["metadata"]["name"]
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"]
    # KubeVirt's proposal has no schema yet: its fields are compared with those in its text.
    (source,) = [one["vhostUser"] for one in guest["spec"]["volumes"]]
    assert source.keys() == VEP_215
    assert source["claimName"] == claim["metadata"]["name"]
    assert source["socket"] == {"path": "disk.sock"}
    assert str(source["queues"]) == volume["spec"]["csi"]["volumeAttributes"]["queues"]
    assert [disk["name"] for disk in guest["spec"]["domain"]["devices"]["disks"]] == ["data0"]
