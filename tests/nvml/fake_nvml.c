/* A stand-in for libnvidia-ml.so.1: the calls that our probe makes, answering as FAKE_NVML says.
 * Built with -DOLD it lacks the calls that old drivers lack. Structures follow NVIDIA's public nvml.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, NOT_LOADED = 9, LOST = 15, MISMATCH = 18 };

typedef struct { int index, part; } *device_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2_t;
typedef struct { char legacy[16]; unsigned domain, bus, device, pci_device, subsystem; char id[32]; } pci_t;

static const unsigned long long MIB = 1ULL << 20;

static int is(const char *name)
{
    const char *variant = getenv("FAKE_NVML");
    return variant && strcmp(variant, name) == 0;
}

static device_t make(int index, int part)
{
    device_t device = malloc(sizeof *device);
    device->index = index;
    device->part = part;
    return device;
}

int nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    if (is("hang"))
        sleep(600);
    if (is("crash"))
        abort();
    if (is("mismatch"))
        return MISMATCH;
    if (is("not-loaded"))
        return NOT_LOADED;
    return is("no-permission") ? NO_PERMISSION : OK;
}

int nvmlShutdown(void) { return OK; }

const char *nvmlErrorString(int code)
{
    switch (code) {
    case NOT_SUPPORTED: return "Not Supported";
    case NO_PERMISSION: return "Insufficient Permissions";
    case NOT_FOUND: return "Not Found";
    case NOT_LOADED: return "Driver Not Loaded";
    case LOST: return "GPU is lost";
    case MISMATCH: return "Driver/library version mismatch";
    default: return "Unknown Error";
    }
}

int nvmlSystemGetDriverVersion(char *text, unsigned size) { snprintf(text, size, "580.95.05"); return OK; }
int nvmlSystemGetNVMLVersion(char *text, unsigned size) { snprintf(text, size, "13.580.95.05"); return OK; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = is("several") || is("lost") ? 2 : 1; return OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t *device)
{
    if (is("lost") && index == 1)
        return LOST;
    *device = make((int)index, -1);
    return OK;
}

int nvmlDeviceGetName(device_t device, char *text, unsigned size)
{
    if (is("unsupported") || is("odd"))
        snprintf(text, size, "NVIDIA GB10");
    else if (is("mig"))
        snprintf(text, size, "NVIDIA A100-SXM4-40GB%s", device->part < 0 ? "" : " MIG 1g.5gb");
    else
        snprintf(text, size, device->index ? "NVIDIA GeForce RTX 3090" : "NVIDIA GeForce RTX 4090");
    return OK;
}

int nvmlDeviceGetUUID(device_t device, char *text, unsigned size)
{
    snprintf(text, size, "%s-00000000-0000-4000-8000-%012d", device->part < 0 ? "GPU" : "MIG", device->index + 1 + device->part);
    return OK;
}

static int memory(device_t device, memory_v2_t *told)
{
    unsigned long long total = 24564, used = 482;

    if (is("unsupported"))
        return NOT_SUPPORTED;
    if (is("mig") && device->part < 0)
        return NO_PERMISSION;
    if (is("mig")) {
        total = 4864;
        used = 4;
    } else if (device->index) {
        total = 24576;
    } else if (is("odd")) {
        total = 3;
        used = 1;
    }
    told->total = total * MIB;
    told->reserved = 0;
    told->used = used * MIB;
    told->free = told->total - told->used;
    return OK;
}

int nvmlDeviceGetMemoryInfo(device_t device, memory_t *told)
{
    memory_v2_t all;
    int code = memory(device, &all);
    if (code == OK) {
        told->total = all.total;
        told->free = all.free;
        told->used = all.used;
    }
    return code;
}

int nvmlDeviceGetPciInfo_v3(device_t device, pci_t *pci)
{
    memset(pci, 0, sizeof *pci);
    pci->bus = (unsigned)device->index + 1;
    pci->pci_device = is("unsupported") || is("odd") ? 0x2e1210deU : is("mig") ? 0x20b010deU : device->index ? 0x220410deU : 0x268410deU;
    snprintf(pci->id, sizeof pci->id, "00000000:%02X:00.0", pci->bus);
    return OK;
}

int nvmlDeviceGetCudaComputeCapability(device_t device, int *major, int *minor)
{
    *major = is("unsupported") ? 12 : 8;
    *minor = is("unsupported") ? 1 : is("mig") ? 0 : device->index ? 6 : 9;
    return OK;
}

int nvmlDeviceGetMaxClockInfo(device_t device, int kind, unsigned *mhz)
{
    (void)kind;
    if (is("unsupported"))
        return NOT_SUPPORTED;
    *mhz = device->index ? 9751 : 10501;
    return OK;
}

int nvmlDeviceGetEnforcedPowerLimit(device_t device, unsigned *milliwatts) { (void)device; *milliwatts = 450000; return OK; }
int nvmlDeviceGetDisplayActive(device_t device, int *active) { *active = device->index == 0; return OK; }
int nvmlDeviceGetVirtualizationMode(device_t device, int *mode) { (void)device; *mode = is("vgpu") ? 2 : 0; return OK; }

#ifndef OLD
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 13000; return OK; }
int nvmlDeviceGetMemoryBusWidth(device_t device, unsigned *bits) { (void)device; *bits = 384; return OK; }

int nvmlDeviceGetMemoryInfo_v2(device_t device, memory_v2_t *told)
{
    int code = told->version == 0x02000028U ? memory(device, told) : INVALID;
    if (code == OK && device->part < 0) {
        told->reserved = 400 * MIB; /* version 1 counts it as used */
        told->used -= 400 * MIB;
    }
    return code;
}

int nvmlDeviceGetMigMode(device_t device, unsigned *current, unsigned *pending)
{
    (void)device;
    if (!is("mig") && !is("mig-empty"))
        return NOT_SUPPORTED;
    *current = *pending = 1;
    return OK;
}

int nvmlDeviceGetMaxMigDeviceCount(device_t device, unsigned *count) { (void)device; *count = 7; return OK; }

int nvmlDeviceGetMigDeviceHandleByIndex(device_t device, unsigned index, device_t *part)
{
    if (!is("mig") || (index != 0 && index != 3))
        return NOT_FOUND;
    *part = make(device->index, (int)index);
    return OK;
}
#endif
