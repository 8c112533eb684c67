"""What the corpus does not show: rarer failures, overrides, ports, changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ownstack.errors import ConfigError, DetectionError
from ownstack.fitting.cards import Cards
from ownstack.fitting.machine import machine_of
from ownstack.hardware.change import describe_change, models_changed
from ownstack.hardware.facts import RawProbe, load, make_anonymous, save
from ownstack.hardware.host import decode_address
from ownstack.hardware.interpret import Overrides, interpret
from ownstack.hardware.report import HardwareReport, Reading
from tests.fixtures.machines import PROBES

ASKS = "sudo\tmessage\tsudo: a password is required"


def probe(name: str) -> RawProbe:
    return load(PROBES / f"{name}.json")


def changed(name: str, drop: tuple[str, ...] = (), add: tuple[str, ...] = (), **fields: object) -> RawProbe:
    """A probe of the corpus with lines taken away (by their beginning) and added."""
    raw = probe(name)
    lines = tuple(line for line in raw.lines if not line.startswith(drop)) if drop else raw.lines
    return raw.model_copy(update={"lines": lines + add, **fields})


def ids(report: HardwareReport) -> list[str]:
    return [problem.id for problem in report.problems]


def test_a_cut_off_probe_is_a_problem() -> None:
    report = interpret(changed("rtx-4090", ("probe\tend",)))
    assert "HW-PROBE-INCOMPLETE" in [p.id for p in report.fatal]


@pytest.mark.parametrize(
    ("drop", "id"), [(("mem\t",), "HW-MEMORY-UNREADABLE"), (("mem\t", "probe\tend"), "HW-PROBE-INCOMPLETE")]
)
def test_a_machine_without_memory_is_no_machine(drop: tuple[str, ...], id: str) -> None:
    with pytest.raises(DetectionError) as caught:
        interpret(changed("rtx-4090", drop))
    assert caught.value.code == id
    assert caught.value.exit_code == 3
    assert caught.value.hint


@pytest.mark.parametrize(
    ("code", "id"),
    [
        (3, "HW-NVIDIA-MEMORY-UNKNOWN"),
        (4, "HW-NVIDIA-NO-PERMISSION"),
        (15, "HW-NVIDIA-LOST"),
        (18, "HW-NVIDIA-DRIVER-MISMATCH"),
        (999, "HW-NVIDIA-UNREADABLE"),
    ],
)
def test_an_unreadable_memory_is_unified_only_on_known_parts(code: int, id: str) -> None:
    """NOT_SUPPORTED on a card with memory of its own is a fault, never a pool of RAM."""
    raw = probe("rtx-4090")
    assert raw.nvml is not None
    device = raw.nvml["devices"][0] | {"memory": {"error": code, "text": "said so"}}
    report = interpret(raw.model_copy(update={"nvml": raw.nvml | {"devices": [device]}, "smi": None}))
    assert ids(report) == [id]
    assert report.fatal
    assert report.gpus == ()


@pytest.mark.parametrize(
    ("code", "words", "id"),
    [
        (4, "[Insufficient Permissions]", "HW-NVIDIA-NO-PERMISSION"),
        (15, "[GPU is lost]", "HW-NVIDIA-LOST"),
        (18, "", "HW-NVIDIA-DRIVER-MISMATCH"),
        (999, "[Unknown Error]", "HW-NVIDIA-UNREADABLE"),
    ],
)
def test_a_unified_part_that_is_broken_is_no_pool(code: int, words: str, id: str) -> None:
    """Only "not supported" means that the part shares the RAM; any other error is a fault here too."""
    raw = probe("gb10")
    assert raw.nvml is not None
    device = raw.nvml["devices"][0] | {"memory": {"error": code, "text": "said so"}}
    report = interpret(raw.model_copy(update={"nvml": raw.nvml | {"devices": [device]}, "smi": None}))
    assert (ids(report), report.gpus) == ([id], ())
    if words:
        column = raw.smi_fields.index("memory.total")
        values = (raw.smi or ("",))[0].split(", ")
        row = ", ".join([*values[:column], words, *values[column + 1 :]])
        broken = interpret(raw.model_copy(update={"nvml": None, "nvml_error": "not asked", "smi": (row,)}))
        assert broken.gpus == ()
        assert broken.fatal


def test_a_card_put_into_a_jetson_board_keeps_its_own_memory() -> None:
    raw, card = probe("jetson-orin"), probe("rtx-4090")
    lines = raw.lines + tuple(line for line in card.lines if line.startswith(("pci\t", "module\tnvidia")))
    (gpu,) = interpret(raw.model_copy(update={"lines": lines, "nvml": card.nvml, "smi": None})).gpus
    assert (gpu.kind, gpu.memory_total_bytes.value) == ("discrete", 24564 << 20)
    assert "Jetson" not in gpu.why


@pytest.mark.parametrize(("name", "shared"), [("NVIDIA GB10", True), ("NVIDIA GB100", False), ("NVIDIA GB102", False)])
def test_a_part_is_known_by_its_whole_name(name: str, shared: bool) -> None:
    raw = probe("rtx-4090")
    assert raw.nvml is not None
    device = raw.nvml["devices"][0] | {"name": name, "memory": {"error": 3, "text": "Not Supported"}}
    report = interpret(raw.model_copy(update={"nvml": raw.nvml | {"devices": [device]}, "smi": None}))
    assert [gpu.kind for gpu in report.gpus] == (["unified"] if shared else [])
    assert ids(report) == ([] if shared else ["HW-NVIDIA-MEMORY-UNKNOWN"])


def test_a_gpu_shared_by_windows_that_was_not_asked_is_not_passed_over() -> None:
    report = interpret(changed("wsl2-rtx-5080", nvml=None, smi=None, nvml_error=""))
    assert "HW-NVIDIA-UNREADABLE" in [p.id for p in report.fatal]


def test_the_virtual_functions_of_integrated_graphics_are_no_cards() -> None:
    """SR-IOV of i915 on the host of virtual machines: 00:02.1 to 00:02.7, here of a part that no table knows."""
    report = interpret(changed("bare-server", add=("pci\t0000:00:02.1\t0x8086\t0xffe7\t0x030000\ti915\tactive",)))
    assert (report.gpus, report.fatal) == ((), ())
    assert "integrated" in report.ignored_gpus[0].why


@pytest.mark.parametrize("vendor", ["0x1414", "0x80ee", "0x1d0f", "0x1ab8", "0x18ca", "0x126f", "0x5853"])
def test_displays_of_virtual_machines_and_servers_are_no_accelerators(vendor: str) -> None:
    raw = changed("bare-server", ("pci\t",), (f"pci\t0000:00:0f.0\t{vendor}\t0x0111\t0x030000\t\tactive",))
    report = interpret(raw)
    assert (report.gpus, report.problems) == ((), ())
    assert "computes nothing" in report.ignored_gpus[0].why


def test_an_old_card_beside_a_good_one_is_named_and_left_out() -> None:
    report = interpret(changed("rtx-4090", add=("pci\t0000:05:00.0\t0x10de\t0x128b\t0x030000\t\tactive",)))
    assert [gpu.name for gpu in report.gpus] == ["NVIDIA GeForce RTX 4090"]
    assert "GT 710" in report.ignored_gpus[0].name
    assert report.problems == ()


def test_free_memory_stays_between_nothing_and_all_of_it() -> None:
    lines = tuple(line.replace("mem_info_vram_used\t", "mem_info_vram_used\t99") for line in probe("rx-7900-xtx").lines)
    (gpu,) = interpret(probe("rx-7900-xtx").model_copy(update={"lines": lines})).gpus
    assert gpu.memory_free_bytes.value == 0
    raw = probe("rtx-4090")
    assert raw.nvml is not None
    odd = {"total": 24564 << 20, "free": 99 << 40, "used": 0, "reserved": 0}
    answer = raw.nvml | {"devices": [raw.nvml["devices"][0] | {"memory": odd}]}
    (gpu,) = interpret(raw.model_copy(update={"nvml": answer, "smi": None})).gpus
    assert gpu.memory_free_bytes.value == 24564 << 20


def test_no_card_and_no_machine_is_reported_with_0_bytes() -> None:
    raw = probe("rtx-4090")
    assert raw.nvml is not None
    nothing = {"total": 0, "free": 0, "used": 0, "reserved": 0}
    answer = raw.nvml | {"devices": [raw.nvml["devices"][0] | {"memory": nothing}]}
    assert ids(interpret(raw.model_copy(update={"nvml": answer, "smi": None}))) == ["HW-NVIDIA-MEMORY-UNKNOWN"]
    by_smi = tuple(line.replace("24564", "0") for line in raw.smi or ())
    assert ids(interpret(raw.model_copy(update={"nvml": None, "smi": by_smi}))) == ["HW-NVIDIA-MEMORY-UNKNOWN"]
    empty = tuple(
        line.replace("mem_info_vram_total\t25753026560", "mem_info_vram_total\t0")
        for line in probe("rx-7900-xtx").lines
    )
    assert ids(interpret(probe("rx-7900-xtx").model_copy(update={"lines": empty}))) == ["HW-AMD-UNREADABLE"]


def test_a_library_from_before_the_calls_is_an_old_driver() -> None:
    raw = changed("rtx-4090", nvml={"error": 13, "text": "Function Not Found"}, smi=None)
    assert ids(interpret(raw)) == ["HW-NVIDIA-DRIVER-OLD"]


def test_a_card_that_the_driver_does_not_list_is_missed() -> None:
    raw = changed("rtx-4090", add=("pci\t0000:05:00.0\t0x10de\t0x2204\t0x030000\tnvidia\tactive",))
    report = interpret(raw)
    assert [p.id for p in report.fatal] == ["HW-NVIDIA-MISSING-CARD"]
    assert "2 on the bus, 1 listed" in report.fatal[0].message


def test_a_sleeping_card_that_nobody_knows_stops_the_run() -> None:
    raw = probe("hybrid-laptop-asleep")
    lines = tuple(line.replace("0x28e0", "0x3333") for line in raw.lines)
    assert "HW-GPU-ASLEEP-UNKNOWN" in [p.id for p in interpret(raw.model_copy(update={"lines": lines})).fatal]


def test_a_sleeping_card_with_an_old_driver_is_found_out_without_waking_it() -> None:
    raw = probe("hybrid-laptop-asleep")
    lines = tuple(line.replace("610.43.02", "535.183.01") for line in raw.lines)
    assert "HW-NVIDIA-DRIVER-OLD" in [p.id for p in interpret(raw.model_copy(update={"lines": lines})).fatal]


def test_nvml_without_any_way_to_ask_is_unreadable_not_absent() -> None:
    raw = changed("rtx-4090", nvml=None, smi=None, nvml_error="no complete python3 on the target", smi_error="rc 1")
    report = interpret(raw)
    assert [p.id for p in report.fatal] == ["HW-NVIDIA-UNREADABLE"]
    assert "no complete python3" in report.fatal[0].message


def test_amdgpu_that_hides_its_memory() -> None:
    report = interpret(changed("rx-7900-xtx", ("gpu\t0000:03:00.0\tmem_info",)))
    assert [p.id for p in report.fatal] == ["HW-AMD-UNREADABLE"]


def test_arc_without_driver_and_without_node() -> None:
    raw = probe("arc-b580-xe")
    bare = tuple(line.replace("\txe\tactive", "\t\tactive") for line in raw.lines)
    assert [p.id for p in interpret(raw.model_copy(update={"lines": bare})).fatal] == ["HW-INTEL-DRIVER-MISSING"]
    assert [p.id for p in interpret(changed("arc-b580-xe", ("dev\t",))).fatal] == ["HW-INTEL-NO-DEVICE-NODE"]


def test_arc_whose_memory_only_the_table_knows() -> None:
    (gpu,) = interpret(changed("arc-b580-xe", ("gpu\t0000:29:00.0\ttile",))).gpus
    assert gpu.memory_total_bytes == Reading[int](value=12 << 30, source="table")


def test_orin_under_a_system_the_engine_has_no_libraries_for() -> None:
    """ollama/ollama#18067: JetPack 7 on Orin is not detected by the engine."""
    raw = probe("jetson-orin")
    lines = tuple(line.replace("R36 (release)", "R39 (release)") for line in raw.lines)
    report = interpret(raw.model_copy(update={"lines": lines}))
    assert report.gpus == ()
    assert "R39" in report.ignored_gpus[0].why


@pytest.mark.parametrize(
    ("system", "words"),
    [
        ("ubuntu", "ubuntu-drivers"),
        ("debian", "apt install nvidia-driver"),
        ("fedora", "akmod-nvidia"),
        ("arch", "pacman -S nvidia"),
        ("nixos", "videoDrivers"),
        ("opensuse-tumbleweed", "zypper"),
        ("rocky", "dnf module install nvidia-driver"),
        ("plan9", "570"),
    ],
)
def test_the_fix_is_the_one_of_the_system(system: str, words: str) -> None:
    raw = probe("nouveau")
    lines = tuple(f"os\tID\t{system}" if line.startswith("os\tID\t") else line for line in raw.lines)
    (problem,) = interpret(raw.model_copy(update={"lines": lines})).problems
    assert words in problem.fix
    assert "{" not in problem.fix.replace("{ ", "")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no-device-node", "nvidia-modprobe -u -c0"),
        ("lxc-without-nodes", "lxc.mount.entry"),
        ("docker-lost-access", "restart the container"),
        ("amd-container-without-nodes", "--device /dev/kfd"),
        ("nodes-forbidden", "ls -l /dev/nvidia0"),
        ("amd-not-in-render", "usermod -aG render,video user"),
        ("wsl2-no-library", "none inside WSL"),
    ],
)
def test_the_fix_is_the_one_of_the_place(name: str, words: str) -> None:
    assert words in interpret(probe(name)).fatal[0].fix


def test_a_container_uses_the_hosts_driver() -> None:
    raw = changed("driver-too-old", add=("container\tmarker\tdocker",))
    assert "the host's driver" in interpret(raw).fatal[0].fix


def test_overrides_are_kept_apart_and_shown() -> None:
    report = interpret(probe("arc-unknown-size"), Overrides(vram_bytes=24 << 30))
    assert report.overrides == (("vram_bytes", str(24 << 30)),)
    (gpu,) = report.gpus
    assert gpu.memory_total_bytes == Reading[int](value=24 << 30, source="override")
    smaller = interpret(probe("rtx-4090"), Overrides(vram_bytes=8 << 30, ram_bytes=16 << 30))
    assert smaller.gpus[0].memory_total_bytes.source == "override"
    assert smaller.memory.total_bytes == 16 << 30
    assert dict(smaller.provenance)["memory.total_bytes"] == "override"
    assert interpret(probe("rtx-4090")).overrides == ()
    faster = interpret(probe("jetson-orin"), Overrides(bandwidth_bytes_per_s=190e9))
    assert faster.gpus[0].bandwidth_bytes_per_s == Reading[float](value=190e9, source="override")


def test_integrated_graphics_and_software_count_only_when_a_setting_says_so() -> None:
    (gpu,) = interpret(probe("apu-780m"), Overrides(integrated_gpu=True)).gpus
    assert gpu.name.startswith("AMD Radeon 780M")
    (software, *_) = interpret(probe("software-renderer"), Overrides(software_gpu=True)).gpus
    assert software.kind == "software"
    assert interpret(probe("software-renderer")).gpus == ()
    beside = interpret(probe("two-7900-xtx-and-raphael"), Overrides(integrated_gpu=True))
    assert len(beside.gpus) == 2


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("0100007F:2CAA", "127.0.0.1", 11434),
        ("00000000:0016", "0.0.0.0", 22),
        ("00000000000000000000000000000000:1F90", "::", 8080),
        ("00000000000000000000000001000000:0019", "::1", 25),
        ("0000000000000000FFFF00000100007F:18BD", "127.0.0.1", 6333),
        ("B80D01200000000067452301EFCDAB89:0050", "2001:db8:0:0:123:4567:89ab:cdef", 80),
    ],
)
def test_kernel_addresses(text: str, address: str, port: int) -> None:
    assert decode_address(text) == (address, port)


def test_ports_name_process_user_and_unit() -> None:
    raw = changed(
        "bare-server",
        add=(
            "port\ttcp\t0100007F:2CAA\t64000\t99",
            "uid\t64000\tollama",
            "portuser\t127.0.0.1:11434\tollama\t812",
            "portcgroup\t812\t/system.slice/ollama.service",
            "ollama\tbinary\t/usr/local/bin/ollama",
            "ollama\tlistening\t11434",
            'ollama\tapi\t{"version":"0.34.2"}',
        ),
    )
    report = interpret(raw)
    port = next(port for port in report.ports if port.port == 11434)
    assert (port.address, port.process, port.pid, port.user, port.unit) == (
        "127.0.0.1", "ollama", 812, "ollama", "ollama.service",
    )  # fmt: skip
    assert report.ollama is not None
    assert report.ollama.version == "0.34.2"
    assert report.ollama.listening


@pytest.mark.parametrize(
    ("lines", "state"),
    [
        (("user\tuid\t0",), "root"),
        (("user\tuid\t1000", "sudo\trc\t0"), "passwordless"),
        (("user\tuid\t1000", "user\tgroups\tbob wheel", "sudo\trc\t1", ASKS), "password"),
        (("user\tuid\t1000", "user\tgroups\tbob", "sudo\trc\t1", ASKS), "none"),
        (("user\tuid\t1000", "user\tgroups\tsudo", "sudo\trc\t1",
          'sudo\tmessage\tsudo: The "no new privileges" flag is set'), "none"),
        (("user\tuid\t1000", "user\tgroups\tsudo", "sudo\tstate\tabsent"), "none"),
    ],
)  # fmt: skip
def test_sudo(lines: tuple[str, ...], state: str) -> None:
    assert interpret(changed("bare-server", ("user\t", "sudo\t"), lines)).host.sudo == state


def test_a_battery_of_a_mouse_is_not_the_machines() -> None:
    raw = changed("bare-server", add=("power\thidpp_battery_0\tBattery\t-\tDischarging\tDevice",))
    assert interpret(raw).host.on_battery is None


def test_a_minimal_python_is_not_offered() -> None:
    raw = changed(
        "bare-server",
        add=(
            "python\t/usr/bin/python3\t/usr/bin/python3.13\tshared\t3.13.5\tssl",
            "python\t/usr/local/bin/python3\t/usr/local/bin/python3.12\tshared\t3.12.1\tjson,ctypes,zipfile,http,ssl,sqlite3,venv",
            "python\t/root/bin/python3\t/root/bin/python3\tprivate",
        ),
    )
    host = interpret(raw).host
    assert host.python == (("/usr/local/bin/python3", "3.12.1"),)
    assert [i.shared for i in host.interpreters] == [True, True, False]


def test_the_c_library_is_named() -> None:
    assert interpret(probe("alpine-nothing")).host.glibc == "musl"
    assert interpret(probe("rtx-4060-server")).host.glibc == "2.36"


def test_machine_id_is_hashed() -> None:
    line = make_anonymous("host\tmachine_id\t0123456789abcdef0123456789abcdef")
    assert line.startswith("host\tmachine_id_hash\t")
    assert "0123456789abcdef0123" not in line
    assert make_anonymous("host\thostname\tbox") == "host\thostname\tbox"


def test_saved_probes_can_be_replayed(tmp_path: Path) -> None:
    path = tmp_path / "probe.json"
    save(probe("mig-instances"), path)
    assert load(path) == probe("mig-instances")
    path.write_text("{}")
    with pytest.raises(ConfigError):
        load(path)
    with pytest.raises(ConfigError):
        load(tmp_path / "missing.json")


def test_changes_in_words() -> None:
    old, new = interpret(probe("rtx-4070")), interpret(probe("rtx-4090"))
    assert old.fingerprint() != new.fingerprint()
    assert describe_change(old, old) == []
    assert describe_change(old, new) == ["RTX 4070 12 GB replaced by RTX 4090 24 GB"]
    assert "NVIDIA" not in describe_change(old, new)[0]
    two, one = interpret(probe("two-5090-alike")), interpret(probe("5090-and-3090"))
    assert describe_change(two, one)[0] == "RTX 5090 32 GB replaced by RTX 3090 24 GB"
    lost = describe_change(interpret(probe("rtx-4090")), interpret(probe("driver-mismatch")))
    assert lost[0] == "RTX 4090 24 GB is gone"
    assert any(text.startswith("HW-NVIDIA-DRIVER-MISMATCH: ") for text in lost)
    came = describe_change(interpret(probe("container-cgroup-v2")), interpret(probe("rented-one-of-four")))
    assert "RTX 3090 24 GB was added" in came
    assert "memory grew from 6 to 64 GiB (limited by the container)" in came
    assert describe_change(old.matters(), new) == describe_change(old, new)
    assert describe_change((), new) == []
    assert models_changed(["a", "b"], ["a", "b"]) == ""
    assert models_changed(["a", "b", "c", "d"], ["a", "x", "y", "z"]) == "3 models would change"


def test_the_fingerprint_does_not_move_with_a_new_kernel() -> None:
    """The part of the RAM that the kernel keeps differs by some MiB between versions: 15.54 and 15.46 GiB are 16 GB."""
    raw = probe("rtx-4060-server")
    lines = tuple("mem\tMemTotal\t16210000" if line.startswith("mem\tMemTotal") else line for line in raw.lines)
    assert interpret(raw).fingerprint() == interpret(raw.model_copy(update={"lines": lines})).fingerprint()


def test_the_fingerprint_does_not_move_with_load() -> None:
    raw = probe("rtx-4090")
    busy = tuple("mem\tMemAvailable\t100000" if line.startswith("mem\tMemAvailable") else line for line in raw.lines)
    assert interpret(raw).fingerprint() == interpret(raw.model_copy(update={"lines": busy})).fingerprint()
    asleep, awake = interpret(probe("hybrid-laptop-asleep")), interpret(probe("hybrid-laptop"))
    assert asleep.fingerprint() == awake.fingerprint()
    assert describe_change(asleep, awake) == []


def test_a_carve_out_is_no_part_of_the_ram_and_gtt_is() -> None:
    """What the arithmetic of models may use of a Strix Halo: 96 GB carved out beside 31 GB, or GTT within the RAM."""
    carved = machine_of(interpret(probe("strix-halo-more-than-ram")), Cards([]))
    assert carved.free == (97904 << 20,)
    raw = probe("strix-halo-gtt")
    busy = tuple("mem\tMemAvailable\t41943040" if line.startswith("mem\tMemAvailable") else line for line in raw.lines)
    assert machine_of(interpret(raw.model_copy(update={"lines": busy})), Cards([])).free == (40 << 30,)


@pytest.mark.parametrize(
    ("name", "floor"),
    [("rtx-4090", "550"), ("gtx-1060", "570"), ("hybrid-laptop-asleep", "550"), ("rx-7900-xtx", "ROCm 7"),
     ("arc-b580-xe", None), ("jetson-orin", None), ("jetson-thor", "550")],
)  # fmt: skip
def test_the_drivers_floor_stands_beside_its_version(name: str, floor: str | None) -> None:
    (gpu,) = interpret(probe(name)).gpus
    assert gpu.driver_version.value
    assert (gpu.driver_floor.value, gpu.driver_floor.source) == (floor, "table" if floor else None)
    raw = probe(name)
    if raw.smi is not None:
        (gpu,) = interpret(raw.model_copy(update={"nvml": None, "nvml_error": "not asked"})).gpus
        assert gpu.driver_floor.value == floor


def test_swap_and_cores_say_where_they_came_from() -> None:
    assert dict(interpret(probe("rtx-4090")).provenance)["memory.swap_total_bytes"] == "procfs"
    assert dict(interpret(probe("arm-board-4gb-64k")).provenance)["cpu.cores"].startswith("unknown: ")
