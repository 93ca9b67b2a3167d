"""What the components are told."""

from __future__ import annotations

import base64
import json
import tomllib

from e2e.cluster import containerd, control_plane, dns, kuberay, node, pki
from e2e.cluster.paths import Paths
from e2e.cluster.settings import NAME, NODE_ADDRESS, PAUSE_IMAGE, POD_CIDR


def test_the_apiserver_authorises_as_a_real_one(paths: Paths) -> None:
    flags = control_plane.apiserver_flags(paths)
    assert "--authorization-mode=Node,RBAC" in flags
    assert "--enable-admission-plugins=NodeRestriction" in flags
    assert f"--service-account-signing-key-file={paths.pki / 'sa.key'}" in flags
    assert "--kubelet-preferred-address-types=InternalIP" in flags
    assert not any(flag.startswith(("--disable-admission-plugins", "--insecure")) for flag in flags)


def test_etcd_listens_on_the_loopback_alone(paths: Paths) -> None:
    listening = [flag for flag in control_plane.etcd_flags(paths) if flag.startswith("--listen")]
    assert listening
    assert all("//127.0.0.1:" in flag for flag in listening)


def test_no_flag_is_given_twice(paths: Paths) -> None:
    for flags in (
        control_plane.etcd_flags(paths),
        control_plane.apiserver_flags(paths),
        control_plane.controller_manager_flags(paths),
        control_plane.scheduler_flags(paths),
    ):
        names = [flag.split("=")[0] for flag in flags]
        assert len(names) == len(set(names))


def test_containerd_keeps_images_in_the_cache_and_all_else_in_the_state(paths: Paths) -> None:
    config = tomllib.loads(containerd.render_config(paths))
    assert config["root"] == str(paths.containerd_root)
    assert config["state"].startswith(str(paths.state))
    cri = config["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["sandbox_image"] == PAUSE_IMAGE
    assert cri["restrict_oom_score_adj"] is True
    assert cri["netns_mounts_under_state_dir"] is True


def test_pods_have_routes_and_no_masquerade(paths: Paths) -> None:
    config = json.loads(json.dumps(containerd.render_cni(paths)))
    first = config["plugins"][0]
    assert (first["type"], first["ipMasq"]) == ("ptp", False)
    assert first["ipam"]["ranges"] == [[{"subnet": POD_CIDR}]]
    assert first["ipam"]["dataDir"].startswith(str(paths.state))


def test_the_kubelet_asks_the_apiserver_who_may(paths: Paths) -> None:
    config = node.render_kubelet(paths)
    assert config["authentication"]["anonymous"] == {"enabled": False}
    assert config["authorization"] == {"mode": "Webhook"}
    assert config["cgroupRoot"] == f"/{NAME}"
    assert config["clusterDNS"] == [NODE_ADDRESS]


def test_kube_proxy_leaves_the_machine_s_conntrack_alone(paths: Paths) -> None:
    assert node.render_kube_proxy(paths)["conntrack"]["maxPerCore"] == 0


def test_names_outside_the_cluster_are_answered_not_forwarded(paths: Paths) -> None:
    corefile = dns.render_corefile(paths)
    assert "forward" not in corefile
    assert "NXDOMAIN" in corefile


def test_kuberay_runs_restricted() -> None:
    deployment = next(item for item in kuberay.manifests() if item["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["imagePullPolicy"] == "Never"


def test_a_kubeconfig_carries_what_it_needs() -> None:
    config = json.loads(pki.render_kubeconfig("https://h:1", "admin", b"ca", b"cert", b"key"))
    assert config["clusters"][0]["cluster"]["server"] == "https://h:1"
    user = config["users"][0]["user"]
    assert base64.b64decode(user["client-key-data"]) == b"key"
    assert config["current-context"] == config["contexts"][0]["name"]
