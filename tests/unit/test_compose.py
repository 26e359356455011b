import re
import subprocess
import sys
import tomllib
from pathlib import Path, PurePosixPath

import pytest
from ruamel.yaml import YAML

from api.settings import ApiSettings
from shared.cost import PROMPT_TOKENS
from shared.settings import StoreSettings, TokenSettings

ROOT = Path(__file__).parents[2]
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE = YAML(typ="safe", pure=True).load(COMPOSE_TEXT)
SERVICES = COMPOSE["services"]
OURS = sorted(set(SERVICES) - {"redis"})
WORKERS = ["worker", "worker-cpu"]
DOCKERFILES = ["Dockerfile", "Dockerfile.gpu"]
FINAL = ""  # the last stage has no name
REDIS_CONF = dict(
    line.split(None, 1)
    for line in (ROOT / "deploy/redis.conf").read_text().splitlines()
    if line and not line.startswith("#")
)


def started(*profiles):
    """What `docker compose [--profile ...] up` starts. Compose takes "" for the active profile where none is named."""
    active = set(profiles or [""])
    return {name for name, service in SERVICES.items() if active & set(service.get("profiles", active))}


def devices(service):
    resources = SERVICES[service].get("deploy", {}).get("resources", {})
    return resources.get("reservations", {}).get("devices", [])


def writable(service):
    """The folders of a container that outlive or hold writes: its volumes and its tmpfs."""
    volumes = [volume.split(":") for volume in SERVICES[service].get("volumes", [])]
    tmpfs = [mount.split(":")[0] for mount in SERVICES[service].get("tmpfs", [])]
    return [PurePosixPath(at) for at in tmpfs + [target for _, target, *mode in volumes if "ro" not in mode]]


def stages(dockerfile):
    """The instructions of each build stage, by the stage's name."""
    found = {}
    for line in re.sub(r"\\\n\s*", "", (ROOT / dockerfile).read_text()).splitlines():
        if line.startswith("FROM "):
            instructions = found.setdefault(line.partition(" AS ")[2], [])
        elif line and not line.startswith("#") and found:
            instructions.append(line)
    return found


def image_environment(dockerfile):
    return dict(re.findall(r"(\w+)=(\S+)", " ".join(line for line in stages(dockerfile)[FINAL] if line[:3] == "ENV")))


def gib(size):
    return float(re.fullmatch(r"(\d+)g[b]?", size).group(1))


def test_every_container_has_a_memory_limit_and_redis_has_room_for_a_fork():
    assert all(gib(service["mem_limit"]) >= 1 for service in SERVICES.values())
    assert gib(SERVICES["redis"]["mem_limit"]) >= 2 * gib(REDIS_CONF["maxmemory"])


def test_redis_bounds_what_its_clients_do_not_read_and_lets_a_worker_read_a_task():
    kind, hard, soft, _ = REDIS_CONF["client-output-buffer-limit"].split()
    assert kind == "normal"
    store, api = StoreSettings(_env_file=None), ApiSettings(_env_file=None)
    pages_in_a_task = store.task_tokens // (TokenSettings(_env_file=None).max_visual_tokens + PROMPT_TOKENS)
    for limit in (hard, soft):
        assert int(limit.removesuffix("mb")) * 2**20 > pages_in_a_task * api.max_input_bytes
    assert REDIS_CONF["maxmemory-clients"].endswith("%")


def test_the_compose_file_is_valid_by_the_compose_specification():
    schema = ["--builtin-schema", "vendor.compose-spec"]
    checked = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", *schema, ROOT / "docker-compose.yml"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_up_starts_the_worker_with_the_gpu():
    assert started() == {"redis", "api", "worker", "flower"}
    assert devices("worker") == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]


def test_the_gpu_worker_has_a_documented_profile_name_too():
    assert started("gpu") == started()


def test_the_cpu_profile_starts_the_same_stack_and_reserves_no_gpu():
    assert started("cpu") == {"redis", "api", "worker-cpu", "flower"}
    assert not any(devices(name) for name in started("cpu"))


def test_the_two_workers_differ_in_nothing_but_the_gpu():
    their_own = {"profiles", "build", "environment", "deploy"}
    gpu, cpu = ({key: value for key, value in SERVICES[name].items() if key not in their_own} for name in WORKERS)

    assert gpu == cpu
    assert {SERVICES[name]["build"]["dockerfile"] for name in WORKERS} == {"Dockerfile.gpu"}


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_locked_down_and_comes_back(name):
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["user"].split(":")[0]) > 0
    assert not {"privileged", "cap_add", "pid", "ipc", "network_mode"} & set(service)
    assert service["restart"] == "unless-stopped"
    # Else a TERM while the model loads is lost: the first process of a container ignores it by default.
    assert service["init"] is True


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_has_a_health_check_and_time_to_stop(name):
    assert SERVICES[name]["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}
    assert SERVICES[name]["stop_grace_period"]


@pytest.mark.parametrize("name", OURS)
def test_every_part_waits_for_a_healthy_redis_and_talks_to_it(name):
    assert SERVICES[name]["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert SERVICES[name]["environment"]["COLQUEUE_REDIS_URL"] == "redis://redis:6379/0"
    assert "backend" in SERVICES[name]["networks"]


def test_redis_is_reachable_from_the_other_containers_alone():
    assert "ports" not in SERVICES["redis"]
    assert SERVICES["redis"]["networks"] == ["backend"]
    assert COMPOSE["networks"]["backend"] == {"internal": True}


def test_redis_keeps_every_write_and_evicts_nothing():
    assert REDIS_CONF["appendonly"] == "yes"
    assert REDIS_CONF["appendfsync"] == "everysec"
    assert REDIS_CONF["maxmemory-policy"] == "noeviction"
    assert re.fullmatch(r"[1-9]\d*gb", REDIS_CONF["maxmemory"])


def test_redis_reads_our_file_and_writes_to_its_volume():
    conf = SERVICES["redis"]["command"][1]

    assert f"./deploy/redis.conf:{conf}:ro" in SERVICES["redis"]["volumes"]
    assert PurePosixPath(REDIS_CONF["dir"]) in writable("redis")
    assert "redis" in COMPOSE["volumes"]


def test_the_api_is_published_on_its_port_and_on_the_one_morphik_knows():
    api = SERVICES["api"]

    assert api["ports"] == ["${COLQUEUE_PORT:-8000}:8000", "6000:8000"]
    assert (api["environment"]["COLQUEUE_HOST"], api["environment"]["COLQUEUE_PORT"]) == ("0.0.0.0", "8000")


def test_nothing_but_the_api_is_published_beyond_this_machine():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    assert set(published) == {"api", "flower"}
    assert published["flower"] == ["127.0.0.1:${COLQUEUE_FLOWER_PORT:-5555}:5555"]


def test_up_says_what_is_missing_when_there_is_no_key():
    assert SERVICES["api"]["environment"]["SERVICE_API_KEY"].startswith(
        "${SERVICE_API_KEY:?set SERVICE_API_KEY in .env"
    )


@pytest.mark.parametrize(
    ("secret", "holders"),
    [
        ("SERVICE_API_KEY", {"api"}),
        ("HUGGINGFACE_TOKEN", {"worker", "worker-cpu"}),
        ("FLOWER_BASIC_AUTH", {"flower"}),
    ],
)
def test_a_secret_reaches_only_the_part_that_needs_it(secret, holders):
    assert {name for name in OURS if SERVICES[name]["environment"].get(secret) != ""} == holders


@pytest.mark.parametrize("name", OURS)
def test_every_part_reads_the_one_env_file_which_may_be_absent(name):
    assert SERVICES[name]["env_file"] == [{"path": ".env", "required": False}]


@pytest.mark.parametrize("given", [None, "", "me:mine"])
def test_flower_never_starts_without_a_password(tmp_path, given):
    """Run the container's own command with a `celery` that shows what it got."""
    (tmp_path / "celery").write_text('#!/bin/sh\necho "$FLOWER_BASIC_AUTH|$FLOWER_UNAUTHENTICATED_API|$*"\n')
    (tmp_path / "celery").chmod(0o755)
    (tmp_path / "python").symlink_to(sys.executable)
    command = [part.replace("$$", "$") for part in SERVICES["flower"]["command"]]
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"} | ({} if given is None else {"FLOWER_BASIC_AUTH": given})

    runs = [subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout for _ in range(2)]

    (*said, got), (*_, got_again) = map(str.splitlines, runs)
    login, _, arguments = got.split("|")
    assert arguments.startswith("-A shared.celery_entry flower --address=0.0.0.0 --port=5555 ")
    assert SERVICES["flower"]["environment"]["FLOWER_UNAUTHENTICATED_API"] == "false"
    if given:
        assert (login, said) == (given, [])
    else:
        assert re.fullmatch(r"colqueue:[\w-]{32}", login)
        assert login in said[0], "the log says it"
        assert got_again != got


def test_every_variable_of_the_compose_file_is_in_the_example():
    used = set(re.findall(r"\$\{(\w+)", COMPOSE_TEXT))
    listed = set(re.findall(r"^#?\s*(\w+)=", (ROOT / ".env.example").read_text(), flags=re.MULTILINE))

    assert used
    assert used <= listed


@pytest.mark.parametrize("name", WORKERS)
@pytest.mark.parametrize("variable", ["HF_HOME", "COLQUEUE_CACHE_DIR", "COLQUEUE_ALIVE_FILE"])
def test_the_worker_writes_where_it_may(name, variable):
    path = SERVICES[name]["environment"][variable]

    assert any(PurePosixPath(path).is_relative_to(folder) for folder in writable(name))
    assert image_environment("Dockerfile.gpu")[variable] == path


def test_a_downloaded_model_outlives_its_container():
    assert "models:/models" in SERVICES["worker"]["volumes"]
    assert "models" in COMPOSE["volumes"]
    assert SERVICES["worker"]["environment"]["HF_HOME"].startswith("/models/")


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_a_source_change_installs_no_dependency_again(dockerfile):
    build = stages(dockerfile)
    copied = [line for line in build["python"] + build["dependencies"] if line.startswith(("COPY", "ADD"))]
    final = [line for line in build[FINAL] if line.startswith(("COPY", "ADD"))]

    assert copied == ["COPY pyproject.toml constraints.txt ./"]
    assert final == ["COPY --from=dependencies /venv /venv", "COPY --from=package /app /app"]


@pytest.mark.parametrize(("dockerfile", "extras"), [("Dockerfile", "[api,flower]"), ("Dockerfile.gpu", "[worker]")])
def test_an_image_holds_its_own_parts_dependencies_at_the_pinned_versions(dockerfile, extras):
    installs = [line for line in stages(dockerfile)["dependencies"] if " install -c constraints.txt " in line]

    assert [f"'.{extras}'" in line for line in installs] == [True]


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_the_final_image_installs_nothing_but_python(dockerfile):
    build = stages(dockerfile)
    installed = re.findall(r"apt-get install ([^&]*)", " ".join(build["python"] + build[FINAL]))

    assert installed == ["-y --no-install-recommends python3 "]
    assert not [line for line in build[FINAL] if "pip" in line]


@pytest.mark.parametrize("name", OURS)
def test_an_image_runs_as_the_user_that_compose_names(name):
    final = stages(SERVICES[name]["build"]["dockerfile"])[FINAL]

    assert [line for line in final if line.startswith("USER")] == [f"USER {SERVICES[name]['user']}"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_every_stage_stands_on_the_base_image_of_the_builds_choice(dockerfile):
    text = (ROOT / dockerfile).read_text()

    assert re.search(r"^ARG BASE_IMAGE=\S+$", text, flags=re.MULTILINE)
    assert re.findall(r"^FROM (\S+)", text, flags=re.MULTILINE) == ["${BASE_IMAGE}", "python", "dependencies", "python"]


def test_the_build_sees_the_package_and_nothing_else():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    ignore = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]

    assert ignore[0] == "*"
    admitted = {line[1:] for line in ignore if line.startswith("!")}
    assert admitted == packages | {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_the_empty_package_has_the_folders_of_the_real_one(dockerfile):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    made = re.findall(r"mkdir ([^&]*) &&", " ".join(stages(dockerfile)["dependencies"]))

    assert [set(folders.split()) for folders in made] == [packages]
