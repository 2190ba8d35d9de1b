"""What Prometheus sees of a training: on the metrics port of a real Ray, while it trains."""

import json
import os
import re
import subprocess
import urllib.request

import pytest
import yaml
from smoke_training import train_command
from waiting import wait_for

from workflows.manifests import Site, files

OURS = re.compile(r'^(ray_ddpm_\w+)\{.*training="(\w+)".*\} (\S+)$', re.MULTILINE)


def fetched(url):
    token = os.environ["RAY_AUTH_TOKEN"]
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})) as answer:
        return answer.read().decode()


def seen(cluster):
    """Our metrics by name, wherever Ray tells Prometheus to look for them; and the trainings that they are of."""
    groups = json.loads(fetched(f"{cluster.dashboard}/api/prometheus/sd"))
    texts = [fetched(f"http://{target}/metrics") for group in groups for target in group["targets"]]
    found = [line for text in texts for line in OURS.findall(text)]
    return {name: float(value) for name, _, value in found}, {training for _, training, _ in found}


@pytest.mark.chaos
@pytest.mark.ray
def test_a_training_shows_every_metric_that_a_rule_asks_for_under_its_key(cluster, whole, tmp_path):
    words = ["--log-every", "5", "--checkpoint-every", "20", "--address", cluster.address]
    asked = set(re.findall(r"ray_ddpm_\w+", files(Site())["prometheus/rules.yaml"]))
    training = subprocess.Popen([*train_command(whole["data"], tmp_path, 1_000_000), *words], stderr=subprocess.PIPE)
    try:
        values, trainings = wait_for(
            lambda: (now := seen(cluster)) and asked | {"ray_ddpm_train_loss"} <= now[0].keys() and now, training
        )
    finally:
        training.terminate()
        training.communicate()
    (key,) = (path.name for path in (tmp_path / "train").iterdir() if path.name != "ray")

    assert len(asked) >= 3
    assert trainings == {key}
    assert values["ray_ddpm_train_images_per_second"] > 0
    assert 0 <= values["ray_ddpm_train_data_wait_ratio"] <= 1
    assert 0 < values["ray_ddpm_train_loss"] < 10
    assert values["ray_ddpm_train_failures"] == 0
    assert values["ray_ddpm_train_step"] % 5 == 0


def test_every_rule_is_about_a_training_whichever_process_of_it_a_number_came_from():
    """An attempt is a new process, whose series begin anew: one series says nothing of what came before it."""
    (group,) = yaml.safe_load(files(Site())["prometheus/rules.yaml"])["groups"]
    exprs = {rule.get("alert", rule.get("record")): rule["expr"] for rule in group["rules"]}
    over_time = r"(?:max|min) by \(training\) \((?:max|min)_over_time\(ray_ddpm_train_\w+\[\w+\]\)\)"

    assert [expr for expr in exprs.values() if "ray_ddpm" in re.sub(over_time, "", expr)] == []
    assert exprs["DdpmRestarts"] == (
        "max by (training) (max_over_time(ray_ddpm_train_failures[1h]))"
        " - min by (training) (min_over_time(ray_ddpm_train_failures[1h])) >= 3"
    )


def test_every_rule_and_scrape_is_yaml_that_names_what_to_do():
    written = files(Site())
    rules = yaml.safe_load(written["prometheus/rules.yaml"])["groups"][0]["rules"]
    config = yaml.safe_load(written["prometheus/prometheus.yaml"])

    assert all({"expr"} < rule.keys() for rule in rules)
    assert [rule for rule in rules if "alert" in rule and "summary" not in rule["annotations"]] == []
    assert config["rule_files"] == ["rules.yaml"]
