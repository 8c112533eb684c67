"""The failures of detection: stable ids, what they mean, and what to do on which system.

A problem is fatal when going on would quietly mean "CPU only" on a machine that has a GPU.
`--cpu-only` is the way to go on knowingly. docs/reference/hardware.md lists this table.
"""

from __future__ import annotations

from .facts import RawProbe
from .report import Problem

# id -> (what it means, what to do; {driver} and the like are filled per system, fatal)
CATALOGUE: dict[str, tuple[str, str, bool]] = {
    "HW-PROBE-INCOMPLETE": (
        "the hardware probe was cut short",
        "run `ownstack detect` again; if it stays so, save the probe with `--raw FILE` and report it",
        True,
    ),
    "HW-MEMORY-UNREADABLE": (
        "the machine's memory could not be read",
        "make /proc/meminfo readable (on a Mac: `sysctl hw.memsize`)",
        True,
    ),
    "HW-NVIDIA-DRIVER-MISSING": (
        "an NVIDIA card is on the bus, but NVIDIA's driver is not loaded",
        "{driver}, then reboot",
        True,
    ),
    "HW-NVIDIA-DRIVER-OLD": (
        "the NVIDIA driver is older than the engine needs",
        "update it: {driver}, then reboot",
        True,
    ),
    "HW-NVIDIA-DRIVER-MISMATCH": (
        "NVIDIA's kernel module and library have different versions: the driver was updated without a reboot",
        "reboot the machine",
        True,
    ),
    "HW-NVIDIA-LIBRARY-MISSING": (
        "NVIDIA's kernel driver is loaded, but its library libnvidia-ml.so.1 is not there",
        "{library}",
        True,
    ),
    "HW-NVIDIA-NO-DEVICE-NODE": (
        "NVIDIA's driver is there, but its device nodes /dev/nvidia* are not",
        "{nodes}",
        True,
    ),
    "HW-NVIDIA-NO-PERMISSION": (
        "this user may not ask the NVIDIA driver",
        "{permission}",
        True,
    ),
    "HW-NVIDIA-LOST": (
        "an NVIDIA card has fallen off the bus",
        "reboot; if it comes again look at power supply, heat and the slot (`dmesg | grep Xid`)",
        True,
    ),
    "HW-NVIDIA-HANG": (
        "the NVIDIA driver does not answer",
        "reboot; look into `dmesg | grep -i nvrm` for the cause",
        True,
    ),
    "HW-NVIDIA-MEMORY-UNKNOWN": (
        "the NVIDIA driver does not tell the memory of a card that has memory of its own",
        "reboot; then update the driver: {driver}",
        True,
    ),
    "HW-NVIDIA-MIG-EMPTY": (
        "the card is in MIG mode and has no instance that this machine may use",
        "make an instance (`sudo nvidia-smi mig -cgi 9 -C`) or switch MIG off (`sudo nvidia-smi -mig 0`)",
        True,
    ),
    "HW-NVIDIA-MISSING-CARD": (
        "an NVIDIA card is on the bus that the driver does not list",
        "see `dmesg | grep -i nvrm`; it may be bound to another driver, or too old for this one",
        True,
    ),
    "HW-NVIDIA-UNREADABLE": (
        "the NVIDIA driver is there and could not be asked",
        "run `nvidia-smi` by hand and repair what it says",
        True,
    ),
    "HW-NVIDIA-DISAGREE": (
        "nvidia-smi and NVML say different things; NVML was believed, since it gives bytes and error codes",
        "none needed; if NVML looks wrong, save the probe with `--raw FILE` and report it",
        False,
    ),
    "HW-GPU-ASLEEP": (
        "the graphics card is asleep and was not woken; its size was taken from the table",
        "`ownstack detect --wake` wakes it and measures",
        False,
    ),
    "HW-GPU-ASLEEP-UNKNOWN": (
        "the graphics card is asleep, and its size is not in the table",
        "`ownstack detect --wake` wakes it and measures",
        True,
    ),
    "HW-AMD-DRIVER-MISSING": (
        "an AMD card is on the bus, but the driver amdgpu does not hold it",
        "{amd_driver}",
        True,
    ),
    "HW-AMD-UNREADABLE": (
        "the driver amdgpu does not tell the card's memory",
        "load amdgpu without errors (`dmesg | grep amdgpu`); in a container mount /sys of the host",
        True,
    ),
    "HW-AMD-NO-DEVICE-NODE": (
        "an AMD GPU is there, but its device nodes /dev/kfd and /dev/dri are not",
        "{amd_nodes}",
        True,
    ),
    "HW-AMD-NO-PERMISSION": (
        "this user may not open /dev/kfd or the render node",
        "sudo usermod -aG render,video {user}, then log in again",
        True,
    ),
    "HW-AMD-TARGET-UNKNOWN": (
        "the LLVM target of an AMD GPU could not be read",
        "load the kernel's kfd support (part of amdgpu); it is never guessed, since a wrong one can stop the machine",
        True,
    ),
    "HW-AMD-MEMORY-IMPOSSIBLE": (
        "the driver reports more GPU memory than the machine has; it was cut to the RAM",
        "none needed; check the kernel options amdgpu.gttsize and ttm.pages_limit",
        False,
    ),
    "HW-INTEL-DRIVER-MISSING": (
        "an Intel Arc card is on the bus, but neither i915 nor xe holds it",
        "use a kernel of 6.8 or newer with the firmware package (linux-firmware) and reboot",
        True,
    ),
    "HW-INTEL-MEMORY-UNKNOWN": (
        "the driver does not tell the memory of an Intel Arc card, and the card is not in the table",
        "update the kernel, or set `[hardware] vram_gib` by hand",
        True,
    ),
    "HW-VULKAN-MISSING": (
        "the engine reaches this GPU through Vulkan, and no Vulkan driver for it is installed",
        "{vulkan}",
        True,
    ),
    "HW-INTEL-NO-DEVICE-NODE": (
        "an Intel Arc card is there, but no render node /dev/dri/renderD*",
        "pass the device into the container: --device /dev/dri",
        True,
    ),
    "HW-WSL-NO-LIBRARY": (
        "Windows shares a GPU (/dev/dxg), but NVIDIA's library is not in /usr/lib/wsl/lib",
        (
            "install NVIDIA's current driver on Windows, then `wsl --update` and `wsl --shutdown`; none inside WSL. "
            "A GPU of another make is not used by the engine in WSL: go on with --cpu-only"
        ),
        True,
    ),
    "HW-WSL-MEMORY": (
        "WSL2 sees only the part of the PC's memory that Windows gives it",
        "to give more, set `memory=` under [wsl2] in %UserProfile%\\.wslconfig, then `wsl --shutdown`",
        False,
    ),
    "HW-UNKNOWN-ACCELERATOR": (
        "an accelerator of a maker that the engine does not know is on the bus",
        "none; the engine cannot use it",
        False,
    ),
}

NVIDIA_DRIVER = {
    "ubuntu": "sudo ubuntu-drivers install",
    "debian": "enable non-free and non-free-firmware, then sudo apt install nvidia-driver firmware-misc-nonfree",
    "fedora": "enable RPM Fusion non-free, then sudo dnf install akmod-nvidia xorg-x11-drv-nvidia-cuda",
    "rhel": "enable NVIDIA's CUDA repository, then sudo dnf module install nvidia-driver:open-dkms",
    "arch": "sudo pacman -S nvidia-open nvidia-utils",
    "suse": "sudo zypper install nvidia-open-driver-G06-signed-kmp-default nvidia-compute-utils-G06",
    "alpine": "NVIDIA's driver does not run on musl; install Debian, Ubuntu or Fedora",
    "nixos": 'set services.xserver.videoDrivers = [ "nvidia" ]; and rebuild',
    "wsl": "install NVIDIA's current driver on Windows (never inside WSL), then `wsl --shutdown`",
    "": "install NVIDIA's driver (550 or newer; 570 for cards before Volta)",
}


VULKAN_DRIVER = {
    "ubuntu": "sudo apt install mesa-vulkan-drivers",
    "debian": "sudo apt install mesa-vulkan-drivers",
    "fedora": "sudo dnf install mesa-vulkan-drivers",
    "rhel": "sudo dnf install mesa-vulkan-drivers",
    "arch": "sudo pacman -S vulkan-intel (Intel) or vulkan-radeon (AMD)",
    "suse": "sudo zypper install libvulkan_intel (Intel) or libvulkan_radeon (AMD)",
    "alpine": "sudo apk add mesa-vulkan-intel (Intel) or mesa-vulkan-ati (AMD)",
}


def os_family(raw: RawProbe) -> str:
    """The key of NVIDIA_DRIVER for this system, by ID and then ID_LIKE."""
    if "microsoft" in raw.get("host", "kernel").lower():
        return "wsl"
    names = [raw.get("os", "ID"), *raw.get("os", "ID_LIKE").split()]
    alike = {"centos": "rhel", "rocky": "rhel", "almalinux": "rhel", "opensuse": "suse", "sles": "suse"}
    for name in names:
        name = alike.get(name, name)
        if name.startswith("opensuse"):
            return "suse"
        if name in NVIDIA_DRIVER:
            return name
    return ""


def problem(raw: RawProbe, id: str, detail: str = "", *, fatal: bool | None = None) -> Problem:
    """A problem of the catalogue, with what was seen and the remedy for this system."""
    meaning, fix, stops = CATALOGUE[id]
    container = in_container(raw)
    driver = "update the host's driver (a container uses the host's)" if container else NVIDIA_DRIVER[os_family(raw)]
    toolkit = "start the container with --gpus all (NVIDIA Container Toolkit on the host)"
    lxc = "pass /dev/nvidia0, /dev/nvidiactl and /dev/nvidia-uvm into the container (LXC: lxc.mount.entry; "
    texts = {
        "driver": driver,
        "library": toolkit if container else f"install the library that belongs to the module: {driver}",
        "nodes": f"{toolkit}, or {lxc}Docker: --device)" if container else "sudo nvidia-modprobe -u -c0",
        "permission": "restart the container: its device rules no longer allow the nodes (a reload of systemd on the "
        "host does that); " + toolkit
        if container
        else "sudo chmod a+rw /dev/nvidia* or add the user to the group that owns them (`ls -l /dev/nvidia0`)",
        "amd_driver": "install the kernel's firmware for AMD (Debian, Ubuntu: firmware-amd-graphics; Fedora: "
        "amd-gpu-firmware), take `nomodeset` off the kernel's command line, then reboot",
        "amd_nodes": "pass them in: --device /dev/kfd --device /dev/dri --group-add render"
        if container
        else "sudo modprobe amdgpu, and see `dmesg | grep amdgpu`",
        "vulkan": VULKAN_DRIVER.get(os_family(raw), "install Mesa's Vulkan driver"),
        "user": raw.get("user", "name") or "$USER",
    }
    for name, text in texts.items():
        fix = fix.replace("{" + name + "}", text)
    message = f"{meaning}: {detail}" if detail else meaning
    return Problem(id=id, message=message, fix=fix, fatal=stops if fatal is None else fatal)


def in_container(raw: RawProbe) -> str:
    """The kind of container we are in, or nothing."""
    for key in ("run", "env", "pid1", "marker"):
        if raw.get("container", key):
            return raw.get("container", key)
    named = raw.get("virt", "container")
    if named and named not in ("none", "wsl"):
        return named
    groups = " ".join(row[0] for row in raw.rows("container", "cgroup1"))
    for word, name in (("docker", "docker"), ("kubepods", "kubernetes"), ("containerd", "containerd"), ("/lxc", "lxc")):
        if word in groups:
            return name
    return ""
