"""The role ollama: settings that refuse, the engine's environment, the parts of the vendor's archive."""

from __future__ import annotations

import fnmatch

import pytest
from pydantic import ValidationError

from ownstack.data import load_artifacts
from ownstack.errors import ConfigError
from ownstack.runner.unpack import inner
from roles.ollama import environment, files, models_dir, resident, services, unpack_rule
from roles.ollama.settings import EXTRA_ENV, Settings
from tests.unit.engine_plans import BOOTSTRAP, CHAT, EMBEDDING, plan

HOSTILE = (
    "; reboot",
    "$(reboot)",
    "`reboot`",
    "'",
    '"',
    "\n",
    "a\nOLLAMA_HOST=0.0.0.0",
    "{{ 7*7 }}",
    "%n",
    "../../etc",
)
# names in the vendor's archive, as its documentation and public recipes list them
ARCHIVE = (
    "bin/ollama", "lib/ollama/llama-server", "lib/ollama/llama-quantize", "lib/ollama/libggml-base.so",
    "lib/ollama/libllama.so", "lib/ollama/cuda_v12/libggml-cuda.so", "lib/ollama/cuda_v13/libcublas.so.13",
    "lib/ollama/vulkan/libggml-vulkan.so", "lib/ollama/rocm_v7_2/libggml-hip.so", "lib/ollama/mlx_cuda_v13/libmlx.so",
)  # fmt: skip


@pytest.mark.parametrize("name", EXTRA_ENV)
@pytest.mark.parametrize("value", HOSTILE)
def test_extra_env_refuses_hostile_values(name: str, value: str) -> None:
    with pytest.raises(ValidationError, match="not of the form"):
        Settings(extra_env={name: value})


@pytest.mark.parametrize(
    "name",
    ["OLLAMA_HOST", "OLLAMA_MODELS", "OLLAMA_ORIGINS", "OLLAMA_NO_CLOUD", "OLLAMA_REMOTES", "OLLAMA_DEBUG_LOG_REQUESTS",
     "LD_PRELOAD", "LD_LIBRARY_PATH", "PATH", "HOME", "ollama_debug", "OLLAMA_DEBUG ", ""],
)  # fmt: skip
def test_extra_env_refuses_other_names(name: str) -> None:
    with pytest.raises(ValidationError, match="may not be set here"):
        Settings(extra_env={name: "1"})


@pytest.mark.parametrize(
    ("name", "value"),
    [("OLLAMA_VULKAN", "1"), ("GGML_VK_VISIBLE_DEVICES", "0,1"), ("LLAMA_ARG_FIT_TARGET", "23450"),
     ("OLLAMA_GPU_OVERHEAD", "536870912"), ("OLLAMA_DEBUG", "1"), ("CUDA_VISIBLE_DEVICES", "GPU-8f6d-11"),
     ("HSA_OVERRIDE_GFX_VERSION", "11.0.0"), ("VK_DRIVER_FILES", "/usr/share/vulkan/icd.d/lvp_icd.x86_64.json")],
)  # fmt: skip
def test_extra_env_reaches_the_engine(name: str, value: str) -> None:
    assert environment(plan(ollama={"extra_env": {name: value}}))[name] == value


def test_extra_env_cannot_replace_what_the_kit_sets() -> None:
    assert set(environment(plan())) & set(EXTRA_ENV) <= {"OLLAMA_VULKAN"}


@pytest.mark.parametrize(
    "url", ["ftp://x", "http://a b", "http://u:p@h", "http://h/path", "http://h:1;x", "javascript:1"]
)
def test_url_of_an_existing_engine_is_an_address(url: str) -> None:
    with pytest.raises(ValidationError):
        Settings(use="existing", url=url)


def test_environment_is_closed_and_follows_the_plan() -> None:
    found = environment(plan())
    assert found["OLLAMA_HOST"] == "127.0.0.1:11434"
    assert (found["OLLAMA_NO_CLOUD"], found["OLLAMA_NOPRUNE"], found["OLLAMA_NOHISTORY"]) == ("1", "1", "1")
    assert found["OLLAMA_DEBUG_LOG_REQUESTS"] == "0"
    assert found["OLLAMA_CONTEXT_LENGTH"] == str(CHAT.context)
    assert found["OLLAMA_MAX_LOADED_MODELS"] == "2"  # chat and embedding; the bootstrap model gives way


def test_quantised_cache_turns_flash_attention_on() -> None:
    quantised = CHAT.model_copy(update={"kv_type": "q8_0", "parallel": 3})
    found = environment(plan(models=(quantised,)))
    assert (found["OLLAMA_KV_CACHE_TYPE"], found["OLLAMA_FLASH_ATTENTION"]) == ("q8_0", "1")
    assert found["OLLAMA_NUM_PARALLEL"] == "3"
    assert "OLLAMA_FLASH_ATTENTION" not in environment(plan())
    with pytest.raises(ConfigError, match="flash attention"):
        environment(plan(models=(quantised,), ollama={"flash_attention": "off"}))


def test_only_the_chat_model_or_its_stand_in_is_resident() -> None:
    assert resident(plan()) == [CHAT, EMBEDDING]
    assert resident(plan(models=(BOOTSTRAP, EMBEDDING))) == [BOOTSTRAP, EMBEDDING]


@pytest.mark.parametrize(("engine", "gpu"), [("cpu", False), ("cuda", True), ("rocm", True), ("vulkan", True)])
def test_service_is_on_loopback_and_opens_devices_only_for_gpus(engine: str, gpu: bool) -> None:
    (service,) = services(plan(engine=engine))
    assert service.ports == (11434,)
    assert service.child_ports
    assert (service.gpu, service.jit) == (gpu, gpu)
    assert bool(service.groups) == gpu
    assert service.network == "closed"
    assert "0.0.0.0" not in str(service)


def test_services_are_pure() -> None:
    assert services(plan()) == services(plan())


def test_models_folder_can_lie_on_another_disk() -> None:
    bound = plan(folders=(("ollama:models", "/srv/models", True), ("ollama:papers", "/srv/papers", False)))
    (service,) = services(bound)
    assert models_dir(bound) == "/srv/models"
    assert "/srv/models" in service.writable
    assert service.readable == ("/srv/papers",)
    assert dict(service.environment)["OLLAMA_MODELS"] == "/srv/models"


def test_the_engines_own_file_switches_the_cloud_off() -> None:
    (file,) = files(plan())
    assert file.path.endswith("/ollama/.ollama/server.json")
    assert '"disable_ollama_cloud": true' in file.content


@pytest.mark.parametrize(
    ("engine", "taken", "left"),
    [
        (
            "cpu",
            ["bin/ollama", "lib/ollama/llama-server", "lib/ollama/libggml-base.so"],
            ["cuda", "vulkan", "rocm", "mlx"],
        ),
        (
            "cuda",
            ["lib/ollama/cuda_v12/libggml-cuda.so", "lib/ollama/cuda_v13/libcublas.so.13"],
            ["vulkan", "rocm", "mlx"],
        ),
        ("vulkan", ["lib/ollama/vulkan/libggml-vulkan.so"], ["cuda", "rocm", "mlx"]),
        ("rocm", ["lib/ollama/rocm_v7_2/libggml-hip.so"], ["cuda", "vulkan", "mlx"]),
    ],
)
def test_only_the_parts_of_this_hardware_are_unpacked(engine: str, taken: list[str], left: list[str]) -> None:
    rule = unpack_rule({"unpack": {"format": "tar.zst"}, "parts": True}, engine)
    kept = [name for name in ARCHIVE if inner(name, 0, rule["include"])]
    assert set(taken) <= set(kept)
    assert "bin/ollama" in kept
    assert not [name for name in kept for word in left if word in name]


def test_an_archive_of_one_engine_is_unpacked_whole() -> None:
    assert "include" not in unpack_rule({"unpack": {"format": "tar.gz"}}, "cpu")


def test_every_platform_and_engine_has_a_source() -> None:
    (artifact,) = load_artifacts("ollama")
    for platform in ("linux-x86_64", "linux-aarch64"):
        engines = {e for v in artifact["variant"] if v["platform"] == platform for e in v["engines"]}
        assert {"cpu", "cuda", "vulkan"} <= engines
    builds = [v for v in artifact["variant"] if v["kind"] == "build"]
    assert all("cuda" not in v["engines"] for v in builds), "the registry's engine knows no CUDA"
    assert all(len(v["inputs_sha256"]) == 64 for v in builds)


def test_go_module_is_locked_to_the_variants_version() -> None:
    from ownstack.kit import kit_root

    lines = (kit_root() / "roles/ollama/go.mod").read_text()
    (artifact,) = load_artifacts("ollama")
    for variant in artifact["variant"]:
        if variant["kind"] == "build":
            assert f"github.com/ollama/ollama v{variant['version']}" in lines
    assert fnmatch.filter(
        (kit_root() / "roles/ollama/go.sum").read_text().splitlines(), "github.com/ollama/ollama v0.34.2 h1:*"
    )
