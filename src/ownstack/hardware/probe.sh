#!/bin/sh
# ownstack's hardware probe. Read-only, needs no root, never fails; prints one fact a line:
#   section <TAB> key <TAB> value ...
# It observes only; the meaning is given by interpret.py. PROBE_ROOT names a fixture tree that
# stands for /: its .probe/uname holds system, machine and release, its .probe/bin stand-in tools.
# Shell builtins wherever possible: a fork costs a millisecond, a hung tool the whole answer.
LC_ALL=C
export LC_ALL
umask 077
[ -n "${PROBE_DEBUG:-}" ] || exec 2>/dev/null
T=$(printf '\t')
N='
'
D=" $T$N"
IFS=$D
P=${PROBE_ROOT:-}
DIRS="/usr/local/bin /usr/bin /bin /usr/local/sbin /usr/sbin /sbin /usr/lib/wsl/lib /snap/bin /opt/rocm/bin /run/current-system/sw/bin"
# a fixture may put its own tools first; those of this machine serve as awk, cat, readlink
PATH=${P:+$P/.probe/bin:}${PATH:-/usr/bin:/bin}:/usr/sbin:/sbin:/usr/lib/wsl/lib
export PATH

e() { IFS=$T; printf '%s\n' "$*"; IFS=$D; }                # emit one line
rd() { R=; [ -r "$1" ] && IFS= read -r R <"$1"; [ -n "$R" ]; }   # first line of a file
put() { if rd "$3"; then e "$1" "$2" "$R"; fi; }           # section, key, file
find_tool() {                                              # path of a tool in W, or failure
    for d in $DIRS; do
        if [ -x "$P$d/$1" ] && [ ! -d "$P$d/$1" ]; then W=$d/$1; return 0; fi
    done
    W=
    [ -z "$P" ] && W=$(command -v "$1") && [ -n "$W" ]
}
may_run() { [ -z "$P" ] || [ -x "$P/.probe/bin/$1" ]; }    # in a fixture only its own tools speak
bounded() {                                                # a command with a time limit where there is one
    s=$1; shift
    if [ -n "$LIMIT" ]; then "$LIMIT" -s KILL "$s" "$@"; else "$@"; fi
}
LIMIT=$(command -v timeout)

probe_system() {
    if [ -n "$P" ] && [ -r "$P/.probe/uname" ]; then
        { read -r SYS; read -r ARCH; read -r KERNEL; } <"$P/.probe/uname"
    else
        SYS=Linux ARCH=
        if rd "$P/proc/sys/kernel/osrelease"; then
            KERNEL=$R
            ARCH=$(uname -m)
        else
            # shellcheck disable=SC2046  # three words
            set -- $(uname -srm)
            SYS=${1:-unknown} KERNEL=${2:-} ARCH=${3:-}
        fi
    fi
    e host system "$SYS"; e host machine "$ARCH"; e host kernel "$KERNEL"
    if rd "$P/proc/sys/kernel/hostname"; then e host hostname "$R"; else e host hostname "$(uname -n)"; fi
    for f in /etc/machine-id /var/lib/dbus/machine-id; do
        if rd "$P$f"; then e host machine_id "$R"; break; fi
    done
    for f in /etc/os-release /usr/lib/os-release; do
        [ -r "$P$f" ] || continue
        while IFS='=' read -r k v; do
            case $k in
                ID|ID_LIKE|VERSION_ID|VERSION_CODENAME|PRETTY_NAME) v=${v#[\"\']}; e os "$k" "${v%[\"\']}" ;;
            esac
        done <"$P$f"
        break
    done
    if may_run getconf && v=$(getconf GNU_LIBC_VERSION) && [ -n "$v" ]; then
        e os libc "$v"
    else
        for f in "$P"/lib/ld-musl-*.so.1; do [ -e "$f" ] && e os libc musl; done
        for f in "$P"/lib/*-linux-gnu*/libc-2.*.so "$P"/lib64/libc-2.*.so; do
            if [ -e "$f" ]; then v=${f##*/libc-}; e os libc "glibc ${v%.so}"; break; fi
        done
    fi
    for f in sys_vendor product_name board_name chassis_type; do put dmi $f "$P/sys/class/dmi/id/$f"; done
    if [ -r "$P/proc/device-tree/model" ]; then e dt model "$(tr -d '\000' <"$P/proc/device-tree/model")"; fi
    if [ -r "$P/proc/device-tree/compatible" ]; then
        e dt compatible "$(tr '\000' ' ' <"$P/proc/device-tree/compatible")"
    fi
    put dt tegra_release "$P/etc/nv_tegra_release"
}

probe_init() {
    put init pid1 "$P/proc/1/comm"
    [ -d "$P/run/systemd/system" ] && e init booted systemd
    put container run "$P/run/systemd/container"
    [ -e "$P/.dockerenv" ] && e container marker docker
    [ -e "$P/run/.containerenv" ] && e container marker podman
    [ -e "$P/dev/lxd/sock" ] && e container marker lxc
    [ -e "$P/dev/.lxc-boot-id" ] && e container marker lxc
    [ -z "$P" ] && [ -n "${container:-}" ] && e container env "$container"
    [ -n "${KUBERNETES_SERVICE_HOST:-}" ] && [ -z "$P" ] && e container marker kubernetes
    if [ -r "$P/proc/1/environ" ]; then
        v=$(tr '\000' '\n' <"$P/proc/1/environ" | sed -n 's/^container=//p')
        [ -n "$v" ] && e container pid1 "$v"
    fi
    if [ -r "$P/proc/1/cgroup" ]; then
        while IFS= read -r l; do e container cgroup1 "$l"; done <"$P/proc/1/cgroup"
    fi
    if may_run systemd-detect-virt && find_tool systemd-detect-virt; then
        e virt vm "$(bounded 1 systemd-detect-virt --vm)"
        e virt container "$(bounded 1 systemd-detect-virt --container)"
    elif [ -n "$P" ] && rd "$P/.probe/virt"; then
        e virt vm "$R"
    fi
    put virt hypervisor "$P/sys/hypervisor/type"
    put host version "$P/proc/version"
}

probe_cpu_memory() {
    awk -F': *' '
        { sub(/[ \t]+$/, "", $1) }
        $1 == "processor" { n++; phys = 0 }
        $1 == "model name" && !model { model = $2 }
        $1 == "Hardware" && !hw { hw = $2 }
        $1 == "CPU implementer" && !impl { impl = $2 }
        $1 == "CPU part" && !seen_part[$2]++ { part = part " " $2 }
        ($1 == "flags" || $1 == "Features") && !flags { flags = $2 }
        $1 == "physical id" { phys = $2 }
        $1 == "core id" { if (!seen[phys "/" $2]++) cores++ }
        END { OFS = "\t"
            print "cpu", "threads", n + 0
            if (cores) print "cpu", "cores", cores
            if (model) print "cpu", "model", model
            if (hw) print "cpu", "hardware", hw
            if (impl) print "cpu", "arm", impl part
            if (flags) print "cpu", "flags", flags }' "$P/proc/cpuinfo"
    awk '/^(MemTotal|MemFree|MemAvailable|SwapTotal|SwapFree|CmaTotal|HugePages_Total|Hugepagesize):/ {
        sub(/:/, "", $1); print "mem\t" $1 "\t" $2 }' "$P/proc/meminfo"
    if may_run getconf && v=$(getconf PAGESIZE) && [ -n "$v" ]; then
        e mem page_bytes "$v"
    elif [ -r "$P/proc/self/smaps" ]; then
        awk '/^KernelPageSize:/ { print "mem\tpage_bytes\t" $2 * 1024; exit }' "$P/proc/self/smaps"
    fi
}

cgroup_walk() {                                            # version, mount, path, limit file, usage file
    v=$1 m=$2 g=$3
    while :; do
        [ "$g" = / ] && g=
        if rd "$P$m$g/$4"; then
            lim=$R cur=
            rd "$P$m$g/$5" && cur=$R
            e cgroup "$v" "${g:-/}" "$lim" "$cur"
        fi
        [ -n "$g" ] || break
        g=${g%/*}
    done
}

probe_cgroup() {
    [ -r "$P/proc/self/cgroup" ] || return
    while IFS=: read -r _ ctl path; do
        case ",$ctl," in
            ,,) for m in /sys/fs/cgroup /sys/fs/cgroup/unified; do
                    [ -e "$P$m/cgroup.procs" ] && cgroup_walk v2 $m "$path" memory.max memory.current
                done ;;
            *,memory,*) cgroup_walk v1 /sys/fs/cgroup/memory "$path" memory.limit_in_bytes memory.usage_in_bytes ;;
        esac
    done <"$P/proc/self/cgroup"
}

probe_power() {
    for d in "$P"/sys/class/power_supply/*; do
        rd "$d/type" || continue
        t=$R; rd "$d/online"; o=$R; rd "$d/status"; s=$R; rd "$d/scope"
        e power "${d##*/}" "$t" "${o:--}" "${s:--}" "${R:--}"
    done
}

probe_disks() {
    may_run df || return
    set -- /
    for d in /opt /var /home /usr/share /var/lib/ownstack "${HOME:-}"; do
        [ -n "$d" ] && [ -d "$P$d" ] && set -- "$@" "$d"
    done
    # other real file systems: models may go there
    IFS=$N
    # shellcheck disable=SC2013  # IFS is a line break here
    for d in $(awk '$3 ~ /^(ext[234]|xfs|btrfs|zfs|f2fs|bcachefs|jfs|ntfs3?|fuseblk|exfat|apfs)$/ && $2 !~ /^\/(boot|snap|run|var\/lib\/docker)/ { print $2 }' \
        "$P/proc/self/mounts"); do
        [ -d "$P$d" ] && set -- "$@" "$d"
    done
    IFS=$D
    for d in "$@"; do printf 'diskpath\t%s\n' "$d"; done
    bounded 2 df -P -k "$@" | awk 'NR > 1 { m = $6; for (i = 7; i <= NF; i++) m = m " " $i
        print "disk\t" m "\t" $2 "\t" $4 "\t" $1 }'
    awk '{ print "mount\t" $2 "\t" $3 "\t" substr($4, 1, 2) }' "$P/proc/self/mounts" |
        awk -F'\t' '$3 ~ /^(ext[234]|xfs|btrfs|zfs|f2fs|bcachefs|overlay|tmpfs|nfs4?|cifs|fuse.*|9p|virtiofs|ntfs3?)$/ && $2 !~ /^\/(run|dev|proc|sys|boot|snap)/'
}

probe_user() {
    e user name "$(id -un)"
    U=$(id -u)
    e user uid "$U"
    e user groups "$(id -Gn)"
    e user home "${HOME:-}"
    [ -n "$U" ] && [ -S "$P/run/user/$U/bus" ] && e user bus "/run/user/$U/bus"
    [ -e "$P/var/lib/systemd/linger/$(id -un)" ] && e user linger yes
    if [ "$U" = 0 ]; then
        e sudo state root
    elif may_run sudo && find_tool sudo; then
        v=$(bounded 2 sudo -n true 2>&1 </dev/null)
        e sudo rc $?
        [ -n "$v" ] && e sudo message "${v%%"$N"*}"
    else
        e sudo state absent
    fi
    e locale LANG "${LANG:-}"
    for f in /etc/default/locale /etc/locale.conf; do
        [ -r "$P$f" ] || continue
        while IFS='=' read -r k v; do
            case $k in LANG) v=${v#[\"\']}; e locale system "${v%[\"\']}" ;; esac
        done <"$P$f"
    done
    if v=$(readlink "$P/etc/localtime") && [ -n "$v" ]; then
        e timezone name "${v##*/zoneinfo/}"
    else
        put timezone name "$P/etc/timezone"
    fi
}

probe_tools() {
    v=
    for t in curl wget zstd tar xz gzip unzip awk systemctl loginctl journalctl systemd-run apt-get dnf yum pacman \
        zypper apk nix brew sudo doas ss ip nft iptables python3 uv gcc openssl timeout setpriv runuser supervisord \
        docker podman node nvidia-smi nvidia-modprobe rocminfo rocm-smi vulkaninfo lspci ollama useradd adduser \
        getenforce update-initramfs dracut ubuntu-drivers tailscale caddy cron crontab snap flock; do
        find_tool "$t" && v="$v $t"
    done
    e tools list "${v# }"
}

probe_pythons() {
    may_run python3 || return
    seen=" "
    n=0
    for f in /usr/bin/python3 /usr/bin/python3.[0-9] /usr/bin/python3.[0-9][0-9] /usr/local/bin/python3 \
        /usr/local/bin/python3.[0-9][0-9] "$(command -v python3)"; do
        [ -x "$f" ] || continue
        r=$(readlink -f "$f"); r=${r:-$f}
        case $seen in *" $r "*) continue ;; esac
        seen="$seen$r "
        n=$((n + 1)); [ $n -gt 5 ] && break
        s=private
        case $r in
            /root/* | /home/* | /Users/* | "${HOME:-/nonexistent}"/*) ;;
            *) case $(ls -lL "$r") in -????????x*) s=shared ;; esac ;;
        esac
        if [ $s = private ]; then e python "$f" "$r" private; continue; fi
        v=$(bounded 2 "$r" -I -S -c '
import sys
from importlib.machinery import PathFinder as F
print("%d.%d.%d\t%s" % (sys.version_info[:3] + (",".join(m for m in
    ("json", "ctypes", "zipfile", "http", "ssl", "sqlite3", "venv", "ensurepip") if F.find_spec(m)),)))' </dev/null)
        [ -n "$v" ] && e python "$f" "$r" shared "$v"
    done
}

probe_ports() {
    for f in tcp tcp6; do
        [ -r "$P/proc/net/$f" ] || continue
        awk -v kind=$f '$4 == "0A" { print "port\t" kind "\t" $2 "\t" $8 }' "$P/proc/net/$f"
    done
    if may_run ss && find_tool ss; then
        pids=" "
        bounded 2 ss -H -t -l -n -p | while read -r _ _ _ a _ who; do
            case $who in *pid=*) ;; *) continue ;; esac
            p=${who#*pid=}; p=${p%%[!0-9]*}
            c=${who#*\"}; c=${c%%\"*}
            e portuser "$a" "$c" "$p"
            case $pids in *" $p "*) continue ;; esac
            pids="$pids$p "
            if [ -r "$P/proc/$p/cgroup" ]; then
                while IFS= read -r l; do
                    case $l in 0::* | *:name=systemd:*) e portcgroup "$p" "${l##*:}" ;; esac
                done <"$P/proc/$p/cgroup"
            fi
        done
    fi
    # names of the users that hold the ports
    awk -F: 'NR == FNR { if ($0 ~ /^ *[0-9]+:/) { n = split($0, f, " "); if (f[4] == "0A") want[f[8]] = 1 } next }
        ($3 in want) { print "uid\t" $3 "\t" $1 }' "$P/proc/net/tcp" "$P/etc/passwd"
    if [ -r "$P/proc/net/tcp6" ]; then
        awk -F: 'NR == FNR { if ($0 ~ /^ *[0-9]+:/) { n = split($0, f, " "); if (f[4] == "0A") want[f[8]] = 1 } next }
            ($3 in want) { print "uid\t" $3 "\t" $1 }' "$P/proc/net/tcp6" "$P/etc/passwd"
    fi
}

probe_ollama() {
    find_tool ollama && e ollama binary "$W"
    for f in /etc/systemd/system/ollama.service /usr/lib/systemd/system/ollama.service /lib/systemd/system/ollama.service \
        /etc/systemd/system/snap.ollama.listener.service; do
        [ -e "$P$f" ] && e ollama unit "$f"
    done
    f=${HOME:-/nonexistent}/.config/systemd/user/ollama.service
    [ -z "$P" ] && [ -e "$f" ] && e ollama unit "$f"
    [ -d "$P/usr/share/ollama/.ollama/models" ] && e ollama models /usr/share/ollama/.ollama/models
    [ -d "${HOME:-/nonexistent}/.ollama/models" ] && [ -z "$P" ] && e ollama models "$HOME/.ollama/models"
    # 11434 = 2CAA
    if awk '$2 ~ /:2CAA$/ && $4 == "0A" { f = 1 } END { exit !f }' "$P/proc/net/tcp" "$P/proc/net/tcp6"; then
        e ollama listening 11434
        if may_run curl && find_tool curl; then
            e ollama api "$(bounded 2 curl -s -m 1 http://127.0.0.1:11434/api/version)"
        elif may_run wget && find_tool wget; then
            e ollama api "$(bounded 2 wget -q -T 1 -O - http://127.0.0.1:11434/api/version)"
        fi
    fi
}

gpu_file() { if rd "$1/$3"; then e gpu "$2" "$4" "$R"; fi; }

probe_gpu_memory() {                                       # device folder, address
    for f in mem_info_vram_total mem_info_vram_used mem_info_vis_vram_total mem_info_gtt_total mem_info_gtt_used \
        lmem_total_bytes lmem_avail_bytes; do
        gpu_file "$1" "$2" $f $f
    done
    for t in "$1"/tile*; do
        [ -d "$t" ] && gpu_file "$t" "$2" physical_vram_size_bytes "${t##*/}_vram"
    done
    for c in "$1"/drm/card[0-9]*; do
        case ${c##*/} in *-*) continue ;; esac
        [ -d "$c" ] || continue
        e gpu "$2" card "${c##*/}"
        gpu_file "$c" "$2" lmem_total_bytes lmem_total_bytes
        gpu_file "$c" "$2" lmem_avail_bytes lmem_avail_bytes
        for s in "$c"/"${c##*/}"-*/status; do
            rd "$s" || continue
            s=${s%/status}; e gpu "$2" connector "${s##*/}" "$R"
        done
    done
    for c in "$1"/drm/renderD*; do [ -d "$c" ] && e gpu "$2" render "${c##*/}"; done
}

probe_pci() {
    for d in "$P"/sys/bus/pci/devices/*; do
        rd "$d/class" || continue
        class=$R
        case $class in 0x03* | 0x12*) ;; *) continue ;; esac
        a=${d##*/}
        rd "$d/vendor"; v=$R; rd "$d/device"; dev=$R
        drv=$(readlink "$d/driver")
        rd "$d/power/runtime_status"; st=$R
        e pci "$a" "$v" "$dev" "$class" "${drv##*/}" "$st"
        put2=; rd "$d/subsystem_vendor" && put2=$R
        rd "$d/subsystem_device" && e gpu "$a" subsystem "$put2:$R"
        gpu_file "$d" "$a" boot_vga boot_vga
        gpu_file "$d" "$a" product_name product_name
        gpu_file "$d" "$a" unique_id unique_id
        [ -L "$d/physfn" ] && e gpu "$a" virtual_function yes
        if [ "$v" = 0x8086 ] && [ -r "$d/resource" ]; then
            # region 2 holds the local memory of cards whose driver does not tell its size
            { read -r _; read -r _; IFS= read -r R; } <"$d/resource" && e gpu "$a" bar2 "$R"
        fi
        probe_gpu_memory "$d" "$a"
    done
    for m in nvidia nouveau nova_core amdgpu radeon i915 xe; do
        if [ -d "$P/sys/module/$m" ]; then rd "$P/sys/module/$m/version"; e module $m "$R"; fi
    done
}

probe_kfd() {
    set -- "$P"/sys/class/kfd/kfd/topology/nodes/*/properties
    [ -e "$1" ] || return
    for f in "$@"; do
        n=${f%/properties}; n=${n##*/}
        rd "${f%properties}gpu_id" && e kfd "$n" gpu_id "$R"
        rd "${f%properties}name" && e kfd "$n" name "$R"
        if [ -r "$f" ]; then
            awk -v n="$n" '/^(simd_count|gfx_target_version|vendor_id|device_id|location_id|domain|drm_render_minor|cpu_cores_count|mem_banks_count) / {
                print "kfd\t" n "\t" $1 "\t" $2 }' "$f" || e kfd "$n" error unreadable
        else
            e kfd "$n" error unreadable
        fi
        for b in "${f%properties}"mem_banks/*/properties; do
            [ -r "$b" ] || continue
            awk -v n="$n" '$1 == "heap_type" { h = $2 } $1 == "size_in_bytes" { s = $2 }
                END { print "kfd\t" n "\tbank\t" h "\t" s }' "$b"
        done
    done
}

node() {                                                   # a device node and what we may do with it
    [ -e "$P$1" ] || return
    acc=
    [ -r "$P$1" ] && acc=r
    [ -w "$P$1" ] && acc=${acc}w
    e dev "$1" "${acc:--}"
}

probe_nodes() {
    for f in "$P"/dev/nvidia[0-9]* "$P"/dev/nvidiactl "$P"/dev/nvidia-uvm "$P"/dev/nvidia-caps/nvidia-cap* "$P"/dev/kfd \
        "$P"/dev/dri/renderD* "$P"/dev/dri/card* "$P"/dev/dxg "$P"/dev/nvhost-gpu "$P"/dev/nvmap "$P"/dev/nvhost-ctrl-gpu "$P"/dev/accel/accel*; do
        node "${f#"$P"}"
    done
}

probe_nvidia() {
    put nvidia proc_version "$P/proc/driver/nvidia/version"
    for f in "$P"/proc/driver/nvidia/gpus/*/information; do
        [ -r "$f" ] || continue
        a=${f%/information}; a=${a##*/}
        while IFS= read -r l; do
            case $l in
                Model:*) e nvgpu "$a" model "${l#Model:}" ;;
                "GPU UUID:"*) e nvgpu "$a" uuid "${l#GPU UUID:}" ;;
            esac
        done <"$f"
    done
    for d in /usr/lib/x86_64-linux-gnu /usr/lib/aarch64-linux-gnu /usr/lib64 /usr/lib /usr/lib/wsl/lib /usr/lib/wsl/drivers \
        /usr/local/nvidia/lib64 /usr/lib/x86_64-linux-gnu/nvidia/current /usr/lib/nvidia /run/opengl-driver/lib \
        /usr/lib/aarch64-linux-gnu/nvidia /usr/lib/aarch64-linux-gnu/tegra /usr/lib/x86_64-linux-gnu/tesla; do
        [ -e "$P$d/libnvidia-ml.so.1" ] || [ -L "$P$d/libnvidia-ml.so.1" ] || continue
        v=
        for f in "$P$d"/libnvidia-ml.so.[0-9]*.[0-9]*; do [ -e "$f" ] && v=${f##*/libnvidia-ml.so.}; done
        e nvlib "$d" libnvidia-ml.so.1 "$v"
    done
    for f in "$P"/usr/lib/wsl/lib/*; do [ -e "$f" ] && e wsl lib "${f##*/}"; done
    find_tool nvidia-smi && e nvidia smi "$W"
    [ -e "$P/var/run/reboot-required" ] && e os reboot_required yes
}

probe_software() {
    for d in /usr/share/vulkan/icd.d /etc/vulkan/icd.d /usr/local/share/vulkan/icd.d; do
        for f in "$P$d"/*.json; do [ -e "$f" ] && e icd "$d" "${f##*/}"; done
    done
}

probe_darwin() {
    for k in hw.memsize hw.pagesize hw.physicalcpu hw.logicalcpu machdep.cpu.brand_string hw.model \
        hw.perflevel0.physicalcpu iogpu.wired_limit_mb hw.optional.arm64 kern.osproductversion kern.osversion; do
        v=$(sysctl -n $k) && e sysctl $k "$v"
    done
    v=$(vm_stat | awk '/page size of/ { p = $8 } /Pages (free|inactive|speculative|purgeable)/ { gsub(/\./, "", $NF); s += $NF }
        END { if (p) printf "%.0f", s * p / 1024 }')
    [ -n "$v" ] && e mem MemAvailable "$v"
    v=$(ioreg -rc AGXAccelerator | awk -F= '/gpu-core-count/ { gsub(/ /, "", $2); print $2; exit }')
    [ -n "$v" ] && e sysctl gpu_cores "$v"
    case $(pmset -g batt) in *"'Battery Power'"*) e power pmset Battery - Discharging - ;; *"'AC Power'"*) e power pmset Mains 1 - - ;; esac
    may_run df && df -P -k / "${HOME:-/}" | awk 'NR > 1 { print "disk\t" $6 "\t" $2 "\t" $4 "\t" $1 }'
}

if [ "${PROBE_ONLY:-}" = ports ]; then probe_ports; exit 0; fi
printf 'probe\tversion\t1\n'
probe_system
probe_user
if [ "$SYS" = Darwin ]; then
    probe_darwin
    probe_tools
else
    probe_init
    probe_cpu_memory
    probe_cgroup
    probe_power
    probe_disks
    probe_tools
    probe_pythons
    probe_pci
    probe_kfd
    probe_nodes
    probe_nvidia
    probe_software
    probe_ports
    probe_ollama
fi
printf 'probe\tend\n'
exit 0
