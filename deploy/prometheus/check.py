"""Holds alerts and dashboard against promtool and against the program's metrics.

Usage: check.py ROOT. Prints one sentence a finding and exits with 1 if there is any.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

# What a counter and a histogram are called in Prometheus, besides the name they have in the program.
SUFFIXES = ("_total", "_bucket", "_sum", "_count")
# Variables of the dashboard, as promtool can read them.
VARIABLES = {"$__rate_interval": "5m", "$instance": ".*"}


def main(root: Path) -> int:
    rules = root / "deploy" / "prometheus" / "rules.yaml"
    tests = root / "deploy" / "prometheus" / "rules.test.yaml"
    dashboard = json.loads((root / "deploy" / "grafana" / "rabbitline.json").read_text())
    metrics = read_metrics(root / "src" / "metrics.rs")
    alerts = [rule for group in yaml.safe_load(rules.read_text())["groups"] for rule in group["rules"]]
    findings = [
        *check_rules(rules),
        *check_tests(alerts, tests),
        *check_names("alert", {rule["alert"]: rule["expr"] for rule in alerts}, metrics),
        *check_names("panel", expressions(dashboard), metrics),
        *check_expressions(dashboard),
        *check_layout(dashboard),
    ]
    for finding in findings:
        print(f"deploy/prometheus/check.py: {finding}", file=sys.stderr)
    return 1 if findings else 0


def read_metrics(source: Path) -> set[str]:
    """The names the program registers, without the ending that tells a counter."""
    names = set(re.findall(r'(?:counter|counters|gauge|seconds)\(\s*(?:r|registry),\s*"([a-z_]+)"', source.read_text()))
    names |= set(re.findall(r'register\("([a-z_]+)"', source.read_text()))
    if len(names) < 15:
        sys.exit(f"deploy/prometheus/check.py: found only {len(names)} metrics in {source}: has it a new form?")
    return names


def promtool(*words: str) -> list[str]:
    done = subprocess.run(["promtool", *words], capture_output=True, text=True)
    return [] if done.returncode == 0 else [(done.stdout + done.stderr).strip()]


def check_rules(rules: Path):
    yield from promtool("check", "rules", str(rules))


def check_tests(alerts: list[dict], tests: Path):
    """Runs the tests on alerts without their texts, which promtool would want repeated in each."""
    told = [test["name"] for test in yaml.safe_load(tests.read_text())["tests"]]
    for alert in alerts:
        for case in ("fires", "stays quiet"):
            if f"{alert['alert']} {case}" not in told:
                yield f"{tests.name}: no test `{alert['alert']} {case}`"
    bare = [{key: value for key, value in alert.items() if key != "annotations"} for alert in alerts]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "rules.yaml"
        copy.write_text(yaml.safe_dump({"groups": [{"name": "rabbitline", "rules": bare}]}))
        (Path(folder) / tests.name).write_text(tests.read_text())
        yield from promtool("test", "rules", str(Path(folder) / tests.name))


def expressions(dashboard: dict) -> dict[str, str]:
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    }


def check_names(kind: str, queries: dict[str, str], metrics: set[str]):
    for name, query in queries.items():
        for metric in re.findall(r"\brabbitline_([a-z_]+)", query):
            stems = {metric.removesuffix(suffix) for suffix in SUFFIXES} | {metric}
            if not stems & metrics:
                yield f"{kind} {name}: the program has no metric rabbitline_{metric}"


def check_expressions(dashboard: dict):
    """promtool reads queries only in rules."""
    rules = []
    for number, query in enumerate(expressions(dashboard).values()):
        for variable, value in VARIABLES.items():
            query = query.replace(variable, value)
        rules.append({"record": f"query:{number}", "expr": query})
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as copy:
        yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}, copy)
        copy.flush()
        yield from promtool("check", "rules", copy.name)


def check_layout(dashboard: dict):
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        for cell in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            if cell in taken:
                yield f"panel {panel['title']} lies over {taken[cell]}"
                break
            taken[cell] = panel["title"]
    ids = [panel["id"] for panel in dashboard["panels"]]
    if len(ids) != len(set(ids)):
        yield "two panels have the same id"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
