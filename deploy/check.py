"""Holds the files of this folder against each other and against the program's settings.

Each check is a function that yields one sentence a finding; nothing here knows more of a format than it needs.
"""

import re
import sys
from pathlib import Path

import yaml

NAMESPACE = "rabbitline"
# A file of its own, for those who want it.
RECORDER = "record-deployment.yaml"
# In the place of the Deployment, for those who want several bridges.
CLUSTER = "cluster-statefulset.yaml"
# Seconds between the end of the drain and the kill, at least: time to close what is left.
STOP_MARGIN = 5


def main(root: Path) -> int:
    deploy = root / "deploy"
    settings, described = read_settings(root / "src" / "settings" / "table.rs")
    findings = [
        *check_environment_file(deploy / "systemd" / "rabbitline.env", settings, described),
        *check_unit(deploy / "systemd" / "rabbitline.service", settings),
        *check_unit(deploy / "systemd" / "rabbitline-record.service", settings),
        *check_kubernetes(deploy / "kubernetes", settings),
        *check_cluster(deploy / "kubernetes", settings, root / "src" / "metrics.rs"),
        *check_recorder(deploy / "kubernetes", settings),
        *check_compose(deploy / "docker" / "compose.yaml", settings),
        *check_image(deploy / "docker" / "Containerfile", root / "Cargo.toml"),
    ]
    for finding in findings:
        print(f"deploy/check.py: {finding}", file=sys.stderr)
    return 1 if findings else 0


def read_settings(source: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Default and description of each setting by its name, from the program's table."""
    rows = re.findall(r'= "([A-Z_]+)", "([^"]*)", "([^"]*)"', source.read_text())
    if len(rows) < 30:
        sys.exit(f"deploy/check.py: found only {len(rows)} settings in {source}: has the table a new form?")
    return {name: default for name, default, _ in rows}, {name: text.replace("`", "") for name, _, text in rows}


def check_environment_file(path: Path, settings: dict[str, str], described: dict[str, str]):
    """Every setting is there, commented, with its true default and its description, which may go on; the password
    comes as a credential."""
    found = re.findall(r"((?:^# .*\n)*)^#([A-Z_]+)=(.*)$", path.read_text(), re.MULTILINE)
    shown = {name: default for _, name, default in found}
    comments = {name: " ".join(comment.replace("\n# ", " ")[2:].split()) for comment, name, _ in found}
    expected = {name: default for name, default in settings.items() if not name.startswith("MQ_PASSWORD")}
    for name in sorted(expected.keys() | shown.keys()):
        if shown.get(name) != expected.get(name):
            yield f"{path.name}: {name} is {shown.get(name)!r}, the program has {expected.get(name)!r}"
        elif not comments[name].startswith(described[name]):
            yield f"{path.name}: {name} is described as {comments[name]!r}, by the program as {described[name]!r}"


def check_unit(path: Path, settings: dict[str, str]):
    unit = dict(re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE))
    yield from check_grace(path.name, settings["SHUTDOWN_GRACE"], seconds(unit["TimeoutStopSec"]))


def check_kubernetes(folder: Path, settings: dict[str, str]):
    objects = {}
    for path in sorted(set(folder.glob("*.yaml")) - {folder / RECORDER, folder / CLUSTER}):
        for document in yaml.safe_load_all(path.read_text()):
            objects[document["kind"]] = document
            if document["kind"] not in ("Namespace", "Kustomization"):
                if document["metadata"].get("namespace") != NAMESPACE:
                    yield f"{path.name}: not in the namespace {NAMESPACE}"

    listed = set(objects["Kustomization"]["resources"])
    present = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml", "secret.example.yaml", RECORDER, CLUSTER}
    if listed != present:
        yield f"kustomization.yaml: resources differ from the folder by {sorted(listed ^ present)}"

    template = objects["Deployment"]["spec"]["template"]
    pod, labels = template["spec"], template["metadata"]["labels"]
    container = pod["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    config = objects["ConfigMap"]["data"]

    selectors = {
        "Deployment": objects["Deployment"]["spec"]["selector"]["matchLabels"],
        "Service": objects["Service"]["spec"]["selector"],
        "NetworkPolicy": objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        "PodDisruptionBudget": objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    }
    for kind, selector in selectors.items():
        if not selector.items() <= labels.items():
            yield f"{kind}: its selector {selector} does not match the pods"

    for port in objects["Service"]["spec"]["ports"]:
        if port["targetPort"] not in ports:
            yield f"Service: no container port is called {port['targetPort']}"
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        if container[probe]["httpGet"]["port"] not in ports:
            yield f"Deployment: {probe} asks a port that is not there"
    for setting, port in (("DEVICE_LISTEN", "devices"), ("HTTP_LISTEN", "http")):
        if not config[setting].endswith(f":{ports[port]}"):
            yield f"ConfigMap: {setting} is {config[setting]}, the container port {port} is {ports[port]}"
    allowed = {port["port"] for rule in objects["NetworkPolicy"]["spec"]["ingress"] for port in rule["ports"]}
    if allowed != set(ports.values()):
        yield f"NetworkPolicy: lets in to {sorted(allowed)}, the container has {sorted(ports.values())}"

    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    for volume in pod["volumes"]:
        name, secret = volume["name"], objects["Secret"]
        if volume["secret"]["secretName"] != secret["metadata"]["name"]:
            yield f"Deployment: the volume {name} names another secret than secret.example.yaml"
        files = {f"{mounts[name]}/{key}" for key in secret["stringData"]}
        if config["MQ_PASSWORD_FILE"] not in files:
            yield f"ConfigMap: MQ_PASSWORD_FILE is none of {sorted(files)}"

    yield from check_names("ConfigMap", config, settings)
    grace = config.get("SHUTDOWN_GRACE", settings["SHUTDOWN_GRACE"])
    yield from check_grace("Deployment", grace, pod["terminationGracePeriodSeconds"])
    if pod.get("enableServiceLinks") is not False:
        yield "Deployment: enableServiceLinks must be false, or Services put variables among the settings"
    if objects["Service"]["spec"].get("externalTrafficPolicy") != "Local":
        yield "Service: without externalTrafficPolicy Local all devices have the address of a node"


def check_cluster(folder: Path, settings: dict[str, str], metrics: Path):
    """Its pods are those of the Deployment but for what makes them several."""
    bridges, scaler = yaml.safe_load_all((folder / CLUSTER).read_text())
    deployment = yaml.safe_load((folder / "deployment.yaml").read_text())
    template, one = bridges["spec"]["template"], deployment["spec"]["template"]
    container = template["spec"]["containers"][0]
    given = {variable["name"]: variable for variable in container.pop("env")}
    yield from check_names(CLUSTER, given, settings)
    if given.get("CLUSTER", {}).get("value") != "on":
        yield f"{CLUSTER}: CLUSTER must be on, or each bridge takes the devices of the others for offline"
    if given.get("BRIDGE_NAME", {}).get("valueFrom") != {"fieldRef": {"fieldPath": "metadata.name"}}:
        yield f"{CLUSTER}: BRIDGE_NAME must be the pod's, or all bridges have the same"
    config = yaml.safe_load((folder / "configmap.yaml").read_text())["data"]
    grace, spread = (config.get(name, settings[name]) for name in ("SHUTDOWN_GRACE", "CLUSTER_DRAIN_SPREAD"))
    if 2 * seconds(spread) > seconds(grace):
        yield f"{CLUSTER}: CLUSTER_DRAIN_SPREAD={spread} is more than half of SHUTDOWN_GRACE={grace}, and would be cut short"
    del template["spec"]["topologySpreadConstraints"]
    if template != one or bridges["spec"]["selector"] != deployment["spec"]["selector"]:
        yield f"{CLUSTER}: its pods differ from those of deployment.yaml"
    target = scaler["spec"]["scaleTargetRef"]
    if (target["kind"], target["name"]) != (bridges["kind"], bridges["metadata"]["name"]):
        yield f"{CLUSTER}: what is scaled is {target['kind']} {target['name']}, which is not there"
    metric = scaler["spec"]["metrics"][0]["pods"]["metric"]["name"]
    if f'"{metric.removeprefix("rabbitline_")}"' not in metrics.read_text():
        yield f"{CLUSTER}: {metric} is no metric of the program"


def check_recorder(folder: Path, settings: dict[str, str]):
    """It has the broker's settings and secret from the bridge, and must not be taken for one."""
    recorder, policy = yaml.safe_load_all((folder / RECORDER).read_text())
    config = yaml.safe_load((folder / "configmap.yaml").read_text())
    service = yaml.safe_load((folder / "service.yaml").read_text())
    secret = yaml.safe_load((folder / "secret.example.yaml").read_text())
    template = recorder["spec"]["template"]
    pod, labels = template["spec"], template["metadata"]["labels"]
    container = pod["containers"][0]
    for document in (recorder, policy):
        if document["metadata"]["namespace"] != NAMESPACE:
            yield f"{RECORDER}: not in the namespace {NAMESPACE}"
    for selector in (recorder["spec"]["selector"]["matchLabels"], policy["spec"]["podSelector"]["matchLabels"]):
        if not selector.items() <= labels.items():
            yield f"{RECORDER}: the selector {selector} does not match the pods"
    if service["spec"]["selector"].items() <= labels.items():
        yield f"{RECORDER}: devices would be led to it, its labels are those of the Service"
    if container["envFrom"][0]["configMapRef"]["name"] != config["metadata"]["name"]:
        yield f"{RECORDER}: it has its settings from another ConfigMap"

    secrets = {volume["name"]: volume["secret"]["secretName"] for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: secrets[mount["name"]] for mount in container["volumeMounts"]}
    given = {variable["name"]: variable["value"] for variable in container["env"]}
    yield from check_names(RECORDER, given, settings)
    password, of_database = config["data"]["MQ_PASSWORD_FILE"], given["RECORD_DATABASE_PASSWORD_FILE"]
    if mounts.get(password.rpartition("/")[0]) != secret["metadata"]["name"]:
        yield f"{RECORDER}: the Secret of {password} is not mounted"
    if mounts.get(of_database.rpartition("/")[0]) in (None, secret["metadata"]["name"]):
        yield f"{RECORDER}: the Secret of {of_database} is not mounted"
    grace = config["data"].get("SHUTDOWN_GRACE", settings["SHUTDOWN_GRACE"])
    yield from check_grace(RECORDER, grace, pod["terminationGracePeriodSeconds"])


def check_compose(path: Path, settings: dict[str, str]):
    compose = yaml.safe_load(path.read_text())
    bridge, device = compose["services"]["bridge"], compose["services"]["device"]
    yield from check_names(path.name, bridge["environment"], settings)
    yield from check_grace(path.name, settings["SHUTDOWN_GRACE"], seconds(bridge["stop_grace_period"]))
    build = bridge["build"]
    containerfile = (path.parent / build["context"] / build["dockerfile"]).resolve()
    if not containerfile.is_file():
        yield f"{path.name}: {containerfile} is not there"
    address = device["networks"]["rabbitline"]["ipv4_address"]
    if f"send {address} " not in path.read_text():
        yield f"{path.name}: the example at its top sends to another address than {address}"


def check_image(path: Path, manifest: Path):
    version = re.search(r'^version = "(.*)"$', manifest.read_text(), re.MULTILINE)[1]
    rust = re.search(r'^rust-version = "(.*)"$', manifest.read_text(), re.MULTILINE)[1]
    text = path.read_text()
    for wanted in (f'image.version="{version}"', f"rust:{rust}-"):
        if wanted not in text:
            yield f"{path.name}: expected {wanted}, as Cargo.toml has it"


def check_names(where: str, given: dict, settings: dict[str, str]):
    for name in given:
        if name not in settings:
            yield f"{where}: {name} is no setting"


def check_grace(where: str, grace: str, stop_after: int):
    if stop_after < seconds(grace) + STOP_MARGIN:
        yield f"{where}: killed after {stop_after} s, which is not {STOP_MARGIN} s more than SHUTDOWN_GRACE={grace}"


def seconds(duration: str) -> int:
    return int(duration.removesuffix("s"))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
